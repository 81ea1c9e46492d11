#include "twin.h"

#include <stdio.h>
#include <stdlib.h>

#define GUARD ((size_t)4096) /* bytes before each workspace and behind the last */
#define POISON 0xff

static void *address_of(const struct twin *twin, const void *host)
{
    const struct trial_arena *arena = &twin->arena;
    size_t offset = (size_t)((const unsigned char *)host - arena->bytes);
    if (host != NULL && offset >= arena->size) {
        fprintf(stderr, "twin: a tensor lies outside of the arena\n");
        abort();
    }
    return host == NULL ? NULL : twin->device + offset;
}

void twin_destroy(struct twin *twin)
{
    if (twin != NULL) {
        twin->memory->destroy(twin);
    }
}

struct attn_problem twin_problem(const struct twin *twin, const struct attn_problem *problem)
{
    struct attn_problem ours = *problem;
    struct attn_lengths *lengths = &ours.lengths;
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        struct attn_view *view = tensor_view(&ours, id);
        view->data = address_of(twin, view->data);
    }
    lengths->cu_seqlens_q = address_of(twin, lengths->cu_seqlens_q);
    lengths->cu_seqlens_k = address_of(twin, lengths->cu_seqlens_k);
    lengths->seqlens_k = address_of(twin, lengths->seqlens_k);
    return ours;
}

void *twin_workspace(struct twin *twin, size_t bytes)
{
    size_t begin = (twin->workspace_used + GUARD + 63) / 64 * 64;
    if (twin->span_count == TWIN_WORKSPACES || begin + bytes + GUARD > twin->workspace_size) {
        fprintf(stderr, "twin: no workspace of %zu bytes left\n", bytes);
        abort();
    }
    twin->spans[twin->span_count++] = (struct twin_span){begin, bytes};
    twin->workspace_used = begin + bytes;
    return twin->workspace + begin;
}

int twin_up(struct twin *twin)
{
    int error = twin->memory->up(twin, twin->device, twin->arena.bytes, twin->arena.used);
    return error != 0 ? error
                      : twin->memory->poison(twin, twin->workspace, twin->workspace_used + GUARD);
}

int twin_down(struct twin *twin)
{
    int error = twin->memory->down(twin, twin->arena.bytes, twin->device, twin->arena.used);
    return error != 0 ? error
                      : twin->memory->down(
                            twin, twin->returned, twin->workspace, twin->workspace_used + GUARD);
}

bool twin_release(struct twin *twin)
{
    size_t at = 0;
    bool intact = true;
    for (size_t i = 0; i <= twin->span_count; i++) {
        bool last = i == twin->span_count;
        size_t end = last ? twin->workspace_used + GUARD : twin->spans[i].begin;
        for (; at < end; at++) {
            intact = intact && twin->returned[at] == POISON;
        }
        at += last ? 0 : twin->spans[i].bytes;
    }
    twin->span_count = 0;
    twin->workspace_used = 0;
    return intact;
}

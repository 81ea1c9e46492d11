#include "backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "choose.h"
#include "pool.h"
#include "shared_memory.h"
#include "thread.h"

/*
 * Nothing cuts a tile: everybody's next launch, and the daemon's end, wait for it. 128 queries of head
 * dim 256 against 2^20 keys are just within it, seconds of one core; twice the keys at head dim 128 as
 * well.
 */
#define MAX_TILE_FLOPS 0x1p37

/* Clearing and reading memory, against the rate of a core at matrix products: that of the memory is
 * about an eighth of it in bytes, less for pages touched first. */
#define FLOPS_PER_BYTE 8

/* Finding out where a sequence lies and what of it is visible takes up to 65 ns (EPYC, virtual). */
#define STEP_FLOPS 0x1p11

/* Only until the first groups have been measured. */
#define FIRST_GUESS_FLOPS_PER_WORKER 1e10

struct cpu {
    struct backend backend;
    struct pool *pool;   /* owned */
    struct group *ended; /* borrowed, waits for poll */
    enum wire_status status;
};

static struct cpu *cpu_of(struct backend *backend)
{
    return (struct cpu *)(void *)backend;
}

static bool map_region(struct backend *backend, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    (void)backend;
    if (offer->kind != WIRE_MEMORY_SHM) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY,
            "kind: this daemon computes on the processor and can't reach a GPU's memory");
    }
    return shared_memory_map(offer, base, error);
}

static void unmap_region(struct backend *backend, void *base, uint64_t bytes)
{
    (void)backend;
    shared_memory_unmap(base, bytes);
}

static bool is_ours(const struct attn_family *family)
{
    return attn_family_device(family) == ATTN_DEVICE_CPU;
}

static enum wire_status submit(struct backend *backend, struct group *group)
{
    struct cpu *cpu = cpu_of(backend);
    const struct attn_target target = {.executor = pool_executor(cpu->pool)};
    int error = attn_launch(group->family, group->direction, group->slice, group->members, &target);
    cpu->status = error == 0 ? WIRE_OK : WIRE_INTERNAL;
    cpu->ended = group;
    return WIRE_OK;
}

static struct group *poll_ended(struct backend *backend, enum wire_status *status)
{
    struct cpu *cpu = cpu_of(backend);
    struct group *group = cpu->ended;
    if (group != NULL) {
        *status = cpu->status;
        cpu->ended = NULL;
    }
    return group;
}

static void destroy(struct backend *backend)
{
    struct cpu *cpu = cpu_of(backend);
    pool_destroy(cpu->pool);
    if (backend->workspace != NULL) {
        munmap(backend->workspace, backend->workspace_bytes);
    }
    free(cpu);
}

static size_t scratch_bytes(void)
{
    size_t most = 0;
    for (size_t i = 0; i < attn_family_count(); i++) {
        const struct attn_family *family = attn_family_at(i);
        if (is_ours(family) && attn_scratch_bytes(family) > most) {
            most = attn_scratch_bytes(family);
        }
    }
    return most;
}

static const struct backend_ops cpu_ops = {
    .map = map_region,
    .unmap = unmap_region,
    .choose = choose_family,
    .submit = submit,
    .poll = poll_ended,
    .destroy = destroy,
};

struct backend *backend_cpu_create(unsigned threads, uint64_t workspace_bytes)
{
    unsigned workers = threads > 0 ? threads : thread_processors();
    struct cpu *cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL) {
        return NULL;
    }
    struct backend *backend = &cpu->backend;
    backend->ops = &cpu_ops;
    backend->device_kind = WIRE_DEVICE_CPU;
    snprintf(backend->device_name, sizeof(backend->device_name), "cpu, %u thread%s", workers,
        workers == 1 ? "" : "s");
    backend->max_groups = 1; /* the engine's own thread works on it */
    backend->flops_per_second = FIRST_GUESS_FLOPS_PER_WORKER * workers;
    backend->flops_per_byte = FLOPS_PER_BYTE;
    backend->step_flops = STEP_FLOPS;
    backend->max_tile_flops = MAX_TILE_FLOPS;
    void *workspace =
        mmap(NULL, workspace_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (workspace != MAP_FAILED) {
        backend->workspace = workspace;
        backend->workspace_bytes = workspace_bytes;
        cpu->pool = pool_create(workers, scratch_bytes());
    }
    if (cpu->pool == NULL) {
        destroy(backend);
        return NULL;
    }
    return backend;
}

#include "arena.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#include "list.h"

/* The range is a row of spans without gaps, free or out; no two free ones are neighbours. */
struct span {
    struct list_node node; /* in the row, by address, or among the unused */
    size_t offset;
    size_t bytes;
    bool out;
};

/*
 * Searches walk the whole row. It is short: a piece is out per request that has started and not
 * ended, some hundred at most.
 */
struct arena {
    unsigned char *base; /* borrowed */
    size_t capacity;
    uint32_t free_records; /* pieces that may still go out */
    struct list row;
    struct list unused;
    struct span *spans; /* owned */
};

static struct span *span_of(struct list_node *node)
{
    return list_entry(node, struct span, node);
}

static struct span *best_fit(struct arena *arena, size_t bytes)
{
    struct span *best = NULL;
    list_for_each(at, &arena->row) {
        struct span *span = span_of(at);
        if (!span->out && span->bytes >= bytes && (best == NULL || span->bytes < best->bytes)) {
            best = span;
        }
    }
    return best;
}

static void insert_after(struct list_node *at, struct list_node *node)
{
    node->prev = at;
    node->next = at->next;
    at->next->prev = node;
    at->next = node;
}

/* Cuts what is beyond `bytes` off as a free span. */
static void split(struct arena *arena, struct span *span, size_t bytes)
{
    if (span->bytes == bytes) {
        return;
    }
    struct span *rest = span_of(list_pop(&arena->unused));
    rest->offset = span->offset + bytes;
    rest->bytes = span->bytes - bytes;
    rest->out = false;
    span->bytes = bytes;
    insert_after(&span->node, &rest->node);
}

/* Lets a free span swallow its right neighbour, if that is free too. */
static void merge_right(struct arena *arena, struct span *span)
{
    struct list_node *next = span->node.next;
    if (next != &arena->row.head && !span_of(next)->out) {
        span->bytes += span_of(next)->bytes;
        list_remove(next);
        list_append(&arena->unused, next);
    }
}

struct arena *arena_create(void *base, size_t bytes, uint32_t max_pieces)
{
    /* Between and around n pieces there are at most n + 1 free spans. */
    size_t records = 2 * (size_t)max_pieces + 1;
    struct arena *arena = calloc(1, sizeof(*arena));
    struct span *spans = calloc(records, sizeof(*spans));
    if (arena == NULL || spans == NULL) {
        free(arena);
        free(spans);
        return NULL;
    }
    arena->base = base;
    arena->capacity = bytes - bytes % ARENA_ALIGNMENT;
    arena->free_records = max_pieces;
    arena->spans = spans;
    list_init(&arena->row);
    list_init(&arena->unused);
    for (size_t i = 1; i < records; i++) {
        list_append(&arena->unused, &spans[i].node);
    }
    spans[0].bytes = arena->capacity;
    list_append(&arena->row, &spans[0].node);
    return arena;
}

void arena_destroy(struct arena *arena)
{
    if (arena != NULL) {
        free(arena->spans);
        free(arena);
    }
}

size_t arena_capacity(const struct arena *arena)
{
    return arena->capacity;
}

void *arena_acquire(struct arena *arena, size_t bytes)
{
    if (bytes > arena->capacity || arena->free_records == 0) {
        return NULL;
    }
    size_t rounded = bytes == 0 ? ARENA_ALIGNMENT
                                : (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    struct span *span = best_fit(arena, rounded);
    if (span == NULL) {
        return NULL;
    }
    split(arena, span, rounded);
    span->out = true;
    arena->free_records--;
    return arena->base + span->offset;
}

void arena_release(struct arena *arena, void *piece)
{
    size_t offset = (size_t)((unsigned char *)piece - arena->base);
    struct span *span = NULL;
    list_for_each(at, &arena->row) {
        if (span_of(at)->out && span_of(at)->offset == offset) {
            span = span_of(at);
        }
    }
    assert(span != NULL);
    span->out = false;
    arena->free_records++;
    merge_right(arena, span);
    if (span->node.prev != &arena->row.head && !span_of(span->node.prev)->out) {
        merge_right(arena, span_of(span->node.prev));
    }
}

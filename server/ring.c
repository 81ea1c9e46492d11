#include "ring.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_LINE 64
#define MAX_ITEMS (UINT32_C(1) << 30)

/* Counters run on and wrap; an item lies at counter & mask. Each side has its own cache line. */
struct ring {
    uint32_t mask;
    size_t item_bytes;
    unsigned char *items; /* owned */
    _Alignas(CACHE_LINE) _Atomic uint32_t pushed;
    _Alignas(CACHE_LINE) _Atomic uint32_t popped;
};

static unsigned char *slot_of(const struct ring *ring, uint32_t counter)
{
    return ring->items + (size_t)(counter & ring->mask) * ring->item_bytes;
}

struct ring *ring_create(uint32_t items, size_t item_bytes)
{
    assert(items <= MAX_ITEMS && item_bytes > 0);
    uint32_t capacity = 1;
    while (capacity < items) {
        capacity *= 2;
    }
    struct ring *ring = aligned_alloc(CACHE_LINE, sizeof(*ring));
    if (ring == NULL) {
        return NULL;
    }
    ring->mask = capacity - 1;
    ring->item_bytes = item_bytes;
    ring->items = calloc(capacity, item_bytes);
    atomic_init(&ring->pushed, 0);
    atomic_init(&ring->popped, 0);
    if (ring->items == NULL) {
        ring_destroy(ring);
        return NULL;
    }
    return ring;
}

void ring_destroy(struct ring *ring)
{
    if (ring != NULL) {
        free(ring->items);
        free(ring);
    }
}

bool ring_push(struct ring *ring, const void *item)
{
    uint32_t pushed = atomic_load_explicit(&ring->pushed, memory_order_relaxed);
    /* Acquire: the slot's last item has been copied out before it is overwritten. */
    if (pushed - atomic_load_explicit(&ring->popped, memory_order_acquire) > ring->mask) {
        return false;
    }
    memcpy(slot_of(ring, pushed), item, ring->item_bytes);
    atomic_store_explicit(&ring->pushed, pushed + 1, memory_order_release);
    return true;
}

bool ring_pop(struct ring *ring, void *item)
{
    uint32_t popped = atomic_load_explicit(&ring->popped, memory_order_relaxed);
    if (atomic_load_explicit(&ring->pushed, memory_order_acquire) == popped) {
        return false;
    }
    memcpy(item, slot_of(ring, popped), ring->item_bytes);
    atomic_store_explicit(&ring->popped, popped + 1, memory_order_release);
    return true;
}

#include "ring.h"

#include <pthread.h>
#include <sched.h>

#include "check.h"

#define ITEMS 200000
#define CAPACITY 64

struct item {
    uint64_t number;
    uint64_t complement; /* a torn copy would not match */
    uint64_t *payload;   /* plain memory that the ring must order */
};

static uint64_t payloads[ITEMS];

static void *push_all(void *context)
{
    struct ring *ring = context;
    for (uint64_t i = 0; i < ITEMS; i++) {
        struct item item = {.number = i, .complement = ~i, .payload = &payloads[i]};
        payloads[i] = i * 3;
        while (!ring_push(ring, &item)) {
            sched_yield();
        }
    }
    return NULL;
}

static void passes_everything_in_order_between_threads(void)
{
    struct ring *ring = ring_create(CAPACITY, sizeof(struct item));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, push_all, ring) == 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        struct item item;
        while (!ring_pop(ring, &item)) {
            sched_yield();
        }
        CHECK(item.number == i && item.complement == ~i && *item.payload == i * 3);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    struct item none;
    CHECK(!ring_pop(ring, &none));
    ring_destroy(ring);
}

static void holds_what_it_was_made_for_and_says_when_it_is_full(void)
{
    for (uint32_t items = 1; items <= 40; items++) {
        struct ring *ring = ring_create(items, sizeof(uint32_t));
        uint32_t room = 0;
        uint32_t value;
        while (ring_push(ring, &room)) {
            room++;
        }
        CHECK(room >= items);
        for (uint32_t i = 0; i < room; i++) {
            CHECK(ring_pop(ring, &value) && value == i);
        }
        CHECK(!ring_pop(ring, &value));
        ring_destroy(ring);
    }
}

int main(void)
{
    holds_what_it_was_made_for_and_says_when_it_is_full();
    passes_everything_in_order_between_threads();
    ring_destroy(NULL);
    return 0;
}

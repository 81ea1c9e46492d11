#include "bell.h"

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "check.h"

#define ROUNDS 20000

/* Two threads that wait for each other at every step: one ring missed and they stop for ever. */
struct pair {
    struct bell bell[2];
    uint32_t step[2]; /* plain: the other reads it only after the ring */
    _Atomic uint32_t published[2];
};

static struct pair pair;

static void publish(int side, uint32_t step)
{
    pair.step[side] = step;
    atomic_store_explicit(&pair.published[side], step, memory_order_release);
    bell_ring(&pair.bell[side], 1);
}

static void await(int side, uint32_t step)
{
    for (;;) {
        uint32_t seen = bell_look(&pair.bell[side]);
        if (atomic_load_explicit(&pair.published[side], memory_order_acquire) >= step) {
            CHECK(pair.step[side] >= step);
            return;
        }
        bell_wait(&pair.bell[side], seen, BELL_FOREVER);
    }
}

static void *answer(void *context)
{
    (void)context;
    for (uint32_t step = 1; step <= ROUNDS; step++) {
        await(0, step);
        publish(1, step);
    }
    return NULL;
}

static void no_ring_is_missed(void)
{
    pthread_t thread;
    bell_init(&pair.bell[0]);
    bell_init(&pair.bell[1]);
    CHECK(pthread_create(&thread, NULL, answer, NULL) == 0);
    for (uint32_t step = 1; step <= ROUNDS; step++) {
        publish(0, step);
        await(1, step);
    }
    CHECK(pthread_join(thread, NULL) == 0);
}

static void a_wait_ends_by_time(void)
{
    struct bell bell;
    struct timespec start;
    struct timespec end;
    bell_init(&bell);
    clock_gettime(CLOCK_MONOTONIC, &start);
    bell_wait(&bell, bell_look(&bell), 20000000);
    clock_gettime(CLOCK_MONOTONIC, &end);
    int64_t waited_ns =
        (int64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (end.tv_nsec - start.tv_nsec);
    CHECK(waited_ns >= 15000000);
    uint32_t old = bell_look(&bell);
    bell_ring(&bell, 1);
    bell_wait(&bell, old, BELL_FOREVER); /* rung since the look: does not sleep */
}

int main(void)
{
    a_wait_ends_by_time();
    no_ring_is_missed();
    return 0;
}

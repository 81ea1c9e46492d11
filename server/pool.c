#include "pool.h"

#include <assert.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "bell.h"
#include "thread.h"

#define SCRATCH_ALIGNMENT 64
#define SPIN_ROUNDS 1000 /* pauses of about 40 cycles: some 10 us, what a wake-up costs */

/*
 * `open` holds the number of the batch (upper half) and how many of its items nobody has taken yet
 * (lower half). Taking an item is one compare-exchange, which fails if the batch has changed: so
 * work, context and first, which change only between batches, are read only by those who hold an
 * item of the current one.
 */
struct pool {
    struct attn_executor executor;
    bool spins;
    _Alignas(64) _Atomic uint64_t open;
    _Alignas(64) _Atomic uint32_t left; /* items of the batch that have not ended */
    attn_work_fn work;
    void *context;
    uint64_t first; /* item of the batch's start */
    uint32_t items;
    struct bell start;
    struct bell end;
    _Atomic bool stop;
    void **scratch;         /* owned, each too */
    struct helper *helpers; /* owned: workers 1 .. */
    unsigned helpers_running;
};

struct helper {
    struct pool *pool;
    unsigned worker;
    pthread_t thread;
};

static void pause_briefly(void)
{
    __builtin_ia32_pause();
}

static bool take(struct pool *pool, uint32_t *items_left)
{
    uint64_t open = atomic_load_explicit(&pool->open, memory_order_acquire);
    while ((uint32_t)open != 0) {
        if (atomic_compare_exchange_weak_explicit(
                &pool->open, &open, open - 1, memory_order_acquire, memory_order_acquire)) {
            *items_left = (uint32_t)open;
            return true;
        }
    }
    return false;
}

static void work_along(struct pool *pool, unsigned worker)
{
    uint32_t items_left;
    while (take(pool, &items_left)) {
        pool->work(pool->context, pool->first + (pool->items - items_left), worker);
        if (atomic_fetch_sub_explicit(&pool->left, 1, memory_order_acq_rel) == 1) {
            bell_ring(&pool->end, 1);
        }
    }
}

static bool nothing_to_take(struct pool *pool)
{
    return (uint32_t)atomic_load_explicit(&pool->open, memory_order_relaxed) == 0 &&
           !atomic_load_explicit(&pool->stop, memory_order_relaxed);
}

static void *run_helper(void *context)
{
    struct helper *helper = context;
    struct pool *pool = helper->pool;
    while (!atomic_load(&pool->stop)) {
        uint32_t seen = bell_look(&pool->start);
        work_along(pool, helper->worker);
        for (int i = 0; pool->spins && i < SPIN_ROUNDS && nothing_to_take(pool); i++) {
            pause_briefly();
        }
        if (nothing_to_take(pool)) {
            bell_wait(&pool->start, seen, BELL_FOREVER);
        }
    }
    return NULL;
}

static void wait_for_end(struct pool *pool)
{
    for (int i = 0; pool->spins && i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->left, memory_order_acquire) == 0) {
            return;
        }
        pause_briefly();
    }
    for (;;) {
        uint32_t seen = bell_look(&pool->end);
        if (atomic_load_explicit(&pool->left, memory_order_acquire) == 0) {
            return;
        }
        bell_wait(&pool->end, seen, BELL_FOREVER);
    }
}

static void run_batch(struct pool *pool, uint64_t first, uint32_t items)
{
    pool->first = first;
    pool->items = items;
    atomic_store_explicit(&pool->left, items, memory_order_relaxed);
    uint64_t batch = (atomic_load_explicit(&pool->open, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&pool->open, batch << 32 | items, memory_order_release);
    if (items > 1) {
        bell_ring(&pool->start, items - 1);
    }
    work_along(pool, 0);
    wait_for_end(pool);
}

static void run_items(
    const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context)
{
    if (executor->workers == 1 || items <= 1) {
        for (uint64_t item = 0; item < items; item++) {
            work(context, item, 0);
        }
        return;
    }
    /* Every executor handed out is the first member of a pool. */
    struct pool *pool = (struct pool *)(uintptr_t)executor;
    pool->work = work;
    pool->context = context;
    for (uint64_t first = 0; first < items; first += UINT32_MAX) {
        uint64_t rest = items - first;
        run_batch(pool, first, rest < UINT32_MAX ? (uint32_t)rest : UINT32_MAX);
    }
}

static bool acquire_scratch(struct pool *pool, unsigned workers, size_t bytes)
{
    size_t rounded = (bytes + SCRATCH_ALIGNMENT) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
    pool->scratch = calloc(workers, sizeof(*pool->scratch));
    if (pool->scratch == NULL) {
        return false;
    }
    for (unsigned i = 0; i < workers; i++) {
        pool->scratch[i] = aligned_alloc(SCRATCH_ALIGNMENT, rounded);
        if (pool->scratch[i] == NULL) {
            return false;
        }
    }
    return true;
}

static bool start_helpers(struct pool *pool, unsigned workers)
{
    pool->helpers = calloc(workers, sizeof(*pool->helpers));
    if (pool->helpers == NULL) {
        return false;
    }
    for (unsigned i = 1; i < workers; i++) {
        struct helper *helper = &pool->helpers[i - 1];
        char name[16];
        snprintf(name, sizeof(name), "attnd-cpu-%u", i % 10000);
        *helper = (struct helper){.pool = pool, .worker = i};
        if (!thread_start(&helper->thread, name, run_helper, helper)) {
            return false;
        }
        pool->helpers_running++;
    }
    return true;
}

struct pool *pool_create(unsigned workers, size_t scratch_bytes)
{
    assert(workers >= 1);
    struct pool *pool = aligned_alloc(64, sizeof(*pool));
    if (pool == NULL) {
        return NULL;
    }
    *pool = (struct pool){.spins = thread_processors() >= THREAD_SPIN_PROCESSORS};
    bell_init(&pool->start);
    bell_init(&pool->end);
    pool->executor.workers = workers;
    pool->executor.run = run_items;
    if (!acquire_scratch(pool, workers, scratch_bytes) || !start_helpers(pool, workers)) {
        pool_destroy(pool);
        return NULL;
    }
    pool->executor.scratch = pool->scratch;
    return pool;
}

void pool_destroy(struct pool *pool)
{
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->stop, true);
    bell_ring(&pool->start, UINT_MAX);
    for (unsigned i = 0; i < pool->helpers_running; i++) {
        pthread_join(pool->helpers[i].thread, NULL);
    }
    for (unsigned i = 0; pool->scratch != NULL && i < pool->executor.workers; i++) {
        free(pool->scratch[i]);
    }
    free(pool->scratch);
    free(pool->helpers);
    free(pool);
}

const struct attn_executor *pool_executor(const struct pool *pool)
{
    return &pool->executor;
}

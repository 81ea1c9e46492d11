#include "pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "check.h"

#define MOST_ITEMS 3000
#define SCRATCH_BYTES 1000

struct tally {
    const struct attn_executor *executor;
    uint32_t times[MOST_ITEMS]; /* plain: an item run twice at a time is a race */
    _Atomic uint32_t busy[8];   /* per worker: two threads with one number? */
    _Atomic uint32_t other_workers;
    bool slow;
};

static struct tally tally;

static void count(void *context, uint64_t item, unsigned worker)
{
    struct tally *at = context;
    CHECK(at == &tally && worker < at->executor->workers && item < MOST_ITEMS);
    CHECK(atomic_fetch_add(&at->busy[worker], 1) == 0);
    memset(at->executor->scratch[worker], (int)worker, SCRATCH_BYTES);
    at->times[item]++;
    if (worker != 0) {
        atomic_fetch_add(&at->other_workers, 1);
    }
    if (at->slow) {
        const struct timespec while_ = {.tv_nsec = 2000000};
        nanosleep(&while_, NULL);
    }
    CHECK(atomic_fetch_sub(&at->busy[worker], 1) == 1);
}

static void run(const struct attn_executor *executor, uint64_t items)
{
    memset(&tally.times, 0, sizeof(tally.times));
    tally.executor = executor;
    executor->run(executor, items, count, &tally);
    for (uint64_t i = 0; i < MOST_ITEMS; i++) {
        CHECK(tally.times[i] == (i < items ? 1 : 0));
    }
}

static void runs_every_item_once(unsigned workers)
{
    struct pool *pool = pool_create(workers, SCRATCH_BYTES);
    CHECK(pool != NULL);
    const struct attn_executor *executor = pool_executor(pool);
    CHECK(executor->workers == workers);
    for (unsigned i = 0; i < workers; i++) {
        CHECK((uintptr_t)executor->scratch[i] % 64 == 0);
    }
    for (int round = 0; round < 300; round++) {
        run(executor, (uint64_t)(round % 7));
    }
    run(executor, MOST_ITEMS);
    pool_destroy(pool);
}

static void sleeping_workers_wake_up_for_long_work(void)
{
    struct pool *pool = pool_create(3, SCRATCH_BYTES);
    const struct timespec nap = {.tv_nsec = 50000000};
    CHECK(pool != NULL);
    nanosleep(&nap, NULL);
    tally.slow = true;
    atomic_store(&tally.other_workers, 0);
    run(pool_executor(pool), 30);
    CHECK(atomic_load(&tally.other_workers) > 0);
    tally.slow = false;
    pool_destroy(pool);
}

static void idle_workers_take_no_time(void)
{
    struct pool *pool = pool_create(4, SCRATCH_BYTES);
    const struct timespec nap = {.tv_nsec = 300000000};
    struct timespec before;
    struct timespec after;
    CHECK(pool != NULL);
    run(pool_executor(pool), 100);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    nanosleep(&nap, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 30000000);
    pool_destroy(pool);
}

int main(void)
{
    for (unsigned workers = 1; workers <= 5; workers++) {
        runs_every_item_once(workers);
    }
    sleeping_workers_wake_up_for_long_work();
    idle_workers_take_no_time();
    pool_destroy(NULL);
    return 0;
}

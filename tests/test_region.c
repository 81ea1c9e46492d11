/* Regions with a backend that only counts: numbers, references, limits. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "region.h"

#define UID 7

struct counting {
    struct backend backend; /* first */
    unsigned mapped;
    uint64_t bytes;
    bool refuse;
    pthread_t unmapper;
};

static bool map(struct backend *backend, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    struct counting *counting = (struct counting *)backend;
    if (counting->refuse) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY, "not this one");
    }
    counting->mapped++;
    counting->bytes += offer->bytes;
    *base = counting;
    return true;
}

static void unmap(struct backend *backend, void *base, uint64_t bytes)
{
    struct counting *counting = (struct counting *)backend;
    cr_assert_eq(base, counting);
    counting->unmapper = pthread_self();
    counting->mapped--;
    counting->bytes -= bytes;
}

static const struct backend_ops ops = {.map = map, .unmap = unmap};

static struct counting counting = {.backend = {.ops = &ops}};
static struct region_set set;
static struct reaper *reaper;
static struct wire_error error;

static void start(void)
{
    reaper = reaper_create("test");
    cr_assert_not_null(reaper);
    cr_assert(region_set_init(&set, &counting.backend, reaper, UID, 3));
}

static void wait_for_reaper(void)
{
    for (int tries = 0; tries < 10000 && reaper_weight(reaper, UID) != 0; tries++) {
        (void)usleep(1000);
    }
    cr_assert_eq(reaper_weight(reaper, UID), 0);
}

static void stop(void)
{
    region_set_finish(&set);
    cr_assert(reaper_destroy(reaper));
    cr_assert_eq(counting.mapped, 0);
    cr_assert_eq(counting.bytes, 0);
}

TestSuite(region, .init = start, .fini = stop);

Test(region, is_unmapped_after_the_last_use_and_not_before)
{
    uint32_t number = region_add(&set, 0, 100, &error);
    struct region *region = region_find(&set, number);
    cr_assert_not_null(region);
    region_acquire(region);
    region_acquire(region);
    cr_assert(region_drop(&set, number));
    cr_expect_null(region_find(&set, number));
    cr_expect_not(region_drop(&set, number));
    region_release(region);
    cr_expect_eq(counting.mapped, 1);
    cr_expect_eq(set.bytes, 100);
    region_release(region);
    cr_expect_eq(set.bytes, 0);
    wait_for_reaper();
    cr_expect_eq(counting.mapped, 0);
    cr_expect_not(pthread_equal(counting.unmapper, pthread_self()));
    cr_expect_eq(set.count, 0);
}

Test(region, counts_towards_the_limit_until_nobody_uses_it)
{
    uint32_t number[3];
    for (uint32_t i = 0; i < 3; i++) {
        number[i] = region_add(&set, 0, 1, &error);
        cr_assert_eq(number[i], i + 1);
    }
    cr_expect_eq(region_add(&set, 0, 1, &error), 0);
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    struct region *used = region_find(&set, 2);
    region_acquire(used);
    cr_assert(region_drop(&set, 2));
    cr_expect_eq(region_add(&set, 0, 1, &error), 0);
    region_release(used);
    cr_expect_eq(region_add(&set, 0, 1, &error), 2);
}

Test(region, what_the_backend_refuses_leaves_nothing)
{
    counting.refuse = true;
    cr_expect_eq(region_add(&set, 0, 1, &error), 0);
    cr_expect_eq(error.status, WIRE_UNSUPPORTED_MEMORY);
    cr_expect_eq(set.count, 0);
    counting.refuse = false;
    cr_expect_eq(region_add(&set, 0, 1, &error), 1);
}

Test(region, numbers_that_were_never_given_are_not_found)
{
    cr_assert_neq(region_add(&set, 0, 1, &error), 0);
    cr_expect_null(region_find(&set, 0));
    cr_expect_null(region_find(&set, 2));
    cr_expect_null(region_find(&set, 4));
    cr_expect_null(region_find(&set, UINT32_MAX));
}

Test(region, finishing_unmaps_what_is_still_used)
{
    region_acquire(region_find(&set, region_add(&set, 0, 7, &error)));
    (void)region_add(&set, 0, 8, &error);
    region_set_finish(&set);
    wait_for_reaper();
    cr_expect_eq(counting.mapped, 0);
}

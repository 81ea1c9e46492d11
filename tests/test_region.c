/* Regions with a backend that maps when told to: numbers, references, limits, growing, and ends of all
 * kinds while a worker is at it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "region.h"
#include "slow_backend.h"

#define UID 7
#define PID 4711
#define LIMIT 3

static struct slow_backend slow;
static struct region_set set;
static struct worker *mapper;
static struct worker *unmapper;
static struct wire_error error;

static void wake(void *context)
{
    (void)context;
}

static void start(void)
{
    slow_backend_init(&slow);
    mapper = worker_create("mapper", wake, NULL);
    unmapper = worker_create("unmapper", wake, NULL);
    cr_assert(mapper != NULL && unmapper != NULL);
    const struct region_options options = {.backend = &slow.backend,
        .mapper = mapper,
        .unmapper = unmapper,
        .uid = UID,
        .pid = PID,
        .limit = LIMIT};
    cr_assert(region_set_init(&set, &options));
}

static void stop(void)
{
    slow_backend_hold(&slow, false, false);
    region_set_finish(&set);
    cr_assert(worker_destroy(mapper));
    cr_assert(worker_destroy(unmapper));
    cr_assert_eq(slow.mappings, 0);
    cr_assert_eq(slow.bytes, 0);
    cr_assert_null(slow.fault, "%s", slow.fault);
    slow_backend_finish(&slow);
}

TestSuite(region, .init = start, .fini = stop);

/* ---- An answer, and waiting for it -------------------------------------------------------------- */

static struct {
    unsigned count;
    uint32_t number;
    int fd;
    struct wire_error error;
} answer;

static void on_done(void *context, uint32_t number, int fd, const struct wire_error *why)
{
    cr_expect_eq(context, &answer);
    answer.count++;
    answer.number = number;
    answer.fd = fd;
    answer.error = *why;
}

static uint32_t await(void)
{
    unsigned before = answer.count;
    for (int tries = 0; tries < 10000 && answer.count == before; tries++) {
        (void)usleep(100);
        worker_collect(mapper);
    }
    cr_assert_eq(answer.count, before + 1);
    return answer.number;
}

static bool begin(const struct backend_offer *offer)
{
    return region_add(&set, offer, on_done, &answer, &error);
}

static uint32_t add(uint64_t bytes)
{
    const struct backend_offer offer = {.bytes = bytes, .fd = -1};
    return begin(&offer) ? await() : 0;
}

static uint32_t add_growing(uint64_t bytes, uint64_t reserve)
{
    const struct backend_offer offer = {
        .kind = WIRE_MEMORY_CUDA_VMM, .bytes = bytes, .reserve = reserve, .fd = -1};
    return begin(&offer) ? await() : 0;
}

static bool begin_extending(uint32_t number, uint64_t offset, uint64_t bytes)
{
    const struct backend_offer piece = {.kind = WIRE_MEMORY_CUDA_VMM, .bytes = bytes, .fd = -1};
    return region_extend(&set, number, offset, &piece, on_done, &answer, &error);
}

static void wait_for_unmapper(void)
{
    for (int tries = 0; tries < 10000 && worker_weight(unmapper, UID) != 0; tries++) {
        (void)usleep(1000);
    }
    cr_assert_eq(worker_weight(unmapper, UID), 0);
}

/* ---- Numbers and references --------------------------------------------------------------------- */

Test(region, is_unmapped_after_the_last_use_and_not_before)
{
    uint32_t number = add(100);
    struct region *region = region_find(&set, number);
    cr_assert_not_null(region);
    region_acquire(region);
    region_acquire(region);
    cr_assert(region_drop(&set, number));
    cr_expect_null(region_find(&set, number));
    cr_expect_not(region_drop(&set, number));
    region_release(region);
    cr_expect_eq(slow_backend_mappings(&slow), 1);
    cr_expect_eq(set.bytes, 100);
    region_release(region);
    cr_expect_eq(set.bytes, 0);
    wait_for_unmapper();
    cr_expect_eq(slow_backend_mappings(&slow), 0);
    cr_expect_eq(set.count, 0);
    cr_expect_not(pthread_equal(slow.mapped_by, pthread_self()));
    cr_expect_not(pthread_equal(slow.unmapped_by, pthread_self()));
    cr_expect_not(pthread_equal(slow.unmapped_by, slow.mapped_by));
}

Test(region, counts_towards_the_limit_until_nobody_uses_it)
{
    for (uint32_t i = 0; i < LIMIT; i++) {
        cr_assert_eq(add(1), i + 1);
    }
    cr_expect_eq(add(1), 0);
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    struct region *used = region_find(&set, 2);
    region_acquire(used);
    cr_assert(region_drop(&set, 2));
    cr_expect_eq(add(1), 0);
    region_release(used);
    cr_expect_eq(add(1), 2);
}

Test(region, counts_towards_the_limit_while_it_is_mapped)
{
    const struct backend_offer offer = {.bytes = 5, .fd = -1};
    slow_backend_hold(&slow, true, false);
    for (int i = 0; i < LIMIT; i++) {
        cr_assert(begin(&offer));
    }
    cr_expect_eq(set.bytes, 15);
    cr_expect_not(begin(&offer));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_null(region_find(&set, 1), "it is not mapped yet");
    slow_backend_hold(&slow, false, false);
    for (int tries = 0; tries < 10000 && answer.count < LIMIT; tries++) {
        (void)usleep(1000);
        worker_collect(mapper);
    }
    cr_expect_not_null(region_find(&set, LIMIT));
}

Test(region, handles_count_from_their_offer_until_they_are_dropped)
{
    const struct backend_offer handle = {.kind = WIRE_MEMORY_CUDA_IPC, .bytes = 5, .fd = -1};
    slow_backend_hold(&slow, true, false);
    cr_assert(begin(&handle));
    cr_expect_eq(set.handles, 1);
    slow_backend_hold(&slow, false, false);
    cr_assert_eq(await(), 1);
    cr_assert_eq(add(5), 2);
    cr_assert_eq(add_growing(5, 10), 3);
    cr_expect_eq(set.handles, 1);
    struct region *used = region_find(&set, 1);
    region_acquire(used);
    cr_assert(region_drop(&set, 1) && region_drop(&set, 2));
    cr_expect_eq(set.handles, 0);
    region_release(used);
    cr_expect_eq(set.handles, 0);
    slow_backend_refuse(&slow, true);
    cr_assert(begin(&handle));
    cr_expect_eq(set.handles, 1);
    cr_expect_eq(await(), 0);
    cr_expect_eq(set.handles, 0);
    slow_backend_refuse(&slow, false);
    cr_assert(begin(&handle));
    region_set_close(&set);
    cr_expect_eq(await(), 0);
    cr_expect_eq(set.handles, 0);
}

Test(region, what_the_backend_refuses_leaves_nothing_but_its_descriptor)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const struct backend_offer offer = {.bytes = 9, .fd = fd};
    slow_backend_refuse(&slow, true);
    cr_assert(begin(&offer));
    cr_expect_eq(await(), 0);
    cr_expect_eq(answer.error.status, WIRE_UNSUPPORTED_MEMORY);
    cr_expect_eq(answer.fd, fd);
    cr_expect_neq(fcntl(fd, F_GETFD), -1);
    cr_expect_eq(set.count, 0);
    cr_expect_eq(set.bytes, 0);
    slow_backend_refuse(&slow, false);
    cr_assert(begin(&offer));
    cr_expect_eq(await(), 1);
    cr_expect_eq(answer.fd, -1);
    cr_expect(fcntl(fd, F_GETFD) == -1 && errno == EBADF, "what is mapped needs no descriptor");
}

Test(region, offers_carry_who_makes_them)
{
    struct backend_offer offer = {
        .kind = WIRE_MEMORY_CUDA_IPC, .bytes = 9, .fd = -1, .pid = 1, .uid = 0};
    offer.handle[WIRE_HANDLE_BYTES - 1] = 77;
    cr_assert(begin(&offer));
    cr_assert_neq(await(), 0);
    cr_expect_eq(slow_backend_last(&slow).kind, WIRE_MEMORY_CUDA_IPC);
    cr_expect_eq(slow_backend_last(&slow).pid, PID);
    cr_expect_eq(slow_backend_last(&slow).uid, UID);
    cr_expect_eq(slow_backend_last(&slow).handle[WIRE_HANDLE_BYTES - 1], 77);
}

Test(region, numbers_that_were_never_given_are_not_found)
{
    cr_assert_neq(add(1), 0);
    cr_expect_null(region_find(&set, 0));
    cr_expect_null(region_find(&set, 2));
    cr_expect_null(region_find(&set, LIMIT + 1));
    cr_expect_null(region_find(&set, UINT32_MAX));
}

Test(region, finishing_unmaps_what_is_still_used)
{
    region_acquire(region_find(&set, add(7)));
    (void)add(8);
    region_set_finish(&set);
    wait_for_unmapper();
    cr_expect_eq(slow_backend_mappings(&slow), 0);
}

/* ---- Growing ------------------------------------------------------------------------------------ */

Test(region, grows_piece_by_piece_up_to_its_reserve)
{
    uint32_t number = add_growing(10, 30);
    struct region *region = region_find(&set, number);
    cr_expect_eq(slow_backend_last(&slow).reserve, 30);
    cr_assert(begin_extending(number, 10, 15));
    cr_expect_eq(await(), number);
    cr_expect_eq(region->bytes, 25);
    cr_expect_eq(set.bytes, 25);
    cr_expect_not(begin_extending(number, 25, 6));
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    cr_expect_not(begin_extending(number, 24, 1), "not where the next piece goes");
    cr_expect_not(begin_extending(number, 25, UINT64_MAX - 20));
    cr_assert(begin_extending(number, 25, 5));
    cr_expect_eq(await(), number);
    cr_expect_eq(region->bytes, 30);
    cr_assert(region_drop(&set, number));
    cr_expect_eq(set.bytes, 0);
    cr_expect_not(begin_extending(number, 30, 1));
    cr_expect_eq(error.status, WIRE_NOT_FOUND);
}

Test(region, only_memory_that_can_grow_grows)
{
    struct backend_offer offer = {.bytes = 10, .reserve = 20, .fd = -1};
    cr_expect_not(begin(&offer));
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    offer.kind = WIRE_MEMORY_CUDA_IPC;
    cr_expect_not(begin(&offer));
    offer.kind = WIRE_MEMORY_CUDA_VMM;
    offer.reserve = 9;
    cr_expect_not(begin(&offer), "less than there is");
    cr_expect_eq(set.count, 0);
    uint32_t number = add(10);
    cr_expect_not(begin_extending(number, 10, 1));
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    number = add_growing(10, 0);
    cr_expect_eq(slow_backend_last(&slow).reserve, 10);
    cr_expect_not(begin_extending(number, 10, 1), "nothing was reserved");
}

Test(region, a_piece_that_is_refused_changes_nothing)
{
    uint32_t number = add_growing(10, 100);
    slow_backend_refuse(&slow, true);
    cr_assert(begin_extending(number, 10, 50));
    cr_expect_eq(set.bytes, 60, "counted while it is mapped");
    cr_expect_eq(await(), 0);
    cr_expect_eq(answer.error.status, WIRE_UNSUPPORTED_MEMORY);
    cr_expect_eq(set.bytes, 10);
    cr_expect_eq(region_find(&set, number)->bytes, 10);
    slow_backend_refuse(&slow, false);
    cr_assert(begin_extending(number, 10, 50));
    cr_expect_eq(await(), number);
}

/* ---- Ends while a worker is at it --------------------------------------------------------------- */

/* Begins to map, or to extend a region, and waits until the worker is at it. */
static void get_held(bool extending)
{
    const struct backend_offer offer = {.bytes = 5, .fd = -1};
    uint32_t number = extending ? add_growing(10, 100) : 0;
    slow_backend_hold(&slow, true, false);
    cr_assert(extending ? begin_extending(number, 10, 5) : begin(&offer));
    cr_assert(slow_backend_wait_held(&slow));
}

/* What was at work counts as the mapper's until it is collected, and then as the unmapper's. */
static void expect_cancelled(void)
{
    cr_expect_eq(await(), 0);
    cr_expect_eq(worker_weight(mapper, UID), 0);
    cr_expect_eq(answer.error.status, WIRE_CANCELLED);
    wait_for_unmapper();
    cr_expect_eq(slow_backend_mappings(&slow), 0);
}

Test(region, closing_while_it_is_mapped_leaks_nothing)
{
    get_held(false);
    region_set_close(&set);
    cr_expect_eq(set.bytes, 0);
    cr_expect_eq(worker_weight(mapper, UID), 5, "it counts until the end");
    region_set_close(&set);
    cr_expect_eq(worker_weight(mapper, UID), 5, "once");
    slow_backend_hold(&slow, false, false);
    expect_cancelled();
    cr_expect_eq(set.bytes, 0);
    cr_expect_eq(set.count, 0);
}

Test(region, closing_while_it_is_extended_leaks_nothing)
{
    get_held(true);
    region_set_close(&set);
    slow_backend_hold(&slow, false, false);
    expect_cancelled();
    cr_expect_eq(set.bytes, 0);
}

Test(region, finishing_while_it_is_mapped_leaks_nothing)
{
    get_held(false);
    region_set_finish(&set);
    cr_expect_eq(worker_weight(mapper, UID), 5);
    slow_backend_hold(&slow, false, false);
    expect_cancelled();
}

Test(region, finishing_while_it_is_extended_leaks_nothing)
{
    get_held(true);
    region_set_finish(&set);
    cr_expect_eq(worker_weight(mapper, UID), 15, "with the pieces that it has");
    slow_backend_hold(&slow, false, false);
    expect_cancelled();
}

Test(region, what_is_unmapped_after_the_end_counts_until_then)
{
    get_held(true);
    region_set_finish(&set);
    slow_backend_hold(&slow, false, true);
    cr_expect_eq(await(), 0);
    cr_expect_eq(worker_weight(mapper, UID), 0);
    cr_expect_eq(worker_weight(unmapper, UID), 15);
}

Test(region, what_jobs_use_counts_again_when_it_was_extended)
{
    get_held(true);
    struct region *region = region_find(&set, 1);
    region_acquire(region);
    region_set_close(&set);
    cr_expect_eq(set.bytes, 0);
    cr_expect_eq(worker_weight(mapper, UID), 15);
    slow_backend_refuse(&slow, true);
    slow_backend_hold(&slow, false, false);
    cr_expect_eq(await(), 0);
    cr_expect_eq(set.bytes, 10);
    cr_expect_eq(worker_weight(mapper, UID), 0);
    region_release(region);
    cr_expect_eq(set.bytes, 0);
    wait_for_unmapper();
}

Test(region, what_nobody_wants_any_more_is_not_mapped)
{
    const struct backend_offer offer = {.bytes = 5, .fd = 99};
    get_held(false);
    cr_assert(begin(&offer));
    region_set_close(&set);
    slow_backend_hold(&slow, false, false);
    for (int tries = 0; tries < 10000 && answer.count < 2; tries++) {
        (void)usleep(1000);
        worker_collect(mapper);
    }
    cr_expect_eq(answer.count, 2);
    cr_expect_eq(answer.error.status, WIRE_CANCELLED);
    cr_expect_eq(answer.fd, 99);
    cr_expect_eq(slow.maps, 1);
}

Test(region, dropping_while_it_is_extended_unmaps_all_pieces)
{
    get_held(true);
    cr_assert(region_drop(&set, 1));
    slow_backend_hold(&slow, false, false);
    expect_cancelled();
    cr_expect_eq(set.bytes, 0);
}

Test(region, one_piece_at_a_time)
{
    get_held(true);
    cr_expect_not(begin_extending(1, 10, 5));
    cr_expect_eq(error.status, WIRE_AGAIN);
    slow_backend_hold(&slow, false, false);
    cr_expect_eq(await(), 1);
}

/* ---- Trimming ----------------------------------------------------------------------------------- */

static bool is_trimmed;

static void nothing(struct worker_task *task)
{
    (void)task;
}

static void on_trimmed(struct worker_task *task)
{
    (void)task;
    is_trimmed = true;
    cr_expect_eq(slow_backend_mappings(&slow), 0);
}

static struct worker_task fence = {.uid = UID, .work = nothing, .done = on_trimmed};

static bool passes(void)
{
    for (int tries = 0; tries < 1000 && !is_trimmed; tries++) {
        (void)usleep(1000);
        worker_collect(unmapper);
    }
    return is_trimmed;
}

static bool stays(void)
{
    (void)usleep(50000);
    worker_collect(unmapper);
    return !is_trimmed;
}

Test(region, trimming_waits_for_what_is_unmapped)
{
    slow_backend_hold(&slow, false, true);
    cr_assert(region_drop(&set, add(1)));
    cr_assert(region_drop(&set, add(1)));
    region_trim(&set, &fence);
    cr_expect(stays());
    slow_backend_hold(&slow, false, false);
    cr_expect(passes());
}

Test(region, trimming_waits_for_what_is_still_used)
{
    uint32_t number = add(1);
    struct region *region = region_find(&set, number);
    region_acquire(region);
    cr_assert(region_drop(&set, number));
    region_trim(&set, &fence);
    cr_expect(stays());
    region_release(region);
    cr_expect(passes());
}

Test(region, trimming_nothing_is_done_at_once)
{
    region_trim(&set, &fence);
    cr_expect(passes());
}

Test(region, trimming_ends_with_the_session)
{
    uint32_t number = add(1);
    region_acquire(region_find(&set, number));
    cr_assert(region_drop(&set, number));
    region_trim(&set, &fence);
    cr_expect(stays());
    region_set_finish(&set);
    cr_expect(passes());
}

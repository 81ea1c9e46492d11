/* Sessions' regions, without an engine: what has ended is taken back before anything is refused. */
#include <criterion/criterion.h>

#include "session.h"

#define LIMIT 100

static bool map(
    struct backend *backend, int fd, uint64_t bytes, void **base, struct wire_error *error)
{
    (void)fd;
    (void)bytes;
    (void)error;
    *base = backend;
    return true;
}

static void unmap(struct backend *backend, void *base, uint64_t bytes)
{
    (void)backend;
    (void)base;
    (void)bytes;
}

static const struct backend_ops ops = {.map = map, .unmap = unmap};
static struct backend backend = {.ops = &ops};
static struct session session = {.state = SESSION_OPEN};
static struct session_table table = {.options = {.backend = &backend,
                                         .max_sessions = 1,
                                         .region_bytes_per_uid = LIMIT,
                                         .limits = {.regions = 2, .region_bytes = LIMIT}},
    .session = &session};

/* A region that a request has used, whose end nobody has noticed yet. */
static struct region *used;
static int collections;

static void collect(void *context)
{
    cr_expect_eq(context, &collections);
    collections++;
    if (used) {
        region_release(used);
        used = NULL;
    }
}

static void start(void)
{
    cr_assert(region_set_init(&session.regions, &backend, table.options.limits.regions));
    table.collect = collect;
    table.collect_context = &collections;
}

static void stop(void)
{
    region_set_finish(&session.regions);
}

TestSuite(session, .init = start, .fini = stop);

static uint32_t add(uint64_t bytes, enum wire_status expected)
{
    struct wire_error error = {.status = WIRE_OK};
    uint32_t number = session_add_region(&table, &session, 0, bytes, &error);
    cr_expect_eq(number == 0, expected != WIRE_OK);
    cr_expect(number != 0 || error.status == expected, "%s", error.detail);
    return number;
}

static void use_and_drop(uint32_t number)
{
    used = region_find(&session.regions, number);
    region_acquire(used);
    cr_assert(region_drop(&session.regions, number));
}

Test(session, a_dropped_region_of_an_ended_request_takes_no_room)
{
    use_and_drop(add(LIMIT, WIRE_OK));
    cr_expect_eq(session.regions.bytes, LIMIT);
    cr_expect_neq(add(LIMIT, WIRE_OK), 0);
    cr_expect_eq(collections, 1);
}

Test(session, a_dropped_region_of_an_ended_request_is_not_counted)
{
    (void)add(1, WIRE_OK);
    use_and_drop(add(1, WIRE_OK));
    cr_expect_eq(session.regions.count, 2);
    cr_expect_neq(add(1, WIRE_OK), 0);
    cr_expect_eq(collections, 1);
}

Test(session, what_is_still_in_use_counts)
{
    (void)add(LIMIT, WIRE_OK);
    (void)add(1, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_eq(collections, 1);
    (void)add(0, WIRE_INVALID_ARGUMENT);
    cr_expect_eq(collections, 1, "nothing makes room for a mistake");
}

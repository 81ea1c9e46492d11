/* Sessions' regions, without an engine: what has ended is taken back before anything is refused. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "session.h"

#define LIMIT 100

static atomic_bool unmapping_is_slow;

static bool map(struct backend *backend, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    (void)offer;
    (void)error;
    *base = backend;
    return true;
}

static void unmap(struct backend *backend, void *base, uint64_t bytes)
{
    (void)backend;
    (void)base;
    (void)bytes;
    while (atomic_load(&unmapping_is_slow)) {
        (void)usleep(1000);
    }
}

static const struct backend_ops ops = {.map = map, .unmap = unmap};
static struct backend backend = {.ops = &ops};
static struct session slots[1 + SESSION_SPARE_SLOTS] = {{.state = SESSION_OPEN}};
static struct session *const session = &slots[0];
static struct session_table table = {.options = {.backend = &backend,
                                         .max_sessions = 1,
                                         .region_bytes_per_uid = LIMIT,
                                         .limits = {.regions = 2, .region_bytes = LIMIT}},
    .session = slots};

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
    table.options.reaper = reaper_create("test");
    cr_assert_not_null(table.options.reaper);
    cr_assert(region_set_init(&session->regions, &backend, table.options.reaper, session->uid,
        table.options.limits.regions));
    table.collect = collect;
    table.collect_context = &collections;
}

static void stop(void)
{
    region_set_finish(&session->regions);
    cr_assert(reaper_destroy(table.options.reaper));
}

TestSuite(session, .init = start, .fini = stop);

static uint32_t add(uint64_t bytes, enum wire_status expected)
{
    struct wire_error error = {.status = WIRE_OK};
    uint32_t number = session_add_region(&table, session, 0, bytes, &error);
    cr_expect_eq(number == 0, expected != WIRE_OK);
    cr_expect(number != 0 || error.status == expected, "%s", error.detail);
    return number;
}

static void use_and_drop(uint32_t number)
{
    used = region_find(&session->regions, number);
    region_acquire(used);
    cr_assert(region_drop(&session->regions, number));
}

Test(session, a_dropped_region_of_an_ended_request_takes_no_room)
{
    table.options.region_bytes_per_uid = 2 * LIMIT;
    use_and_drop(add(LIMIT, WIRE_OK));
    cr_expect_eq(session->regions.bytes, LIMIT);
    cr_expect_neq(add(LIMIT, WIRE_OK), 0);
    cr_expect_eq(collections, 1);
}

Test(session, a_dropped_region_of_an_ended_request_is_not_counted)
{
    (void)add(1, WIRE_OK);
    use_and_drop(add(1, WIRE_OK));
    cr_expect_eq(session->regions.count, 2);
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

Test(session, memory_counts_for_its_user_until_it_is_unmapped)
{
    atomic_store(&unmapping_is_slow, true);
    cr_assert(region_drop(&session->regions, add(LIMIT, WIRE_OK)));
    cr_expect_eq(session->regions.bytes, 0);
    (void)add(1, WIRE_RESOURCE_EXHAUSTED);
    session->uid++;
    (void)add(1, WIRE_OK);
    session->uid--;
    atomic_store(&unmapping_is_slow, false);
    for (int tries = 0; tries < 10000 && reaper_weight(table.options.reaper, 0) != 0; tries++) {
        (void)usleep(1000);
    }
    (void)add(LIMIT - 1, WIRE_OK);
}

static bool is_refused_for(const char *part)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};
    struct wire_error error = {.status = WIRE_OK};
    cr_assert_null(session_open(&table, &request, session->uid, 1, -1, &error));
    return strstr(error.detail, part) != NULL;
}

Test(session, closing_ones_take_no_room_until_too_many_are_left)
{
    table.options.max_sessions_per_uid = 1;
    table.open = 1;
    cr_expect(is_refused_for("the daemon has 1 sessions"));
    session->state = SESSION_CLOSING;
    table.open = 0;
    /* Past all limits: only the descriptor is wrong. */
    cr_expect(is_refused_for("control page"));
    for (uint32_t i = 0; i < SESSION_SPARE_SLOTS; i++) {
        slots[i].state = SESSION_CLOSING;
    }
    cr_expect(is_refused_for("still running"));
    cr_expect_eq(collections, 1);
    slots[3].uid = session->uid + 1;
    cr_expect(is_refused_for("control page"));
}

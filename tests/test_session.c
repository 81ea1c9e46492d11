/* Sessions' regions and pages, with a backend that maps when told to: limits count all that is there,
 * and what has ended is taken back before anything is refused. */
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "attn.h"
#include "session.h"
#include "slow_backend.h"

#define LIMIT 100
#define UID 5
#define REGIONS 2
#define USERS_SESSIONS 3

static struct slow_backend slow;
static struct session slots[2 + SESSION_SPARE_SLOTS];
static struct session *const session = &slots[0];
static struct session *const other = &slots[1]; /* only for tests of two */
static struct session_table table = {
    .options = {.max_sessions = 1,
        .max_sessions_per_uid = USERS_SESSIONS,
        .region_bytes_per_uid = LIMIT,
        .limits = {.in_flight = 7, .regions = REGIONS, .region_bytes = LIMIT, .plans = 1}},
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

static void wake(void *context)
{
    (void)context;
}

static void start(void)
{
    slow_backend_init(&slow);
    table.options.backend = &slow.backend;
    table.options.mapper = worker_create("mapper", wake, NULL);
    table.options.unmapper = worker_create("unmapper", wake, NULL);
    cr_assert(table.options.mapper != NULL && table.options.unmapper != NULL);
    const struct region_options options = {.backend = &slow.backend,
        .mapper = table.options.mapper,
        .unmapper = table.options.unmapper,
        .limit = table.options.limits.regions};
    session->state = SESSION_OPEN;
    cr_assert(region_set_init(&session->regions, &options));
    table.collect = collect;
    table.collect_context = &collections;
}

static void stop(void)
{
    slow_backend_hold(&slow, false, false);
    cr_assert(worker_destroy(table.options.mapper));
    region_set_finish(&session->regions);
    region_set_finish(&other->regions);
    cr_assert(worker_destroy(table.options.unmapper));
    cr_assert_eq(slow.mappings, 0);
    cr_assert_eq(slow.pins, 0);
    cr_assert_null(slow.fault, "%s", slow.fault);
    slow_backend_finish(&slow);
}

TestSuite(session, .init = start, .fini = stop);

/* ---- Regions ------------------------------------------------------------------------------------ */

static struct {
    unsigned count;
    uint32_t number;
    int fd;
    struct wire_error error;
} answer;

static void on_region(void *context, uint32_t number, int fd, const struct wire_error *error)
{
    (void)context;
    answer.count++;
    answer.number = number;
    answer.fd = fd;
    answer.error = *error;
}

static void await(void)
{
    unsigned before = answer.count;
    for (int tries = 0; tries < 10000 && answer.count == before; tries++) {
        (void)usleep(100);
        worker_collect(table.options.mapper);
    }
    cr_assert_eq(answer.count, before + 1);
}

static bool begin(uint64_t bytes, uint64_t reserve, struct wire_error *error)
{
    const struct backend_offer offer = {
        .kind = WIRE_MEMORY_CUDA_VMM, .bytes = bytes, .reserve = reserve, .fd = -1};
    return session_add_region(&table, session, &offer, on_region, NULL, error);
}

static uint32_t add(uint64_t bytes, enum wire_status expected)
{
    struct wire_error error = {.status = WIRE_OK};
    bool begun = begin(bytes, 0, &error);
    cr_expect_eq(!begun, expected != WIRE_OK);
    cr_expect(begun || error.status == expected, "%s", error.detail);
    if (!begun) {
        return 0;
    }
    await();
    cr_expect_neq(answer.number, 0);
    return answer.number;
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

Test(session, memory_counts_while_it_is_mapped)
{
    struct wire_error error;
    slow_backend_hold(&slow, true, false);
    cr_assert(begin(LIMIT, 0, &error));
    cr_assert(slow_backend_wait_held(&slow));
    cr_expect_not(begin(1, 0, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    slow_backend_hold(&slow, false, false);
    await();
    cr_expect_neq(answer.number, 0);
}

Test(session, memory_counts_for_its_user_until_it_is_unmapped)
{
    slow_backend_hold(&slow, false, true);
    cr_assert(region_drop(&session->regions, add(LIMIT, WIRE_OK)));
    cr_expect_eq(session->regions.bytes, 0);
    (void)add(1, WIRE_RESOURCE_EXHAUSTED);
    session->uid++;
    (void)add(1, WIRE_OK);
    session->uid--;
    slow_backend_hold(&slow, false, false);
    for (int tries = 0; tries < 10000 && worker_weight(table.options.unmapper, 0) != 0; tries++) {
        (void)usleep(1000);
    }
    (void)add(LIMIT - 1, WIRE_OK);
}

/* However small: as many as all sessions of the user may have, until they are unmapped. */
Test(session, what_waits_to_be_unmapped_is_bounded)
{
    const unsigned most = REGIONS * USERS_SESSIONS;
    struct wire_error error;
    slow_backend_hold(&slow, false, true);
    for (unsigned i = 0; i < most; i++) {
        cr_assert(region_drop(&session->regions, add(1, WIRE_OK)));
    }
    cr_expect_eq(session->regions.count, 0);
    cr_expect_not(begin(1, 0, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_str_eq(
        error.detail, "user 0 has 6 regions, with those that wait to be unmapped, and may have 6");
    cr_expect_eq(collections, 1);
    cr_expect_eq(slow_backend_mappings(&slow), most);
    session->uid++;
    (void)add(1, WIRE_OK);
    session->uid--;
    slow_backend_hold(&slow, false, false);
    for (int tries = 0; tries < 10000 && region_unmaps(table.options.unmapper, 0) > 0; tries++) {
        (void)usleep(1000);
    }
    (void)add(1, WIRE_OK);
}

static bool extend(uint32_t number, uint64_t offset, uint64_t bytes, struct wire_error *error)
{
    const struct backend_offer piece = {.kind = WIRE_MEMORY_CUDA_VMM, .bytes = bytes, .fd = -1};
    return session_extend_region(&table, session, number, offset, &piece, on_region, NULL, error);
}

Test(session, pieces_are_within_the_limits_together)
{
    struct wire_error error;
    cr_assert(begin(40, 400, &error));
    await();
    uint32_t number = answer.number;
    cr_assert(extend(number, 40, 50, &error), "%s", error.detail);
    await();
    cr_expect_eq(answer.number, number);
    cr_expect_not(extend(number, 90, 11, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_eq(collections, 1, "requests may have ended");
    cr_expect_not(extend(number, 90, 0, &error));
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    cr_expect_not(extend(number + 1, 0, 1, &error));
    cr_expect_eq(error.status, WIRE_NOT_FOUND);
    cr_expect_not(extend(number, 90, UINT64_MAX, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_assert(extend(number, 90, 10, &error));
    await();
    cr_expect_eq(session->regions.bytes, LIMIT);
}

/* ---- Handles of several users ------------------------------------------------------------------- */

static void start_other(void)
{
    const struct region_options options = {.backend = &slow.backend,
        .mapper = table.options.mapper,
        .unmapper = table.options.unmapper,
        .uid = UID,
        .limit = table.options.limits.regions};
    other->state = SESSION_OPEN;
    other->uid = UID;
    cr_assert(region_set_init(&other->regions, &options));
}

static bool begin_kind(struct session *who, enum wire_memory_kind kind, struct wire_error *error)
{
    const struct backend_offer offer = {.kind = kind, .bytes = 1, .fd = -1};
    return session_add_region(&table, who, &offer, on_region, NULL, error);
}

static uint32_t add_handle(struct session *who)
{
    struct wire_error error = {.status = WIRE_OK};
    cr_assert(begin_kind(who, WIRE_MEMORY_CUDA_IPC, &error), "%s", error.detail);
    await();
    return answer.number;
}

static void expect_handle_refused(struct session *who)
{
    struct wire_error error = {.status = WIRE_OK};
    cr_expect_not(begin_kind(who, WIRE_MEMORY_CUDA_IPC, &error));
    cr_expect_eq(error.status, WIRE_PERMISSION_DENIED);
    cr_expect_not_null(strstr(error.detail, "(ipc-users = one)"), "%s", error.detail);
}

Test(session, handles_are_taken_from_one_user_at_a_time)
{
    struct wire_error error;
    start_other();
    uint32_t first = add_handle(session);
    uint32_t second = add_handle(session);
    cr_assert(first != 0 && second != 0);
    expect_handle_refused(other);
    cr_assert(region_drop(&session->regions, first));
    expect_handle_refused(other);
    cr_assert(region_drop(&session->regions, second));
    uint32_t handed_over = add_handle(other);
    cr_assert_neq(handed_over, 0);
    expect_handle_refused(session);
    cr_assert(begin_kind(session, WIRE_MEMORY_CUDA_VMM, &error), "%s", error.detail);
    await();
    cr_assert(region_drop(&other->regions, handed_over));
    cr_expect_neq(add_handle(session), 0);
}

Test(session, all_users_share_memory_that_proves_itself)
{
    struct wire_error error;
    start_other();
    cr_assert_neq(add_handle(session), 0);
    cr_expect(begin_kind(other, WIRE_MEMORY_CUDA_VMM, &error), "%s", error.detail);
    await();
    cr_expect(begin_kind(other, WIRE_MEMORY_SHM, &error), "%s", error.detail);
    await();
    cr_expect_eq(other->regions.count, 2);
}

Test(session, a_user_has_handles_in_several_sessions)
{
    start_other();
    other->uid = session->uid;
    cr_expect_neq(add_handle(session), 0);
    cr_expect_neq(add_handle(other), 0);
}

Test(session, a_handle_counts_while_it_is_mapped)
{
    struct wire_error error;
    start_other();
    slow_backend_hold(&slow, true, false);
    cr_assert(begin_kind(session, WIRE_MEMORY_CUDA_IPC, &error));
    cr_assert(slow_backend_wait_held(&slow));
    expect_handle_refused(other);
    slow_backend_refuse(&slow, true);
    slow_backend_hold(&slow, false, false);
    await();
    cr_expect_eq(answer.number, 0);
    slow_backend_refuse(&slow, false);
    cr_expect_neq(add_handle(other), 0, "that one was never mapped");
}

/* What was dropped has no say, though a request may use it still. */
Test(session, a_dropped_handle_is_in_nobodys_way)
{
    start_other();
    use_and_drop(add_handle(session));
    cr_expect_eq(session->regions.count, 1);
    cr_expect_neq(add_handle(other), 0);
    cr_expect_eq(collections, 0);
    collect(&collections);
    cr_expect_eq(session->regions.count, 0);
    cr_expect_eq(session->regions.handles, 0);
    expect_handle_refused(session);
}

Test(session, handles_of_an_ended_session_are_in_nobodys_way)
{
    struct wire_error error;
    start_other();
    (void)add_handle(session);
    slow_backend_hold(&slow, true, false);
    cr_assert(begin_kind(session, WIRE_MEMORY_CUDA_IPC, &error));
    cr_assert(slow_backend_wait_held(&slow));
    session->state = SESSION_CLOSING;
    region_set_close(&session->regions);
    cr_assert(begin_kind(other, WIRE_MEMORY_CUDA_IPC, &error), "%s", error.detail);
    unsigned both = answer.count + 2;
    slow_backend_hold(&slow, false, false);
    for (int tries = 0; tries < 10000 && answer.count < both; tries++) {
        (void)usleep(100);
        worker_collect(table.options.mapper);
    }
    cr_assert_eq(answer.count, both);
    cr_expect_neq(answer.number, 0, "the last was not the ended session's");
    cr_expect_eq(session->regions.handles, 0);
}

Test(session, the_configuration_lets_any_users_have_handles)
{
    struct wire_info info;
    start_other();
    session_info(&table, &info);
    cr_expect(info.one_ipc_user);
    table.options.any_ipc_user = true;
    cr_expect_neq(add_handle(session), 0);
    cr_expect_neq(add_handle(other), 0);
    session_info(&table, &info);
    cr_expect_not(info.one_ipc_user);
}

/* ---- Opening ------------------------------------------------------------------------------------ */

static struct {
    unsigned count;
    int fd;
    bool good;
    struct wire_error error;
} opened;

static void on_session(void *context, int fd, const struct wire_error *error)
{
    cr_expect_eq(context, &opened);
    opened.count++;
    opened.fd = fd;
    opened.good = error == NULL;
    if (error != NULL) {
        opened.error = *error;
    }
}

static struct session *open_one(int page_fd, struct wire_error *error)
{
    const struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};
    return session_open(&table, &request, UID, 1, page_fd, on_session, &opened, error);
}

static void await_opened(void)
{
    for (int tries = 0; tries < 10000 && opened.count == 0; tries++) {
        (void)usleep(100);
        worker_collect(table.options.mapper);
    }
    cr_assert_eq(opened.count, 1);
}

/* Past all limits: only the descriptor is wrong, which a worker finds out. */
static bool may_open(void)
{
    struct wire_error error;
    struct session *begun = open_one(-1, &error);
    if (begun == NULL) {
        return false;
    }
    opened.count = 0;
    await_opened();
    cr_expect(!opened.good && strstr(opened.error.detail, "control page") != NULL);
    cr_expect_eq(begun->state, SESSION_FREE);
    return true;
}

static bool is_refused_for(const char *part)
{
    struct wire_error error = {.status = WIRE_OK};
    return open_one(-1, &error) == NULL && strstr(error.detail, part) != NULL;
}

Test(session, closing_ones_take_no_room_until_too_many_are_left)
{
    table.open = 1;
    session->uid = UID;
    cr_expect(is_refused_for("the daemon has 1 sessions"));
    session->state = SESSION_CLOSING;
    table.open = 0;
    cr_expect(may_open());
    for (uint32_t i = 0; i < SESSION_SPARE_SLOTS; i++) {
        slots[i].state = SESSION_CLOSING;
        slots[i].uid = UID;
    }
    cr_expect(is_refused_for("still running"));
    cr_expect_eq(collections, 1);
    slots[3].uid = UID + 1;
    cr_expect(may_open());
}

static void leave_page(void *context, struct control *control)
{
    cr_assert_not_null(control->page, "%s", control->error.detail);
    control_close(control, table.options.unmapper);
    ++*(unsigned *)context;
}

/* What sessions leave behind that opened and closed again while the thread that unmaps is held up. */
static void leave_pages(unsigned count)
{
    unsigned left = 0;
    for (unsigned i = 0; i < count; i++) {
        struct page *page = NULL;
        int fd = -1;
        cr_assert_eq(page_create(&fd, &page), 0);
        cr_assert_not_null(
            control_open(&slow.backend, table.options.mapper, UID, fd, leave_page, &left));
        page_unmap(page);
    }
    for (int tries = 0; tries < 10000 && left < count; tries++) {
        worker_collect(table.options.mapper);
        (void)usleep(1000);
    }
    cr_assert_eq(left, count);
}

Test(session, pages_left_behind_are_bounded)
{
    slow_backend_hold(&slow, false, true);
    cr_assert(region_drop(&session->regions, add(1, WIRE_OK)));
    cr_assert(slow_backend_wait_held(&slow));
    leave_pages(USERS_SESSIONS + SESSION_SPARE_SLOTS - 1);
    cr_expect(may_open());
    leave_pages(1);
    cr_expect(is_refused_for("not yet unmapped"));
    cr_expect_eq(collections, 1);
    slow_backend_hold(&slow, false, false);
    for (int tries = 0; tries < 10000 && control_closings(table.options.unmapper, UID) > 0;
         tries++) {
        (void)usleep(1000);
    }
    cr_expect(may_open());
}

Test(session, one_that_is_opening_takes_its_place)
{
    struct wire_error error;
    struct page *page = NULL;
    int fd = -1;
    cr_assert_eq(page_create(&fd, &page), 0);
    slow_backend_hold(&slow, true, false);
    struct session *begun = open_one(fd, &error);
    cr_assert_not_null(begun);
    cr_assert(slow_backend_wait_held(&slow));
    cr_expect(is_refused_for("the daemon has 1 sessions"));
    table.options.max_sessions = 2;
    table.options.max_sessions_per_uid = 1;
    cr_expect(is_refused_for("user 5 has 1 sessions"));
    cr_expect_null(
        session_bind(&table, &begun->peer, begun->id, begun->token, &error), "it is not open yet");

    /* Its connection closes: then it never opens. */
    session_close(&table, begun);
    cr_expect_eq(table.open, 0);
    slow_backend_hold(&slow, false, false);
    await_opened();
    cr_expect_not(opened.good);
    cr_expect_eq(opened.error.status, WIRE_CANCELLED);
    cr_expect_eq(opened.fd, -1, "it was mapped");
    cr_expect_eq(begun->state, SESSION_FREE);
    page_unmap(page);
}

Test(session, one_whose_page_cannot_be_pinned_does_not_open)
{
    struct wire_error error;
    struct page *page = NULL;
    int fd = -1;
    cr_assert_eq(page_create(&fd, &page), 0);
    slow_backend_refuse(&slow, true);
    struct session *begun = open_one(fd, &error);
    cr_assert_not_null(begun);
    await_opened();
    cr_expect_not(opened.good);
    cr_expect_eq(opened.error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_eq(opened.fd, fd);
    cr_expect_eq(begun->state, SESSION_FREE);
    cr_expect_eq(table.open, 0);
    (void)close(fd);
    page_unmap(page);
}

/* ---- What is told ------------------------------------------------------------------------------- */

Test(session, facts_are_those_of_the_backend)
{
    struct wire_info info;
    slow.backend.facts =
        (struct backend_facts){.driver = "580.1", .mps = WIRE_MPS_ON, .checks_exporter = true};
    (void)strcpy(slow.backend.device_name, "a device");
    slow.backend.device_uuid[15] = 9;
    session_info(&table, &info);
    cr_expect_eq(info.device.kind, WIRE_DEVICE_CUDA);
    cr_expect(info.device.has_uuid && info.device.uuid[15] == 9);
    cr_expect_str_eq(info.device.name, "a device");
    cr_expect_str_eq(info.driver, "580.1");
    cr_expect_eq(info.mps, WIRE_MPS_ON);
    cr_expect(info.checks_exporter);
    cr_expect_eq(info.families, 0, "no GPU is too old for all");
    cr_expect_eq(info.limits.region_bytes, LIMIT);
    cr_expect_eq(info.region_bytes_per_uid, LIMIT);
    cr_expect_eq((pid_t)info.pid, getpid());
    cr_expect_str_eq(info.version, ATTND_VERSION);
    slow.backend.device_kind = WIRE_DEVICE_CPU;
    session_info(&table, &info);
    cr_expect_not(info.device.has_uuid);
    cr_expect_eq(info.families, 1);
    cr_expect_str_eq(info.family[0], "cpu");
}

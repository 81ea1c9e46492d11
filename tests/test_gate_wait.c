/*
 * The gate with a backend that maps when the test lets it: answers come late and in order, others are
 * not held up, and whoever leaves meanwhile leaves nothing behind. The gate, its sessions and an engine
 * run on a thread of this process, the clients on the main one.
 */
#include "gate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "door.h"
#include "engine.h"
#include "log.h"
#include "packet.h"
#include "raw_client.h"
#include "request.h"
#include "slow_backend.h"

#define WAIT_MS 10000
#define QUIET_MS 50 /* what has not come by then is held */
#define SESSIONS 4
#define REGION_BYTES (1 << 30) /* that a user may have, and a session */
#define FLOOD 1000
#define OFFERED 4         /* descriptors in one packet */
#define MOST_CLOSINGS 132 /* of one user: so many wait, and one packet more */
#define MOST_SOCKETS 24   /* of one user: as many as may be open, and a few that end at the time */
#define OTHER_UID 65534

struct world {
    char directory[64];
    char path[80];
    struct slow_backend slow;
    uv_loop_t loop;
    uv_async_t wake;
    uv_async_t stop;
    pthread_t thread;
    struct engine *engine;
    struct worker *closer;
    struct session_table sessions;
    struct request_handler *requests;
    struct transport transport; /* never opened: nobody says HELLO */
    struct gate gate;
};

static struct world world;

/* ---- The daemon's side -------------------------------------------------------------------------- */

static void wake(void *context)
{
    (void)uv_async_send(context);
}

static void on_wake(uv_async_t *async)
{
    (void)async;
    request_collect(world.requests);
    worker_collect(world.sessions.options.mapper);
    worker_collect(world.sessions.options.unmapper);
}

static void on_stop(uv_async_t *async)
{
    uv_stop(async->loop);
}

static void *serve(void *context)
{
    (void)context;
    (void)uv_run(&world.loop, UV_RUN_DEFAULT);
    return NULL;
}

static void start(void)
{
    struct session_options options = {.backend = &world.slow.backend,
        .mapper = NULL,
        .max_sessions = SESSIONS,
        .max_sessions_per_uid = SESSIONS,
        .region_bytes_per_uid = REGION_BYTES,
        .limits = {.in_flight = 4, .regions = 8, .region_bytes = REGION_BYTES, .plans = 1}};

    memset(&world, 0, sizeof(world));
    (void)strcpy(world.directory, "/tmp/attnd-gate-XXXXXX");
    CHECK(mkdtemp(world.directory) != NULL);
    (void)snprintf(world.path, sizeof(world.path), "%s/gate.sock", world.directory);
    slow_backend_init(&world.slow);
    CHECK(uv_loop_init(&world.loop) == 0);
    CHECK(uv_async_init(&world.loop, &world.wake, on_wake) == 0);
    CHECK(uv_async_init(&world.loop, &world.stop, on_stop) == 0);
    options.mapper = worker_create("mapper", wake, &world.wake);
    options.unmapper = worker_create("unmapper", wake, &world.wake);
    world.closer = worker_create("closer", NULL, NULL);
    const struct engine_options engine = {.backend = options.backend,
        .max_jobs = request_max_jobs(&options),
        .max_sessions = session_slots(&options),
        .group_budget_ns = 500000,
        .wake = wake,
        .wake_context = &world.wake};
    world.engine = engine_create(&engine);
    options.engine = world.engine;
    CHECK(options.mapper != NULL && options.unmapper != NULL && world.closer != NULL);
    CHECK(world.engine != NULL && session_table_init(&world.sessions, &options));
    world.requests = request_handler_create(&world.sessions, &world.transport);
    CHECK(world.requests != NULL);
    CHECK(gate_open(&world.gate, &world.loop, world.path, &world.sessions, world.closer));
    CHECK(pthread_create(&world.thread, NULL, serve, NULL) == 0);
}

/* As the daemon ends. What is held goes on when `held` and then has to find its way. */
static void stop(void)
{
    (void)uv_async_send(&world.stop);
    CHECK(pthread_join(world.thread, NULL) == 0);
    gate_close(&world.gate);
    engine_destroy(world.engine);
    slow_backend_hold(&world.slow, false, false);
    CHECK(worker_destroy(world.sessions.options.mapper));
    struct worker *unmapper = world.sessions.options.unmapper;
    session_table_finish(&world.sessions);
    CHECK(worker_destroy(unmapper));
    CHECK(worker_destroy(world.closer));
    request_handler_destroy(world.requests);
    uv_close((uv_handle_t *)&world.wake, NULL);
    uv_close((uv_handle_t *)&world.stop, NULL);
    (void)uv_run(&world.loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&world.loop) == 0);
    CHECK(world.slow.mappings == 0 && world.slow.bytes == 0 && world.slow.pins == 0);
    CHECK(world.slow.fault == NULL);
    slow_backend_finish(&world.slow);
    CHECK(unlink(world.path) == 0 && rmdir(world.directory) == 0);
}

/* ---- The clients' side -------------------------------------------------------------------------- */

static void connect_session(struct raw_client *client)
{
    struct wire_gate_reply reply;

    CHECK(raw_connect(client, world.directory));
    CHECK(raw_open_session(client, &reply));
    CHECK(reply.error.status == WIRE_OK);
}

/* As another user, whom the system tells the gate from; only this thread is one meanwhile. */
static void connect_other_session(struct raw_client *client)
{
    CHECK(chmod(world.directory, 0755) == 0 && chmod(world.path, 0777) == 0);
    CHECK(syscall(SYS_setresuid, -1, OTHER_UID, -1) == 0);
    connect_session(client);
    CHECK(syscall(SYS_setresuid, -1, 0, -1) == 0);
}

static int memory(void)
{
    int fd = memfd_create("piece", MFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

/* Sends and does not wait. Returns the id. */
static uint32_t post(struct raw_client *client, struct wire_gate_request *request, bool with_memory)
{
    uint8_t bytes[2048];
    int fd = with_memory ? memory() : -1;

    request->id = ++client->id;
    size_t size = codec_encode_gate_request(request, bytes, sizeof(bytes));
    CHECK(size > 0 && raw_gate_send(client, bytes, size, &fd, with_memory));
    if (fd >= 0) {
        (void)close(fd);
    }
    return request->id;
}

static struct wire_gate_request offer_of(uint64_t bytes)
{
    return (struct wire_gate_request){.kind = WIRE_GATE_ADD_REGION,
        .memory = WIRE_MEMORY_CUDA_VMM,
        .bytes = bytes,
        .reserve = 1 << 20};
}

static uint32_t post_add(struct raw_client *client, uint64_t bytes)
{
    struct wire_gate_request request = offer_of(bytes);
    return post(client, &request, true);
}

static uint32_t post_extend(
    struct raw_client *client, uint32_t region, uint64_t offset, uint64_t bytes)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_EXTEND_REGION, .region = region, .offset = offset, .bytes = bytes};
    return post(client, &request, true);
}

static uint32_t post_drop(struct raw_client *client, uint32_t region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = region};
    return post(client, &request, false);
}

static uint32_t post_trim(struct raw_client *client)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM};
    return post(client, &request, false);
}

static struct wire_gate_reply next(struct raw_client *client, uint32_t id, enum wire_status status)
{
    struct wire_gate_reply reply;

    CHECK(raw_gate_receive(client, &reply));
    CHECK(reply.id == id);
    if (reply.error.status != status) {
        fprintf(stderr, "%s: %s\n", wire_status_name(reply.error.status), reply.error.detail);
    }
    CHECK(reply.error.status == status);
    return reply;
}

/* What a session left is unmapped first and counts no longer a moment later, on the gate's thread. */
static void accepted_in_time(
    struct raw_client *client, struct wire_gate_request *request, bool with_memory)
{
    struct wire_gate_reply reply = {.error = {.status = WIRE_RESOURCE_EXHAUSTED}};

    for (int waited = 0; waited < WAIT_MS && reply.error.status != WIRE_OK; waited++) {
        (void)usleep(1000);
        uint32_t id = post(client, request, with_memory);
        CHECK(raw_gate_receive(client, &reply));
        CHECK(reply.id == id);
    }
    CHECK(reply.error.status == WIRE_OK);
}

/* The gate has seen whatever was done before: its loop takes all that has happened by the time at which
 * it looks, and looks at least twice until a new connection has its answer. */
static void pass_gate(void)
{
    struct raw_client passer;

    CHECK(raw_connect(&passer, world.directory));
    (void)next(&passer, post_trim(&passer), WIRE_INVALID_ARGUMENT);
    raw_close(&passer);
}

static bool is_quiet(const struct raw_client *client)
{
    struct pollfd poller = {.fd = client->gate, .events = POLLIN};
    return poll(&poller, 1, QUIET_MS) == 0;
}

static void wait_until(unsigned (*value)(struct slow_backend *slow), unsigned expected)
{
    for (int waited = 0; waited < WAIT_MS && value(&world.slow) != expected; waited++) {
        (void)usleep(1000);
    }
    CHECK(value(&world.slow) == expected);
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *directory = opendir("/proc/self/fd");

    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

/* ---- Tests -------------------------------------------------------------------------------------- */

static void test_answers_wait_and_keep_their_order(void)
{
    struct raw_client client;

    start();
    connect_session(&client);
    slow_backend_hold(&world.slow, true, false);
    uint32_t add = post_add(&client, 4096);
    uint32_t drop = post_drop(&client, 99);
    uint32_t other = post_add(&client, 8192);
    CHECK(slow_backend_wait_held(&world.slow));
    CHECK(is_quiet(&client));
    slow_backend_hold(&world.slow, false, false);
    CHECK(next(&client, add, WIRE_OK).region == 1);
    (void)next(&client, drop, WIRE_NOT_FOUND);
    CHECK(next(&client, other, WIRE_OK).region == 2);
    raw_close(&client);
    stop();
}

static void test_others_are_not_held_up(void)
{
    struct raw_client slow;
    struct raw_client other;

    start();
    connect_session(&slow);
    connect_session(&other);
    uint32_t dropped = next(&slow, post_add(&slow, 4096), WIRE_OK).region;
    uint32_t kept = next(&slow, post_add(&slow, 4096), WIRE_OK).region;
    slow_backend_hold(&world.slow, false, true);
    (void)next(&slow, post_drop(&slow, dropped), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)next(&other, post_add(&other, 4096), WIRE_OK); /* while something is unmapped */
    slow_backend_hold(&world.slow, true, false);
    uint32_t extended = post_extend(&slow, kept, 4096, 4096);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)next(&other, post_drop(&other, 2), WIRE_NOT_FOUND); /* while something is mapped */
    CHECK(is_quiet(&slow));
    slow_backend_hold(&world.slow, false, false);
    (void)next(&slow, extended, WIRE_OK);
    raw_close(&slow);
    raw_close(&other);
    stop();
}

static void test_regions_grow(void)
{
    struct raw_client client;
    struct raw_client other;

    start();
    connect_session(&client);
    connect_session(&other);
    uint32_t region = next(&client, post_add(&client, 4096), WIRE_OK).region;
    (void)next(&client, post_extend(&client, region, 4096, 8192), WIRE_OK);
    (void)next(&client, post_extend(&client, region, 4096, 8192), WIRE_INVALID_ARGUMENT);
    (void)next(&client, post_extend(&client, region, 12288, 1 << 20), WIRE_INVALID_ARGUMENT);
    (void)next(&client, post_extend(&client, region, 12288, 0), WIRE_INVALID_ARGUMENT);
    (void)next(&other, post_extend(&other, region, 12288, 4096), WIRE_NOT_FOUND);
    slow_backend_refuse(&world.slow, true);
    (void)next(&client, post_extend(&client, region, 12288, 4096), WIRE_UNSUPPORTED_MEMORY);
    slow_backend_refuse(&world.slow, false);
    (void)next(&client, post_extend(&client, region, 12288, 4096), WIRE_OK);
    (void)next(&client, post_drop(&client, region), WIRE_OK);
    (void)next(&client, post_extend(&client, region, 16384, 4096), WIRE_NOT_FOUND);
    raw_close(&client);
    raw_close(&other);
    stop();
}

static void test_handles_come_without_descriptors(void)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096};
    struct raw_client client;

    start();
    connect_session(&client);
    request.handle[8] = 17;
    (void)next(&client, post(&client, &request, true), WIRE_INVALID_ARGUMENT);
    CHECK(next(&client, post(&client, &request, false), WIRE_OK).region == 1);
    const struct backend_offer offer = slow_backend_last(&world.slow);
    CHECK(offer.kind == WIRE_MEMORY_CUDA_IPC && offer.bytes == 4096 && offer.handle[8] == 17);
    CHECK(offer.pid == getpid() && offer.uid == getuid());
    request.memory = WIRE_MEMORY_CUDA_VMM;
    (void)next(&client, post(&client, &request, false), WIRE_INVALID_ARGUMENT);
    raw_close(&client);
    stop();
}

/* Needs root, to be two users. */
static void test_handles_are_of_one_user_at_a_time(void)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096};
    struct raw_client first;
    struct raw_client second;

    if (geteuid() != 0) {
        return;
    }
    start();
    connect_session(&first);
    connect_other_session(&second);
    slow_backend_hold(&world.slow, true, false);
    uint32_t adding = post(&first, &request, false);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)next(&second, post(&second, &request, false), WIRE_PERMISSION_DENIED);
    slow_backend_hold(&world.slow, false, false);
    (void)next(&first, adding, WIRE_OK);
    (void)next(&second, post(&second, &request, false), WIRE_PERMISSION_DENIED);
    (void)next(&second, post_add(&second, 4096), WIRE_OK);
    (void)next(&first, post_drop(&first, 1), WIRE_OK);
    (void)next(&second, post(&second, &request, false), WIRE_OK);
    CHECK(slow_backend_last(&world.slow).uid == OTHER_UID);
    (void)next(&first, post(&first, &request, false), WIRE_PERMISSION_DENIED);
    raw_close(&second);
    wait_until(slow_backend_mappings, 0);
    accepted_in_time(&first, &request, false);
    raw_close(&first);
    stop();
}

static void test_trimming_ends_when_all_is_unmapped(void)
{
    struct raw_client client;

    start();
    connect_session(&client);
    (void)next(&client, post_trim(&client), WIRE_OK);
    slow_backend_hold(&world.slow, false, true);
    for (uint32_t i = 1; i <= 3; i++) {
        CHECK(next(&client, post_add(&client, 4096), WIRE_OK).region == i);
    }
    (void)next(&client, post_drop(&client, 1), WIRE_OK);
    (void)next(&client, post_drop(&client, 2), WIRE_OK);
    uint32_t trim = post_trim(&client);
    uint32_t drop = post_drop(&client, 3);
    CHECK(is_quiet(&client));
    slow_backend_hold(&world.slow, false, false);
    (void)next(&client, trim, WIRE_OK);
    (void)next(&client, drop, WIRE_OK);
    (void)next(&client, post_trim(&client), WIRE_OK);
    CHECK(slow_backend_mappings(&world.slow) == 0);
    raw_close(&client);
    stop();
}

/* Twice as often as there are places for sessions. */
static void test_leaving_while_mapping_leaves_nothing(void)
{
    struct raw_client client;

    start();
    unsigned before = open_descriptors();
    for (int i = 0; i < 2 * SESSIONS; i++) {
        connect_session(&client);
        slow_backend_hold(&world.slow, true, false);
        (void)post_add(&client, 4096);
        (void)post_add(&client, 4096);
        CHECK(slow_backend_wait_held(&world.slow));
        raw_close(&client);
        (void)usleep(1000 * (unsigned)(i % 3));
        slow_backend_hold(&world.slow, false, false);
    }
    wait_until(slow_backend_mappings, 0);
    wait_until(slow_backend_pins, 0);
    for (int waited = 0; waited < WAIT_MS && open_descriptors() > before; waited++) {
        (void)usleep(1000);
    }
    CHECK(open_descriptors() <= before);
    stop();
}

static void test_leaving_while_opening_leaves_nothing(void)
{
    struct raw_client client[SESSIONS];
    uint8_t bytes[256];
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};

    start();
    slow_backend_hold(&world.slow, true, false);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    for (int i = 0; i < SESSIONS; i++) {
        CHECK(raw_connect(&client[i], world.directory));
        CHECK(page_create(&client[i].page_fd, &client[i].page) == 0);
        CHECK(raw_gate_send(&client[i], bytes, size, &client[i].page_fd, 1));
    }
    CHECK(slow_backend_wait_held(&world.slow));
    CHECK(is_quiet(&client[0]));
    for (int i = 0; i < SESSIONS; i++) {
        raw_close(&client[i]);
    }
    pass_gate();
    slow_backend_hold(&world.slow, false, false);
    connect_session(&client[0]); /* there is a place again */
    wait_until(slow_backend_pins, 1);
    raw_close(&client[0]);
    stop();
}

static void test_a_page_that_cannot_be_pinned_is_no_session(void)
{
    struct raw_client client;
    struct wire_gate_reply reply;

    start();
    slow_backend_refuse(&world.slow, true);
    CHECK(raw_connect(&client, world.directory));
    CHECK(raw_open_session(&client, &reply));
    CHECK(reply.error.status == WIRE_RESOURCE_EXHAUSTED);
    CHECK(strcmp(reply.error.detail, "no page can be pinned") == 0);
    slow_backend_refuse(&world.slow, false);
    CHECK(raw_open_session(&client, &reply));
    CHECK(reply.error.status == WIRE_OK);
    raw_close(&client);
    stop();
}

/* As many as the socket takes, of a client that reads nothing and then leaves. */
static void test_a_flood_of_offers_hurts_nobody(void)
{
    struct raw_client hostile;
    struct raw_client honest;
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096, .id = 1};
    uint8_t bytes[256];
    unsigned sent = 0;

    start();
    connect_session(&hostile);
    connect_session(&honest);
    slow_backend_hold(&world.slow, true, false);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    CHECK(fcntl(hostile.gate, F_SETFL, O_NONBLOCK) == 0);
    while (sent < FLOOD && raw_gate_send(&hostile, bytes, size, NULL, 0)) {
        sent++;
    }
    CHECK(sent > 100);
    (void)next(&honest, post_drop(&honest, 1), WIRE_NOT_FOUND);
    CHECK(slow_backend_wait_held(&world.slow)); /* the first of them */
    unsigned maps = slow_backend_maps(&world.slow);
    raw_close(&hostile);
    pass_gate();
    slow_backend_hold(&world.slow, false, false);
    (void)next(&honest, post_add(&honest, 4096), WIRE_OK);
    wait_until(slow_backend_mappings, 1);
    CHECK(slow_backend_maps(&world.slow) <= maps + 1); /* what waited in the socket is gone */
    raw_close(&honest);
    stop();
}

/* Memory that comes with requests which are refused at once, while the thread that closes it is held
 * up: what waits there is bounded, what is not received goes on a worker as well, and it is no hindrance
 * to any other user. */
static void test_refused_memory_does_not_pile_up(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION};
    struct wire_gate_reply reply;
    struct raw_client hostile;
    struct raw_client second;
    struct raw_client honest;
    const bool two_users = geteuid() == 0;
    int fds[OFFERED];
    int ends[2];
    int refused = 0;

    start();
    connect_session(&hostile);
    connect_session(&second);
    if (two_users) {
        connect_other_session(&honest);
    }
    (void)next(&hostile, post_add(&hostile, 4096), WIRE_OK);
    for (int i = 0; i < OFFERED; i++) {
        fds[i] = memory();
    }
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    slow_backend_hold(&world.slow, false, true);
    (void)next(&hostile, post_drop(&hostile, 1), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    unsigned before = open_descriptors();
    while (refused < FLOOD && raw_gate_call(&hostile, &request, fds, OFFERED, &reply)) {
        CHECK(reply.error.status == WIRE_INVALID_ARGUMENT);
        refused++;
    }
    CHECK(refused < FLOOD);
    CHECK(open_descriptors() <= before + MOST_CLOSINGS);
    (void)raw_gate_call(&second, &request, &ends[1], 1, &reply);
    CHECK(raw_gate_ends(&second));
    (void)close(ends[1]);
    struct pollfd other_end = {.fd = ends[0]};
    CHECK(poll(&other_end, 1, 0) == 0);
    if (two_users) {
        (void)next(&honest, post_add(&honest, 4096), WIRE_OK);
        raw_close(&honest);
    }
    raw_close(&hostile);
    raw_close(&second);
    slow_backend_hold(&world.slow, false, false);
    CHECK(poll(&other_end, 1, WAIT_MS) == 1 && (other_end.revents & POLLHUP) != 0);
    (void)close(ends[0]);
    for (int waited = 0; waited < WAIT_MS && open_descriptors() > before; waited++) {
        (void)usleep(1000);
    }
    connect_session(&hostile);
    request = offer_of(4096);
    accepted_in_time(&hostile, &request, true);
    for (int i = 0; i < OFFERED; i++) {
        (void)close(fds[i]);
    }
    raw_close(&hostile);
    stop();
}

/* As many as the kernel sends at once. */
static void test_all_descriptors_of_a_packet_are_taken(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION};
    struct wire_gate_reply reply;
    struct raw_client client;
    int fds[PACKET_MAX_DESCRIPTORS];

    start();
    connect_session(&client);
    int fd = memory();
    for (int i = 0; i < PACKET_MAX_DESCRIPTORS; i++) {
        fds[i] = fd;
    }
    CHECK(raw_gate_call(&client, &request, fds, PACKET_MAX_DESCRIPTORS, &reply));
    CHECK(reply.error.status == WIRE_INVALID_ARGUMENT);
    CHECK(strcmp(reply.error.detail, "the message came with 253 descriptors instead of 1") == 0);
    (void)close(fd);
    raw_close(&client);
    stop();
}

/* It may be the last that holds gigabytes of memory. The gate does not let go of it by itself. */
static void test_what_was_not_received_goes_on_a_worker(void)
{
    struct wire_gate_request request = offer_of(4096);
    struct raw_client holder;
    struct raw_client leaving;
    uint8_t bytes[256];
    int ends[2];

    start();
    connect_session(&holder);
    connect_session(&leaving);
    (void)next(&holder, post_add(&holder, 4096), WIRE_OK);
    slow_backend_hold(&world.slow, true, true);
    (void)next(&holder, post_drop(&holder, 1), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)post_add(&leaving, 4096);
    wait_until(slow_backend_maps, 2); /* from here on nothing more is received */
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    CHECK(raw_gate_send(&leaving, bytes, size, &ends[1], 1));
    (void)close(ends[1]);
    raw_close(&leaving);
    pass_gate();
    struct pollfd other_end = {.fd = ends[0]};
    CHECK(poll(&other_end, 1, 0) == 0);
    slow_backend_hold(&world.slow, false, false);
    CHECK(poll(&other_end, 1, WAIT_MS) == 1 && (other_end.revents & POLLHUP) != 0);
    (void)close(ends[0]);
    raw_close(&holder);
    stop();
}

static bool is_served(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM, .id = 1};
    struct wire_gate_reply reply;
    struct raw_client client;
    uint8_t bytes[64];

    CHECK(raw_connect(&client, world.directory));
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    bool served = raw_gate_send(&client, bytes, size, NULL, 0) && raw_gate_receive(&client, &reply);
    raw_close(&client);
    return served;
}

static void test_sockets_that_wait_to_be_closed_are_bounded(void)
{
    struct raw_client holder;
    int served = 0;

    start();
    connect_session(&holder);
    (void)next(&holder, post_add(&holder, 4096), WIRE_OK);
    slow_backend_hold(&world.slow, false, true);
    (void)next(&holder, post_drop(&holder, 1), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    while (served < FLOOD && is_served()) {
        served++;
    }
    CHECK(served >= SESSIONS && served <= MOST_SOCKETS);
    (void)next(&holder, post_add(&holder, 4096), WIRE_OK);
    slow_backend_hold(&world.slow, false, false);
    for (int waited = 0; waited < WAIT_MS && !is_served(); waited++) {
        (void)usleep(1000);
    }
    CHECK(is_served());
    raw_close(&holder);
    stop();
}

/* Nothing of it is left but the mapping that is at work, and its user may have no more than before. */
static void test_what_a_session_leaves_behind_counts(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = REGION_BYTES};
    struct raw_client leaving;
    struct raw_client staying;

    start();
    connect_session(&leaving);
    connect_session(&staying);
    slow_backend_hold(&world.slow, true, false);
    (void)post(&leaving, &request, true);
    CHECK(slow_backend_wait_held(&world.slow));
    raw_close(&leaving);
    pass_gate(); /* the session has ended */
    (void)next(&staying, post_add(&staying, 4096), WIRE_RESOURCE_EXHAUSTED);
    slow_backend_hold(&world.slow, false, true);
    CHECK(slow_backend_wait_held(&world.slow)); /* its unmapping */
    (void)next(&staying, post_add(&staying, 4096), WIRE_RESOURCE_EXHAUSTED);
    slow_backend_hold(&world.slow, false, false);
    wait_until(slow_backend_mappings, 0);
    accepted_in_time(&staying, &request, true);
    raw_close(&staying);
    stop();
}

static void test_the_end_finds_workers_at_work(void)
{
    struct raw_client adding;
    struct raw_client opening;
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};
    uint8_t bytes[256];

    start();
    connect_session(&adding);
    slow_backend_hold(&world.slow, true, false);
    (void)post_add(&adding, 4096);
    CHECK(slow_backend_wait_held(&world.slow));
    CHECK(raw_connect(&opening, world.directory));
    CHECK(page_create(&opening.page_fd, &opening.page) == 0);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    CHECK(raw_gate_send(&opening, bytes, size, &opening.page_fd, 1));
    CHECK(is_quiet(&opening));
    stop();
    raw_close(&adding);
    raw_close(&opening);
}

int main(void)
{
    struct door_rules rules = {
        .uids = {.count = 1, .id = {OTHER_UID}}, .sessions_per_uid = SESSIONS};

    log_init(LOG_LEVEL_WARNING);
    CHECK(door_install(&rules) != 0);
    test_answers_wait_and_keep_their_order();
    test_others_are_not_held_up();
    test_regions_grow();
    test_handles_come_without_descriptors();
    test_handles_are_of_one_user_at_a_time();
    test_trimming_ends_when_all_is_unmapped();
    test_leaving_while_mapping_leaves_nothing();
    test_leaving_while_opening_leaves_nothing();
    test_a_page_that_cannot_be_pinned_is_no_session();
    test_a_flood_of_offers_hurts_nobody();
    test_refused_memory_does_not_pile_up();
    test_all_descriptors_of_a_packet_are_taken();
    test_what_was_not_received_goes_on_a_worker();
    test_sockets_that_wait_to_be_closed_are_bounded();
    test_what_a_session_leaves_behind_counts();
    test_the_end_finds_workers_at_work();
    return 0;
}

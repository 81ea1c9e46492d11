#include "gate_world.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "door.h"
#include "log.h"

struct world world;

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

void world_start(void)
{
    struct session_options options = {.backend = &world.slow.backend,
        .mapper = NULL,
        .max_sessions = WORLD_SESSIONS,
        .max_sessions_per_uid = WORLD_SESSIONS,
        .region_bytes_per_uid = WORLD_REGION_BYTES,
        .limits = {.in_flight = 4, .regions = 8, .region_bytes = WORLD_REGION_BYTES, .plans = 1}};

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

void world_stop(void)
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

void world_connect(struct raw_client *client)
{
    struct wire_gate_reply reply;

    CHECK(raw_connect(client, world.directory));
    CHECK(raw_open_session(client, &reply));
    CHECK(reply.error.status == WIRE_OK);
}

void world_connect_other(struct raw_client *client)
{
    CHECK(chmod(world.directory, 0755) == 0 && chmod(world.path, 0777) == 0);
    CHECK(syscall(SYS_setresuid, -1, WORLD_OTHER_UID, -1) == 0);
    world_connect(client);
    CHECK(syscall(SYS_setresuid, -1, 0, -1) == 0);
}

int world_memory(void)
{
    int fd = memfd_create("piece", MFD_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

uint32_t world_post(struct raw_client *client, struct wire_gate_request *request, bool with_memory)
{
    uint8_t bytes[2048];
    int fd = with_memory ? world_memory() : -1;

    request->id = ++client->id;
    size_t size = codec_encode_gate_request(request, bytes, sizeof(bytes));
    CHECK(size > 0 && raw_gate_send(client, bytes, size, &fd, with_memory));
    if (fd >= 0) {
        (void)close(fd);
    }
    return request->id;
}

struct wire_gate_request world_offer(uint64_t bytes)
{
    return (struct wire_gate_request){.kind = WIRE_GATE_ADD_REGION,
        .memory = WIRE_MEMORY_CUDA_VMM,
        .bytes = bytes,
        .reserve = 1 << 20};
}

uint32_t world_post_add(struct raw_client *client, uint64_t bytes)
{
    struct wire_gate_request request = world_offer(bytes);
    return world_post(client, &request, true);
}

uint32_t world_post_drop(struct raw_client *client, uint32_t region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = region};
    return world_post(client, &request, false);
}

uint32_t world_post_trim(struct raw_client *client)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM};
    return world_post(client, &request, false);
}

struct wire_gate_reply world_next(struct raw_client *client, uint32_t id, enum wire_status status)
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

void world_accepts(struct raw_client *client, struct wire_gate_request *request, bool with_memory)
{
    struct wire_gate_reply reply = {.error = {.status = WIRE_RESOURCE_EXHAUSTED}};

    for (int waited = 0; waited < WORLD_WAIT_MS && reply.error.status != WIRE_OK; waited++) {
        (void)usleep(1000);
        uint32_t id = world_post(client, request, with_memory);
        CHECK(raw_gate_receive(client, &reply));
        CHECK(reply.id == id);
    }
    CHECK(reply.error.status == WIRE_OK);
}

void world_pass_gate(void)
{
    struct raw_client passer;

    CHECK(raw_connect(&passer, world.directory));
    (void)world_next(&passer, world_post_trim(&passer), WIRE_INVALID_ARGUMENT);
    raw_close(&passer);
}

void world_wait_until(unsigned (*value)(struct slow_backend *slow), unsigned expected)
{
    for (int waited = 0; waited < WORLD_WAIT_MS && value(&world.slow) != expected; waited++) {
        (void)usleep(1000);
    }
    CHECK(value(&world.slow) == expected);
}

unsigned world_descriptors(void)
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

void world_init(void)
{
    struct door_rules rules = {
        .uids = {.count = 1, .id = {WORLD_OTHER_UID}}, .sessions_per_uid = WORLD_SESSIONS};

    log_init(LOG_LEVEL_WARNING);
    CHECK(door_install(&rules) != 0);
}

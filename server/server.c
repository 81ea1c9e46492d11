#include "server.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include <uv.h>

#include "backend.h"
#include "backend_open.h"
#include "choose.h"
#include "door.h"
#include "engine.h"
#include "fatal.h"
#include "gate.h"
#include "home.h"
#include "log.h"
#include "notify.h"
#include "request.h"
#include "session.h"
#include "transport.h"
#include "worker.h"

/* Long enough that starting a launch is a small part of it, short enough that a small request never
 * waits long behind a large one. */
#define GROUP_BUDGET_NS 500000

#define DESCRIPTORS_PER_SESSION 4 /* gate, its process, rpc, memory that is being mapped */
#define OWN_DESCRIPTORS 64

struct server {
    const struct config *config;
    struct home home;
    uv_loop_t loop;
    uv_async_t wake;
    uv_signal_t terminate;
    uv_signal_t interrupt;
    uv_timer_t drain;
    struct backend *backend;
    struct engine *engine;
    struct worker *mapper;
    struct worker *unmapper; /* another, for nobody's mapping shall wait for it */
    struct worker *closer;   /* descriptors that may be anything: one can hold it up for ever */
    struct session_table sessions;
    struct request_handler *requests;
    struct transport transport;
    struct gate gate;
    bool gives_up; /* accepted requests are left */
};

static void stop_when_drained(struct server *server)
{
    if (server->sessions.draining && server->sessions.in_flight == 0) {
        uv_stop(&server->loop);
    }
}

/* On the engine's thread and the workers'. */
static void wake(void *context)
{
    (void)uv_async_send(context);
}

static void on_wake(uv_async_t *async)
{
    struct server *server = async->data;

    request_collect(server->requests);
    worker_collect(server->mapper);
    worker_collect(server->unmapper);
    stop_when_drained(server);
}

/* Ends the drain, whatever is left. What ended just now has not been collected yet. */
static void cut_drain(struct server *server, const char *why)
{
    request_collect(server->requests);
    server->gives_up = server->sessions.in_flight > 0;
    if (server->gives_up) {
        log_warning("%s: %" PRIu32 " requests are given up", why, server->sessions.in_flight);
    }
    uv_stop(&server->loop);
}

static void on_drain_timeout(uv_timer_t *timer)
{
    cut_drain(timer->data, "drain timeout");
}

static void on_signal(uv_signal_t *signal, int number)
{
    struct server *server = signal->data;

    if (server->sessions.draining) {
        cut_drain(server, "second signal");
        return;
    }
    notify_stopping();
    log_info(
        "signal %d: draining, requests in flight: %" PRIu32, number, server->sessions.in_flight);
    server->sessions.draining = true;
    (void)uv_timer_start(
        &server->drain, on_drain_timeout, server->config->drain_timeout_s * 1000, 0);
    stop_when_drained(server);
}

static bool open_loop(struct server *server)
{
    if (uv_loop_init(&server->loop) != 0) {
        return false;
    }
    if (uv_async_init(&server->loop, &server->wake, on_wake) != 0 ||
        uv_signal_init(&server->loop, &server->terminate) != 0) {
        return false;
    }
    (void)uv_signal_init(&server->loop, &server->interrupt);
    (void)uv_timer_init(&server->loop, &server->drain);
    server->wake.data = server;
    server->terminate.data = server;
    server->interrupt.data = server;
    server->drain.data = server;
    return true;
}

static uint64_t sessions_per_uid(const struct config *config)
{
    return config->max_sessions_per_uid != 0 ? config->max_sessions_per_uid : config->max_sessions;
}

static bool open_door(const struct server *server)
{
    const struct config *config = server->config;
    struct door_rules rules = {.uids = config->allow_uids,
        .gids = config->allow_gids,
        .sessions_per_uid = sessions_per_uid(config)};

    if (rules.uids.count == 0 && rules.gids.count == 0) {
        rules.gids = (struct config_ids){.count = 1, .id = {server->home.group}};
    }
    unsigned descriptors = door_install(&rules);
    uint64_t wanted = config->max_sessions * DESCRIPTORS_PER_SESSION + OWN_DESCRIPTORS;
    if (descriptors != 0 && descriptors < wanted) {
        log_warning("%u descriptors may be open; max-sessions=%" PRIu64 " may need %" PRIu64,
            descriptors, config->max_sessions, wanted);
    }
    return descriptors != 0;
}

/* What fits a trainer: it shares what it works on, on a GPU all of its allocator's memory. */
static void choose_region_bytes(const struct server *server, uint64_t *own, uint64_t *per_uid)
{
    bool gpu = server->backend->device_kind == WIRE_DEVICE_CUDA;
    uint64_t usual = (gpu ? UINT64_C(256) : 16) << 30;
    uint64_t usual_per_uid = 4 * usual;

    *own = server->config->region_bytes;
    *per_uid = server->config->region_bytes_per_uid;
    if (*per_uid == 0) {
        *per_uid = *own < usual_per_uid ? usual_per_uid : *own;
    }
    if (*own == 0) {
        *own = usual < *per_uid ? usual : *per_uid;
    }
}

static struct session_options session_options_of(const struct server *server)
{
    const struct config *config = server->config;
    uint64_t region_bytes = 0;
    uint64_t region_bytes_per_uid = 0;

    choose_region_bytes(server, &region_bytes, &region_bytes_per_uid);
    return (struct session_options){
        .backend = server->backend,
        .mapper = server->mapper,
        .unmapper = server->unmapper,
        .max_sessions = (uint32_t)config->max_sessions,
        .max_sessions_per_uid = (uint32_t)sessions_per_uid(config),
        .region_bytes_per_uid = region_bytes_per_uid,
        .any_ipc_user = config->any_ipc_user != 0,
        .limits = {.in_flight = (uint32_t)config->in_flight,
            .regions = (uint32_t)config->max_regions,
            .region_bytes = region_bytes,
            .plans = (uint32_t)config->max_plans,
            .workspace_bytes = server->backend->workspace_bytes},
    };
}

static bool start_engine(struct server *server)
{
    struct session_options sessions = session_options_of(server);
    struct engine_options options = {
        .backend = server->backend,
        .max_jobs = request_max_jobs(&sessions),
        .max_sessions = session_slots(&sessions),
        .group_budget_ns = GROUP_BUDGET_NS,
        .wake = wake,
        .wake_context = &server->wake,
    };

    server->engine = engine_create(&options);
    sessions.engine = server->engine;
    if (server->engine == NULL || !session_table_init(&server->sessions, &sessions)) {
        return false;
    }
    server->requests = request_handler_create(&server->sessions, &server->transport);
    return server->requests != NULL;
}

/* The families that the device can run, for the log. */
static void name_families(const struct backend *backend, char *names, size_t size)
{
    size_t used = 0;

    names[0] = '\0';
    for (size_t i = 0; i < attn_family_count() && used < size; i++) {
        const struct attn_family *family = attn_family_at(i);
        if (choose_fits(backend, family)) {
            used += (size_t)snprintf(
                names + used, size - used, "%s%s", used > 0 ? "," : "", attn_family_name(family));
        }
    }
}

static void log_start(const struct server *server)
{
    const struct config *config = server->config;
    char families[128];

    name_families(server->backend, families, sizeof(families));
    log_info("attnd %s ready: directory=%s device=\"%s\" families=%s max-sessions=%" PRIu64
             " in-flight=%" PRIu64 " region-bytes=%" PRIu64 " workspace=%" PRIu64,
        ATTND_VERSION, config->directory, server->backend->device_name, families,
        config->max_sessions, config->in_flight, server->sessions.options.limits.region_bytes,
        server->backend->workspace_bytes);
}

/* Who may reach them is the directory's mode; who may pass them, the door's rules. */
static bool open_sockets(struct server *server, const char **what)
{
    *what = server->home.rpc_path;
    if (!transport_open(&server->transport, &server->loop, server->home.rpc_path, request_handle,
            server->requests)) {
        return false;
    }
    *what = server->home.gate_path;
    return gate_open(
        &server->gate, &server->loop, server->home.gate_path, &server->sessions, server->closer);
}

/* false: `what` could not be had; NULL: that has been said. */
static bool start(struct server *server, const char **what)
{
    const struct config *config = server->config;
    struct wire_error error;

    *what = "descriptors";
    if (!open_door(server)) {
        return false;
    }
    server->backend = backend_open(config, &error);
    if (server->backend == NULL) {
        log_error("cannot start, device %s: %s", config->device, error.detail);
        *what = NULL;
        return false;
    }
    *what = "threads";
    server->mapper = worker_create("attnd-mapper", wake, &server->wake);
    server->unmapper = worker_create("attnd-unmapper", wake, &server->wake);
    server->closer = worker_create("attnd-closer", NULL, NULL);
    if (server->mapper == NULL || server->unmapper == NULL || server->closer == NULL) {
        return false;
    }
    *what = "threads or memory for the engine";
    if (!start_engine(server)) {
        return false;
    }
    mode_t mask = umask(0);
    bool opened = open_sockets(server, what);
    (void)umask(mask);
    return opened;
}

static void run(struct server *server)
{
    (void)uv_signal_start(&server->terminate, on_signal, SIGTERM);
    (void)uv_signal_start(&server->interrupt, on_signal, SIGINT);
    log_start(server);
    notify_ready();
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
}

/* The device may be in the middle of a launch, which nothing interrupts and finish() would wait for; so
 * all that has a name is removed, and the rest is left to the end of the process. */
static _Noreturn void leave(struct server *server)
{
    home_close(&server->home);
    fatal_wait();
    _exit(EXIT_FAILURE);
}

/* What the workers still do is done, or left to the system; then nothing may be freed that they use. */
static bool end_workers(struct server *server)
{
    /* What is mapped finds its session, and what sessions leave is unmapped. */
    bool mapped = worker_destroy(server->mapper);
    session_table_finish(&server->sessions);
    bool unmapped = worker_destroy(server->unmapper);
    bool closed = worker_destroy(server->closer);

    if (!mapped || !unmapped || !closed) {
        log_warning("%s is left to the system", !mapped     ? "mapping"
                                                : !unmapped ? "unmapping"
                                                            : "closing descriptors");
    }
    return mapped && unmapped;
}

/* From wherever start() came to. The engine goes after its sources and before what it points at. */
static void finish(struct server *server)
{
    gate_close(&server->gate);
    transport_close(&server->transport);
    if (server->engine != NULL) {
        engine_destroy(server->engine);
    }
    bool ended = end_workers(server);
    request_handler_destroy(server->requests);
    uv_close((uv_handle_t *)&server->wake, NULL);
    uv_close((uv_handle_t *)&server->terminate, NULL);
    uv_close((uv_handle_t *)&server->interrupt, NULL);
    uv_close((uv_handle_t *)&server->drain, NULL);
    (void)uv_run(&server->loop, UV_RUN_DEFAULT);
    int left = uv_loop_close(&server->loop);
    assert(left == 0);
    (void)left;
    if (server->backend != NULL && ended) {
        server->backend->ops->destroy(server->backend);
    }
}

static int serve(struct server *server)
{
    const char *what = NULL;

    if (!open_loop(server)) {
        log_error("no event loop: %s", strerrordesc_np(errno));
        return EX_UNAVAILABLE;
    }
    errno = 0;
    bool started = start(server, &what);
    if (started) {
        run(server);
        log_info("stopped: messages with wrong frames=%" PRIu64 ", replies not taken=%" PRIu64,
            server->transport.malformed, server->transport.unsent);
        if (server->gives_up) {
            leave(server);
        }
    } else if (what != NULL) {
        log_error("cannot start, %s: %s", what, strerrordesc_np(errno));
    }
    finish(server);
    return started ? 0 : EX_UNAVAILABLE;
}

int server_run(const struct config *config)
{
    struct server server = {.config = config, .gate = {.listener = -1}};
    struct wire_error error;

    log_init((enum log_level)config->log_level);
    /* The driver writes files of its own, and will load code from them. */
    (void)umask(S_IWGRP | S_IRWXO);
    (void)signal(SIGPIPE, SIG_IGN);
    if (!home_open(&server.home, config->directory, &error)) {
        log_error("%s", error.detail);
        return error.status == WIRE_AGAIN ? EX_TEMPFAIL : EX_CONFIG;
    }
    int status = serve(&server);
    home_close(&server.home);
    return status;
}

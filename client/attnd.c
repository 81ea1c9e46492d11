#include "attnd.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "request.h"
#include "wait.h"

#define ROOT "/run/attnd"
#define CPU_DAEMON "cpu" /* its directory in there */
#define MOST_DAEMONS 64
#define DEFAULT_TIMEOUT_NS INT64_C(5000000000)
#define SPIN_NS 20000 /* about what going to sleep and being woken costs */
#define SPIN_CORES 4  /* with fewer, who spins takes the processor from the daemon */

_Static_assert((int)ATTND_INTERNAL == (int)WIRE_INTERNAL && (int)ATTND_OK == (int)WIRE_OK &&
                   (int)ATTND_DISCONNECTED == (int)WIRE_DISCONNECTED &&
                   WIRE_STATUS_END == ATTND_LANE_POISONED + 1,
    "statuses are numbered alike on the wire and in the API");
_Static_assert((int)ATTND_FORWARD == (int)WIRE_FORWARD && (int)ATTND_BACKWARD == (int)WIRE_BACKWARD,
    "directions are");

static int64_t find_spin_ns(void)
{
    cpu_set_t cores;
    bool many = sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) >= SPIN_CORES;
    return many ? SPIN_NS : 0;
}

static enum attnd_status read_options(
    const struct attnd_open_options *given, struct attnd_open_options *options)
{
    struct wire_error error;
    *options = (struct attnd_open_options){0};
    if (given && !request_read_sized("options->", options, sizeof *options, given, &error)) {
        return error_of_wire(&error);
    }
    if (options->timeout_ns < 0) {
        return error_set(ATTND_INVALID_ARGUMENT, "options->timeout_ns is %lld, below 0",
            (long long)options->timeout_ns);
    }
    if (!options->name) {
        options->name = program_invocation_short_name;
    } else if (strlen(options->name) >= WIRE_NAME_BYTES) {
        return error_set(ATTND_INVALID_ARGUMENT, "options->name is %zu bytes long, more than %d",
            strlen(options->name), WIRE_NAME_BYTES - 1);
    }
    if (!options->address) {
        options->address = secure_getenv("ATTND_ADDRESS");
    }
    if (options->timeout_ns == 0) {
        options->timeout_ns = DEFAULT_TIMEOUT_NS;
    }
    return ATTND_OK;
}

static enum attnd_status make_page(struct attnd *client, int *fd)
{
    int code = page_create(fd, &client->page);
    if (code != 0) {
        return error_set(
            ATTND_RESOURCE_EXHAUSTED, "no shared memory can be had: %s", strerrordesc_np(-code));
    }
    return ATTND_OK;
}

/* What a daemon says before there is a session, as attnd_open()'s own answer. */
static enum attnd_status nobody_answers(enum attnd_status status, const char *address)
{
    if (status != ATTND_TIMED_OUT) {
        return status;
    }
    return error_set(ATTND_DISCONNECTED, "something listens in %s, but does not answer", address);
}

static enum attnd_status check_session(const struct wire_gate_reply *reply)
{
    if (reply->error.status != WIRE_OK) {
        return error_of_wire(&reply->error);
    }
    if (!reply->has_session) {
        return error_set(ATTND_PROTOCOL_ERROR, "the daemon opened no session");
    }
    if (reply->session.major != WIRE_MAJOR) {
        return error_set(ATTND_VERSION_MISMATCH,
            "the daemon speaks version %u of the protocol, this library version %d",
            (unsigned)reply->session.major, WIRE_MAJOR);
    }
    if (reply->session.limits.in_flight == 0) { /* whoever waits for room would wait for ever */
        return error_set(ATTND_PROTOCOL_ERROR, "the daemon allows this client no requests");
    }
    const struct wire_device *device = &reply->session.device;
    bool cuda = device->kind == WIRE_DEVICE_CUDA && device->has_uuid;
    if (device->kind != WIRE_DEVICE_CPU && !cuda) {
        return error_set(ATTND_UNSUPPORTED,
            "the daemon computes on a device whose memory this library does not share");
    }
    return ATTND_OK;
}

static enum attnd_status open_session(
    struct attnd *client, const struct attnd_open_options *options, int page_fd)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR, .minor = WIRE_MINOR};
    struct wire_gate_reply reply;
    wire_copy_text(request.name, sizeof request.name, options->name);
    enum attnd_status status =
        gate_exchange(&client->gate, &request, page_fd, &reply, client->timeout_ns);
    if (status != ATTND_OK) {
        return nobody_answers(status, options->address);
    }
    status = check_session(&reply);
    client->session = reply.session;
    return status;
}

static enum attnd_status say_hello(struct attnd *client, const struct attnd_open_options *options)
{
    struct wire_request request = {.kind = WIRE_HELLO, .hello.session = client->session.id};
    struct wire_reply reply;
    memcpy(request.hello.token, client->session.token, WIRE_TOKEN_BYTES);
    enum attnd_status status = rpc_call(&client->rpc, &request, &reply, client->timeout_ns);
    if (status != ATTND_OK) {
        return nobody_answers(status, options->address);
    }
    return reply.error.status == WIRE_OK ? ATTND_OK : error_of_wire(&reply.error);
}

static enum attnd_status connect_all(
    struct attnd *client, const struct attnd_open_options *options, int page_fd)
{
    enum attnd_status status =
        gate_open(&client->gate, options->address, &client->loss, client->timeout_ns);
    if (status == ATTND_OK) {
        status = open_session(client, options, page_fd);
    }
    if (status == ATTND_OK) {
        status = rpc_open(&client->rpc, options->address, client->watch.fd, &client->loss);
    }
    if (status == ATTND_OK) {
        plan_init(&client->plans, client->session.limits.plans);
        lane_init(&client->lanes, client->page, client->session.limits.in_flight);
        status = watch_start(client);
    }
    return status == ATTND_OK ? say_hello(client, options) : status;
}

/* Where fork() cut off a thread that was about to change something, the child leaves that as it is. */
static bool is_whole(pthread_mutex_t *mutex, bool forked)
{
    return !forked || pthread_mutex_trylock(mutex) == 0;
}

/* What is found under mutexes. Nobody else uses it. */
static void forget_all(struct attnd *client, bool forked)
{
    if (is_whole(&client->blocks.mutex, forked)) {
        block_finish(&client->blocks);
    }
    if (is_whole(&client->devices.mutex, forked)) {
        device_finish(&client->devices);
    }
    if (is_whole(&client->mutex, forked)) {
        memory_finish(&client->memory);
    }
    if (is_whole(&client->plans.mutex, forked)) {
        plan_finish(&client->plans);
    }
    if (!forked) {
        (void)pthread_mutex_destroy(&client->mutex);
    }
}

/* Gives up everything, in any state between calloc() and serving. */
static void destroy(struct attnd *client, bool forked)
{
    if (!forked) {
        sweep_stop(&client->sweep);
        stream_finish(client); /* while the watch lets go of streams */
        watch_stop(&client->watch);
        driver_close(&client->driver);
        lane_finish(&client->lanes); /* in a child the waiters of these two would never leave */
        sweep_finish(&client->sweep);
    }
    stream_free(&client->streams);
    rpc_close(&client->rpc, forked);
    gate_close(&client->gate, forked);
    watch_close(&client->watch);
    forget_all(client, forked);
    page_unmap(client->page);
    free(client);
}

static struct attnd *create(const struct attnd_open_options *options)
{
    struct attnd *client = calloc(1, sizeof *client);
    if (client) {
        client->pid = getpid();
        client->timeout_ns = options->timeout_ns;
        client->spin_ns = find_spin_ns();
        client->gate.fd = -1;
        client->watch.fd = -1;
        (void)pthread_mutex_init(&client->mutex, NULL);
        block_init(&client->blocks);
        driver_init(&client->driver);
        stream_init(&client->streams);
        device_init(&client->devices);
        sweep_init(&client->sweep);
    }
    return client;
}

enum attnd_status client_check(const struct attnd *client)
{
    if (!client) {
        return error_set(ATTND_INVALID_ARGUMENT, "client is NULL");
    }
    if (client->pid != getpid()) {
        return error_set(ATTND_FORKED,
            "the client was opened by process %d; after fork() the child opens its own",
            (int)client->pid);
    }
    return ATTND_OK;
}

static enum attnd_status open_at(const struct attnd_open_options *options, struct attnd **client)
{
    int page_fd = -1;
    struct attnd *made = create(options);
    if (!made) {
        return error_set(ATTND_RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    enum attnd_status status = watch_open(&made->watch);
    if (status == ATTND_OK) {
        status = make_page(made, &page_fd);
    }
    if (status == ATTND_OK) {
        status = connect_all(made, options, page_fd);
        (void)close(page_fd);
    }
    if (status != ATTND_OK) {
        destroy(made, false);
        return status;
    }
    *client = made;
    return ATTND_OK;
}

static bool current_device(uint8_t uuid[WIRE_UUID_BYTES])
{
    struct driver driver;
    struct wire_error ignored;
    driver_init(&driver);
    bool current = driver_open(&driver, &ignored) && driver_current_uuid(&driver, uuid);
    driver_close(&driver);
    return current;
}

/* Opens the one whose device it is. false: it is another's, or nobody is there. */
static bool open_if_of(const uint8_t uuid[WIRE_UUID_BYTES],
    const struct attnd_open_options *options, struct attnd **client)
{
    struct attnd *made = NULL;
    if (open_at(options, &made) != ATTND_OK || !made) {
        return false;
    }
    const struct wire_device *device = &made->session.device;
    if (device->kind == WIRE_DEVICE_CUDA && memcmp(device->uuid, uuid, WIRE_UUID_BYTES) == 0) {
        *client = made;
        return true;
    }
    destroy(made, false);
    return false;
}

static bool open_of_device(const char *root, const uint8_t uuid[WIRE_UUID_BYTES],
    const struct attnd_open_options *given, struct attnd **client)
{
    struct attnd_open_options options = *given;
    char path[PATH_MAX];
    bool found = false;
    const struct dirent *entry;
    DIR *directory = opendir(root);
    for (int i = 0; directory && !found && i < MOST_DAEMONS; i++) {
        entry = readdir(directory); /* NOLINT(concurrency-mt-unsafe): the stream is ours alone */
        if (!entry) {
            break;
        }
        (void)snprintf(path, sizeof path, "%s/%s/gate.sock", root, entry->d_name);
        if (entry->d_name[0] != '.' && access(path, F_OK) == 0) {
            (void)snprintf(path, sizeof path, "%s/%s", root, entry->d_name);
            options.address = path;
            found = open_if_of(uuid, &options, client);
        }
    }
    if (directory) {
        (void)closedir(directory);
    }
    return found;
}

enum attnd_status client_open_found(
    const char *root, const struct attnd_open_options *given, struct attnd **client)
{
    struct attnd_open_options options = *given;
    uint8_t uuid[WIRE_UUID_BYTES];
    char path[PATH_MAX];
    if (current_device(uuid) && open_of_device(root, uuid, given, client)) {
        return ATTND_OK;
    }
    (void)snprintf(path, sizeof path, "%s/" CPU_DAEMON, root);
    options.address = path;
    return open_at(&options, client);
}

enum attnd_status attnd_open(const struct attnd_open_options *given, struct attnd **client)
{
    struct attnd_open_options options;
    if (!client) {
        return error_set(ATTND_INVALID_ARGUMENT, "client is NULL");
    }
    enum attnd_status status = read_options(given, &options);
    if (status != ATTND_OK) {
        return status;
    }
    return options.address ? open_at(&options, client) : client_open_found(ROOT, &options, client);
}

void attnd_close(struct attnd *client)
{
    if (!client) {
        return;
    }
    bool forked = client_check(client) != ATTND_OK;
    if (!forked) {
        wait_all_ended(client);
    }
    destroy(client, forked);
}

enum attnd_status attnd_lane_reset(struct attnd *client, void *stream)
{
    enum attnd_status status = client_check(client);
    if (status == ATTND_OK) {
        status = loss_check(&client->loss);
    }
    return status == ATTND_OK ? stream_reset(client, stream) : status;
}

#include "stream.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "client.h"
#include "clock.h"
#include "submit.h"
#include "wait.h"

#define PAGE_BYTES 4096
#define PAUSE_NS 100000
#define UUID_TEXT_BYTES 48

_Static_assert(sizeof(struct stream_marks) <= PAGE_BYTES, "they fill a page at most");

/* As the driver's tools write it. */
static const char *uuid_text(const uint8_t uuid[WIRE_UUID_BYTES], char text[UUID_TEXT_BYTES])
{
    static const int dashes = 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;

    int at = snprintf(text, UUID_TEXT_BYTES, "GPU-");
    for (int i = 0; i < WIRE_UUID_BYTES; i++) {
        at += snprintf(text + at, (size_t)(UUID_TEXT_BYTES - at), "%s%02x",
            dashes >> i & 1 ? "-" : "", (unsigned)uuid[i]);
    }
    return text;
}

static bool check_uuid(const struct attnd *client, const char *what,
    const uint8_t uuid[WIRE_UUID_BYTES], struct wire_error *error)
{
    char here[UUID_TEXT_BYTES];
    char there[UUID_TEXT_BYTES];
    const struct wire_device *device = &client->session.device;
    return memcmp(uuid, device->uuid, WIRE_UUID_BYTES) == 0 ||
           wire_fail(error, WIRE_INVALID_ARGUMENT, "%s %s, but this client's daemon computes on %s",
               what, uuid_text(uuid, here), uuid_text(device->uuid, there));
}

static bool check_tensors_device(struct attnd *client, int ordinal, struct wire_error *error)
{
    uint8_t uuid[WIRE_UUID_BYTES];
    char what[64];
    if (atomic_load(&client->streams.ordinal) == ordinal) {
        return true;
    }
    (void)snprintf(what, sizeof what, "the tensors' device.device_id %d is", ordinal);
    if (!driver_uuid(&client->driver, ordinal, uuid, error) ||
        !check_uuid(client, what, uuid, error)) {
        return false;
    }
    atomic_store(&client->streams.ordinal, ordinal);
    return true;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* Not private memory: a fork() would move that away from under the device. */
static struct stream_marks *make_marks(void)
{
    void *made = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return made != MAP_FAILED ? made : NULL;
}

static void unmap_marks(struct streams *streams)
{
    if (streams->marks) {
        (void)munmap(streams->marks, PAGE_BYTES);
        streams->marks = NULL;
    }
}

static bool pin(struct attnd *client, struct wire_error *error)
{
    struct streams *streams = &client->streams;
    streams->marks = make_marks();
    if (!streams->marks) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    if (!driver_pin(&client->driver, client->page, whole_pages(sizeof *client->page),
            &streams->page, error)) {
        unmap_marks(streams);
        return false;
    }
    if (!driver_pin(&client->driver, streams->marks, PAGE_BYTES, &streams->marks_page, error)) {
        driver_unpin(&client->driver, client->page);
        unmap_marks(streams);
        return false;
    }
    return true;
}

/* The first call decides on the context. It is current. */
static bool bind_locked(struct attnd *client, void *context, struct wire_error *error)
{
    struct streams *streams = &client->streams;
    uint8_t uuid[WIRE_UUID_BYTES];
    void *bound = atomic_load(&streams->context);
    if (bound) {
        return bound == context ||
               wire_fail(error, WIRE_INVALID_ARGUMENT,
                   "stream is of another CUDA context than this client's first; for each context "
                   "open a client");
    }
    if (!driver_current_uuid(&client->driver, uuid)) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "the device of stream cannot be found");
    }
    if (!check_uuid(client, "stream is of", uuid, error) || !sweep_start(client, error) ||
        !pin(client, error)) {
        return false;
    }
    (void)pthread_mutex_lock(&client->mutex);
    lane_watch_streams(&client->lanes, streams->marks->passed);
    (void)pthread_mutex_unlock(&client->mutex);
    atomic_store(&streams->context, context);
    return true;
}

static bool bind(struct attnd *client, void *context, struct wire_error *error)
{
    (void)pthread_mutex_lock(&client->streams.mutex);
    bool bound = bind_locked(client, context, error);
    (void)pthread_mutex_unlock(&client->streams.mutex);
    return bound;
}

/* Waits a moment for the sentence of the failure, which comes behind its status. */
static bool check_poison(struct attnd *client, struct lane_key key, struct wire_error *error)
{
    bool told = true;
    (void)pthread_mutex_lock(&client->mutex);
    const struct lane *lane = lane_find_poisoned(&client->lanes, key, &told);
    while (lane && !told && !loss_happened(&client->loss)) {
        struct timespec until = clock_timespec(clock_deadline(PAUSE_NS));
        (void)pthread_cond_timedwait(&client->lanes.told, &client->mutex, &until);
        lane = lane_find_poisoned(&client->lanes, key, &told);
    }
    if (lane) {
        (void)wire_fail(error, WIRE_LANE_POISONED,
            "an earlier request of the stream failed, and attnd_lane_reset() was not called: "
            "%.150s",
            lane->poison.detail);
    }
    (void)pthread_mutex_unlock(&client->mutex);
    return lane == NULL;
}

static bool check_stream(
    struct attnd *client, struct stream_call *call, void *context, struct wire_error *error)
{
    call->key.device = true;
    return bind(client, context, error) &&
           driver_stream_id(&client->driver, call->stream, &call->key.id, error) &&
           check_poison(client, call->key, error);
}

/* Sleeps until the stream is past all that it was given before. false: it never will be. */
static bool wait_for_earlier(struct attnd *client, unsigned lane, uint64_t before)
{
    const _Atomic uint32_t *passed = &client->streams.marks->passed[lane];
    struct timespec pause = clock_timespec(PAUSE_NS);
    while (!page_reached(atomic_load(passed), (uint32_t)before)) {
        if (loss_happened(&client->loss) || driver_is_broken(&client->driver, client->page)) {
            return false;
        }
        (void)nanosleep(&pause, NULL);
    }
    return true;
}

void stream_init(struct streams *streams)
{
    *streams = (struct streams){.ordinal = -1};
    (void)pthread_mutex_init(&streams->mutex, NULL);
}

enum attnd_status stream_enter(
    struct attnd *client, void *stream, int ordinal, struct stream_call *call)
{
    struct wire_error error;
    void *context = NULL;
    *call = (struct stream_call){.stream = stream, .ordinal = ordinal};
    if (!driver_open(&client->driver, &error) || !check_tensors_device(client, ordinal, &error) ||
        !driver_enter(&client->driver, stream, ordinal, &call->scope, &context, &error)) {
        return error_of_wire(&error);
    }
    if (!check_stream(client, call, context, &error)) {
        driver_leave(&client->driver, &call->scope);
        return error_of_wire(&error);
    }
    return ATTND_OK;
}

void stream_leave(struct attnd *client, const struct stream_call *call)
{
    driver_leave(&client->driver, &call->scope);
}

enum attnd_status stream_enqueue(struct attnd *client, const struct stream_call *call,
    unsigned lane, uint64_t last, size_t count)
{
    struct streams *streams = &client->streams;
    uint64_t shared = streams->page + offsetof(struct page, lane) + lane * sizeof(struct page_lane);
    struct driver_word ready = {shared + offsetof(struct page_lane, ready), (uint32_t)last};
    struct driver_word done = {shared + offsetof(struct page_lane, done), (uint32_t)last};
    struct driver_word passed = {
        streams->marks_page + lane * sizeof streams->marks->passed[0], (uint32_t)last};
    struct wire_error error;
    bool enqueued = driver_enqueue(&client->driver, call->stream, ready, done, passed, &error);
    if (loss_happened(&client->loss)) {
        (void)eventfd_write(client->watch.fd, 1); /* the wait may be younger than the release */
    }
    if (enqueued) {
        return ATTND_OK;
    }
    /* The requests are with the daemon; without the stream they have to be let go by hand, but not
     * before the stream's earlier ones, whose turn would come with them. */
    bool past = wait_for_earlier(client, lane, last - count);
    atomic_store_explicit(&client->page->lane[lane].ready, (uint32_t)last, memory_order_release);
    if (past || !loss_happened(&client->loss)) { /* else the stream is yet to look at the page */
        atomic_store(&streams->marks->passed[lane], (uint32_t)last);
    }
    struct wire_error ignored;
    wait_ended(client, submit_ticket(lane, last, count), &ignored);
    return error_of_wire(&error);
}

static bool context_failed(const struct attnd *client, void *context)
{
    struct driver_scope scope;
    if (!driver_enter_context(&client->driver, context, &scope)) {
        return true; /* it was destroyed */
    }
    bool failed = driver_is_broken(&client->driver, client->page);
    driver_leave(&client->driver, &scope);
    return failed;
}

/* Caller holds the client's mutex. */
static void let_go(struct attnd *client, unsigned lane)
{
    struct streams *streams = &client->streams;
    uint64_t sent = atomic_load(&client->lanes.lane[lane].sent);
    _Atomic uint32_t *ready = &client->page->lane[lane].ready;
    streams->lost_to[lane] = sent;
    streams->lost_after[lane] = sent - ((uint32_t)sent - atomic_load(ready));
    if (client->lanes.lane[lane].key.device) {
        atomic_store_explicit(ready, (uint32_t)sent, memory_order_release);
        atomic_store(&streams->marks->passed[lane], (uint32_t)sent);
    }
}

void stream_check(struct attnd *client)
{
    struct streams *streams = &client->streams;
    void *context = atomic_load(&streams->context);
    if (!context || atomic_load(&streams->broken) || !context_failed(client, context)) {
        return;
    }
    (void)pthread_mutex_lock(&client->mutex);
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        let_go(client, lane);
    }
    atomic_store(&streams->broken, true);
    (void)pthread_mutex_unlock(&client->mutex);
}

bool stream_has_lost(const struct attnd *client, unsigned lane, uint64_t sequence)
{
    const struct streams *streams = &client->streams;
    return atomic_load(&streams->broken) && sequence > streams->lost_after[lane] &&
           sequence <= streams->lost_to[lane];
}

enum attnd_status stream_reset(struct attnd *client, void *stream)
{
    struct lane_key key = {.device = true};
    struct driver_scope scope;
    struct wire_error error;
    void *context = atomic_load(&client->streams.context);
    if (!context) {
        return ATTND_OK; /* no stream was ever used */
    }
    if (!driver_enter_context(&client->driver, context, &scope)) {
        return error_set(ATTND_INVALID_ARGUMENT, "the CUDA context of the streams was destroyed");
    }
    bool known = driver_stream_id(&client->driver, stream, &key.id, &error);
    driver_leave(&client->driver, &scope);
    if (!known) {
        return error_of_wire(&error);
    }
    (void)pthread_mutex_lock(&client->mutex);
    lane_reset(&client->lanes, key);
    (void)pthread_mutex_unlock(&client->mutex);
    return ATTND_OK;
}

static bool all_passed(struct attnd *client)
{
    bool all = true;
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        all = all && lane_passed(&client->lanes, lane);
    }
    return all;
}

void stream_finish(struct attnd *client)
{
    struct streams *streams = &client->streams;
    struct driver_scope scope;
    void *context = atomic_load(&streams->context);
    int64_t deadline = clock_deadline(client->timeout_ns);
    struct timespec pause = clock_timespec(PAUSE_NS);
    while (context && !all_passed(client) && clock_left_ns(deadline, 1) != 0) {
        (void)nanosleep(&pause, NULL);
    }
    if (context && !all_passed(client)) {
        client->page = NULL;
        streams->marks = NULL;
    } else if (context && driver_enter_context(&client->driver, context, &scope)) {
        driver_unpin(&client->driver, client->page);
        driver_unpin(&client->driver, streams->marks);
        driver_leave(&client->driver, &scope);
    }
    (void)pthread_mutex_destroy(&streams->mutex);
}

void stream_free(struct streams *streams)
{
    unmap_marks(streams);
}

#include "submit.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "clock.h"
#include "lengths.h"
#include "place.h"
#include "staging.h"
#include "stream.h"
#include "validate.h"

#define RETRY_NS 1000000
#define WHERE_BYTES 32

/* A submission while it is being made. What it holds is released by release(). */
struct submission {
    struct wire_request message;
    const struct stream_call *call; /* NULL: of host tensors */
    struct lane_key key;
    size_t count;
    bool outside; /* a tensor lies in no region: none of this can be sent */
    struct plan *plan[WIRE_MAX_CALLS];
    struct place place[WIRE_MAX_CALLS];
};

/* All of memory as one region: alignment and overlap do not depend on where the tensors lie. */
static bool check_addresses(const struct wire_plan *plan, const struct wire_extent *extents,
    const uint64_t *address, struct wire_error *error)
{
    struct wire_call flat = {.tensors = plan->tensors};
    uint64_t bytes[WIRE_MAX_TENSORS];
    for (uint32_t i = 0; i < plan->tensors; i++) {
        flat.region[i] = 1;
        flat.offset[i] = address[i];
        bytes[i] = INT64_MAX;
    }
    return validate_call(plan, extents, &flat, bytes, error);
}

/* Registers a plan that the daemon does not know yet. */
static bool acquire_plan(struct attnd *client, struct submission *submission, size_t index,
    const struct wire_plan *plan, const struct wire_extent *extents, struct wire_error *error)
{
    if (!submission->plan[index]) {
        submission->plan[index] = plan_acquire(client, plan, extents, error);
    }
    return submission->plan[index] != NULL;
}

static bool prepare(struct attnd *client, struct submission *submission, size_t index,
    const struct request *request, struct wire_error *error)
{
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent own[WIRE_MAX_TENSORS];
    uint64_t address[WIRE_MAX_TENSORS];
    if (!request_plan(request, &plan, address, error)) {
        return false;
    }
    struct plan *known = plan_find(&client->plans, &plan);
    submission->plan[index] = known;
    if (!known && !validate_plan(&plan, &shape, own, error)) {
        return false;
    }
    const struct wire_extent *extents = known ? known->extents : own;
    if (!check_addresses(&plan, extents, address, error) || !lengths_check(request, &plan, error)) {
        return false;
    }
    /* Device memory is not registered for what the daemon refuses, nor a plan for what is staged. */
    const struct place_wanted wanted = {request, &plan, extents, address, submission->call};
    struct wire_call *call = &submission->message.submit.call[index];
    if ((submission->call && !acquire_plan(client, submission, index, &plan, extents, error)) ||
        !place_find(
            client, &wanted, call, &submission->place[index], &submission->outside, error) ||
        (!submission->outside && !acquire_plan(client, submission, index, &plan, extents, error))) {
        return false;
    }
    call->plan = submission->plan[index] ? submission->plan[index]->id : 0;
    call->dropout_seed = request->options.dropout_seed;
    call->dropout_offset = request->options.dropout_offset;
    return true;
}

static void release(struct attnd *client, const struct submission *submission)
{
    (void)pthread_mutex_lock(&client->mutex);
    for (size_t i = 0; i < submission->count; i++) {
        place_release(&submission->place[i]);
    }
    (void)pthread_mutex_unlock(&client->mutex);
    for (size_t i = 0; i < submission->count; i++) {
        if (submission->plan[i]) {
            plan_release(&client->plans, submission->plan[i]);
        }
    }
}

/* Caller holds the mutex, so that the order of sequences is the order on the wire.
 * ATTND_TIMED_OUT: the socket is full. */
static enum attnd_status send_on(
    struct attnd *client, struct submission *submission, unsigned lane, attnd_ticket *ticket)
{
    uint64_t sent = atomic_load(&client->lanes.lane[lane].sent);
    struct wire_submit *submit = &submission->message.submit;
    submit->lane = lane;
    submit->first_sequence = (uint32_t)(sent + 1);
    submit->epoch = submission->call ? client->lanes.lane[lane].epoch : 0;
    if (!submission->call) {
        /* Before the message, so that the daemon never has to look twice: host tensors are complete. */
        atomic_store_explicit(&client->page->lane[lane].ready, (uint32_t)(sent + submission->count),
            memory_order_release);
    }
    enum attnd_status status = rpc_send(&client->rpc, &submission->message, 0);
    if (status == ATTND_OK) {
        uint64_t last = lane_advance(&client->lanes, lane, submission->count);
        for (size_t i = 0; i < submission->count; i++) {
            place_note_use(&submission->place[i], lane, last);
        }
        client->lanes.lane[lane].enqueuing = submission->call != NULL;
        *ticket = submit_ticket(lane, last, submission->count);
    } else if (!submission->call) {
        /* The lane may be a stream's next, whose inputs are not complete. */
        atomic_store_explicit(
            &client->page->lane[lane].ready, (uint32_t)sent, memory_order_release);
    }
    return status;
}

static void sleep_a_little(void)
{
    struct timespec pause = clock_timespec(RETRY_NS);
    (void)nanosleep(&pause, NULL);
}

/* Sleeps until there may be room on a lane. With nothing in flight it is another's turn. */
static void wait_for_room(struct attnd *client, struct lane_key key)
{
    unsigned lane;
    uint64_t sequence;
    (void)pthread_mutex_lock(&client->mutex);
    bool busy = lane_oldest(&client->lanes, key, &lane, &sequence);
    (void)pthread_mutex_unlock(&client->mutex);
    if (busy) {
        lane_sleep(&client->lanes, lane, sequence, RETRY_NS);
    } else {
        sleep_a_little();
    }
}

/* Caller holds the mutex. ATTND_AGAIN: it is others' turn, or there is no room. */
static enum attnd_status try_to_send(struct attnd *client, const struct lane_turn *turn,
    struct submission *submission, attnd_ticket *ticket)
{
    unsigned lane;
    enum attnd_status status = loss_check(&client->loss);
    if (status != ATTND_OK) {
        return status;
    }
    if (lane_is_turn(&client->lanes, turn) &&
        lane_pick(&client->lanes, turn->key, turn->count, &lane)) {
        return send_on(client, submission, lane, ticket);
    }
    if (lane_all_poisoned(&client->lanes)) {
        return error_set(ATTND_RESOURCE_EXHAUSTED,
            "requests of all %d streams that a client may have failed; attnd_lane_reset() lets "
            "them go",
            PAGE_LANES);
    }
    return ATTND_AGAIN;
}

/* Blocks until it is sent or the daemon has gone. */
static enum attnd_status send_submission(
    struct attnd *client, struct submission *submission, attnd_ticket *ticket)
{
    struct lane_turn turn = {.key = submission->key, .count = submission->count};
    int64_t deadline = 0; /* counts while the socket is full */
    (void)pthread_mutex_lock(&client->mutex);
    lane_enter(&client->lanes, &turn);
    for (;;) {
        enum attnd_status status = try_to_send(client, &turn, submission, ticket);
        if (status == ATTND_AGAIN) {
            deadline = 0;
        } else if (status == ATTND_TIMED_OUT && deadline == 0) {
            deadline = clock_deadline(client->timeout_ns);
        }
        if (status != ATTND_AGAIN &&
            (status != ATTND_TIMED_OUT || clock_left_ns(deadline, 1) == 0)) {
            lane_leave(&client->lanes, &turn);
            (void)pthread_mutex_unlock(&client->mutex);
            return status;
        }
        (void)pthread_mutex_unlock(&client->mutex);
        if (status == ATTND_AGAIN) {
            wait_for_room(client, turn.key);
        } else {
            sleep_a_little();
        }
        (void)pthread_mutex_lock(&client->mutex);
    }
}

static enum attnd_status fail_request(bool array, size_t index, const struct wire_error *error)
{
    char where[WHERE_BYTES] = "";
    if (array) {
        (void)snprintf(where, sizeof where, "requests[%zu]", index);
    }
    return error_of_request(where, error);
}

/* Without the mutex: the driver may wait for the device, and the device for the daemon. */
static enum attnd_status enqueue(
    struct attnd *client, const struct submission *submission, attnd_ticket ticket)
{
    unsigned lane = submit_ticket_lane(ticket);
    enum attnd_status status = stream_enqueue(
        client, submission->call, lane, submit_ticket_sequence(ticket), submission->count);
    (void)pthread_mutex_lock(&client->mutex);
    client->lanes.lane[lane].enqueuing = false;
    (void)pthread_mutex_unlock(&client->mutex);
    return status;
}

/* All but the daemon's part, and nothing is sent if a tensor lies outside of every region: *outside.
 * The sentences of an array name the request. `call`: the stream's, NULL: of host tensors. */
static enum attnd_status submit_inside(struct attnd *client, void *stream,
    const struct stream_call *call, const struct request *requests, size_t count, bool array,
    bool *outside, attnd_ticket *ticket)
{
    struct submission submission = {.message.kind = WIRE_SUBMIT, .call = call, .count = count};
    submission.message.submit.calls = (uint32_t)count;
    submission.key = call ? call->key : (struct lane_key){.id = (uintptr_t)stream};
    enum attnd_status status = ATTND_OK;
    for (size_t i = 0; i < count && status == ATTND_OK; i++) {
        struct wire_error error;
        if (!prepare(client, &submission, i, &requests[i], &error)) {
            status = fail_request(array, i, &error);
        }
    }
    *outside = submission.outside;
    if (status == ATTND_OK && !submission.outside) {
        status = send_submission(client, &submission, ticket);
        if (status == ATTND_OK && call) {
            status = enqueue(client, &submission, *ticket);
        }
    }
    release(client, &submission);
    return status;
}

static enum attnd_status find_memory(const struct attnd *client, const struct request *requests,
    size_t count, bool array, struct request_memory *memory)
{
    for (size_t i = 0; i < count; i++) {
        struct wire_error error;
        if (!request_find_memory(&requests[i], i == 0, memory, &error)) {
            return fail_request(array, i, &error);
        }
    }
    if (memory->device && client->session.device.kind != WIRE_DEVICE_CUDA) {
        return error_set(ATTND_UNSUPPORTED,
            "the tensors lie on CUDA device %d, but this client's daemon computes in host memory; "
            "open one of the GPU's daemon",
            memory->ordinal);
    }
    return ATTND_OK;
}

/* `call`: as above. */
static enum attnd_status submit_on(struct attnd *client, void *stream,
    const struct stream_call *call, struct request *requests, size_t count, bool array,
    attnd_ticket *ticket)
{
    bool outside = false;
    struct lengths lengths;
    enum attnd_status status = lengths_copy(client, requests, count, &lengths);
    if (status == ATTND_OK) {
        status = submit_inside(client, stream, call, requests, count, array, &outside, ticket);
    }
    if (status == ATTND_OK && outside) {
        status = staging_submit(client, stream, requests, count, ticket);
    }
    lengths_release(client, &lengths);
    return status;
}

static enum attnd_status submit(struct attnd *client, void *stream, struct request *requests,
    size_t count, bool array, attnd_ticket *ticket)
{
    struct stream_call call;
    struct request_memory memory = {0};
    attnd_ticket made;
    enum attnd_status status = loss_check(&client->loss);
    if (status == ATTND_OK) {
        status = find_memory(client, requests, count, array, &memory);
    }
    if (status == ATTND_OK && memory.device) {
        status = stream_enter(client, stream, memory.ordinal, &call);
    }
    if (status != ATTND_OK) {
        return status;
    }
    if (memory.device) {
        status = submit_on(client, stream, &call, requests, count, array, &made);
        stream_leave(client, &call);
    } else {
        status = submit_on(client, stream, NULL, requests, count, array, &made);
    }
    if (status == ATTND_OK && ticket) {
        *ticket = made;
    }
    return status;
}

static enum attnd_status check_array(
    const struct attnd *client, const struct attnd_request *requests, size_t count)
{
    if (!requests) {
        return error_set(ATTND_INVALID_ARGUMENT, "requests is NULL");
    }
    if (count < 1 || count > WIRE_MAX_CALLS) {
        return error_set(
            ATTND_INVALID_ARGUMENT, "count is %zu, not between 1 and %d", count, WIRE_MAX_CALLS);
    }
    if (count > client->session.limits.in_flight) {
        return error_set(ATTND_RESOURCE_EXHAUSTED,
            "count is %zu, and the daemon allows this client %u requests in flight", count,
            (unsigned)client->session.limits.in_flight);
    }
    return ATTND_OK;
}

/* The array's members lie as far apart as the caller's header says. */
static enum attnd_status read_array(
    const struct attnd_request *requests, size_t count, struct request *read)
{
    const unsigned char *at = (const unsigned char *)requests;
    size_t first;
    memcpy(&first, at, sizeof first);
    for (size_t i = 0; i < count; i++, at += first) {
        size_t size;
        char where[WHERE_BYTES];
        struct wire_error error;
        struct attnd_request request = {0};
        (void)snprintf(where, sizeof where, "requests[%zu]", i);
        memcpy(&size, at, sizeof size);
        if (size != first) {
            return error_set(ATTND_INVALID_ARGUMENT, "%s.size is %zu, but that of requests[0] %zu",
                where, size, first);
        }
        if (!request_read_sized("", &request, sizeof request, at, &error) ||
            !request_read(&request, &read[i], &error)) {
            return error_of_request(where, &error);
        }
    }
    return ATTND_OK;
}

enum attnd_status submit_in_place(struct attnd *client, void *stream,
    const struct request *requests, size_t count, attnd_ticket *ticket)
{
    bool outside;
    enum attnd_status status =
        submit_inside(client, stream, NULL, requests, count, false, &outside, ticket);
    assert(status != ATTND_OK || !outside);
    return status;
}

enum attnd_status submit_one(
    struct attnd *client, void *stream, struct request *request, attnd_ticket *ticket)
{
    return submit(client, stream, request, 1, false, ticket);
}

enum attnd_status attnd_submit(struct attnd *client, void *stream,
    const struct attnd_request *requests, size_t count, attnd_ticket *ticket)
{
    struct request read[WIRE_MAX_CALLS];
    enum attnd_status status = client_check(client);
    if (status == ATTND_OK) {
        status = check_array(client, requests, count);
    }
    if (status == ATTND_OK) {
        status = read_array(requests, count, read);
    }
    return status == ATTND_OK ? submit(client, stream, read, count, true, ticket) : status;
}

#include "submit.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "clock.h"
#include "lengths.h"
#include "staging.h"
#include "validate.h"

#define RETRY_NS 1000000
#define WHERE_BYTES 32

/* A submission while it is being made. What it holds is released by release(). */
struct submission {
    struct wire_request message;
    size_t count;
    bool outside; /* a tensor lies in no region: none of this can be sent */
    struct plan *plan[WIRE_MAX_CALLS];
    struct region *region[WIRE_MAX_CALLS][WIRE_MAX_TENSORS];
};

static bool is_placed(const struct wire_extent *extent)
{
    return extent->low < extent->high;
}

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

/* Where one tensor lies; NULL: in no region, or *partly in one. One without elements may be said to
 * lie in any. */
static struct region *find_region(const struct memory *memory, const struct wire_extent *extent,
    uint64_t address, uint64_t *offset, bool *partly)
{
    struct region *region = NULL;
    *offset = 0;
    *partly = false;
    if (is_placed(extent)) {
        region = memory_find(memory, address, extent->low, extent->high, partly);
        *offset = region ? address - (uintptr_t)region->base : 0;
    } else if (memory->count > 0) {
        region = memory->sorted[0];
    }
    return region;
}

/* Finds the tensors' regions and holds them. */
static bool place(struct attnd *client, struct submission *submission, size_t index,
    const struct wire_plan *plan, const struct wire_extent *extents, const uint64_t *address,
    struct wire_error *error)
{
    struct wire_call *call = &submission->message.submit.call[index];
    bool placed = true;
    call->tensors = plan->tensors;
    (void)pthread_mutex_lock(&client->mutex);
    for (uint32_t i = 0; i < plan->tensors && placed; i++) {
        bool partly;
        struct region *region =
            find_region(&client->memory, &extents[i], address[i], &call->offset[i], &partly);
        if (region) {
            region->users++;
            submission->region[index][i] = region;
            call->region[i] = region->id;
        } else if (partly) {
            placed = wire_fail(error, WIRE_INVALID_ARGUMENT,
                "%s reaches beyond the memory from attnd_alloc() that it lies in",
                wire_role_name(plan->tensor[i].role));
        } else {
            submission->outside = true;
        }
    }
    (void)pthread_mutex_unlock(&client->mutex);
    return placed;
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
    if (!check_addresses(&plan, extents, address, error) || !lengths_check(request, &plan, error) ||
        !place(client, submission, index, &plan, extents, address, error)) {
        return false;
    }
    if (!known && !submission->outside) {
        known = plan_acquire(client, &plan, own, error);
        submission->plan[index] = known;
        if (!known) {
            return false;
        }
    }
    struct wire_call *call = &submission->message.submit.call[index];
    call->plan = known ? known->id : 0;
    call->dropout_seed = request->options.dropout_seed;
    call->dropout_offset = request->options.dropout_offset;
    return true;
}

static void release(struct attnd *client, const struct submission *submission)
{
    (void)pthread_mutex_lock(&client->mutex);
    for (size_t i = 0; i < submission->count; i++) {
        for (size_t t = 0; t < WIRE_MAX_TENSORS; t++) {
            if (submission->region[i][t]) {
                submission->region[i][t]->users--;
            }
        }
    }
    (void)pthread_mutex_unlock(&client->mutex);
    for (size_t i = 0; i < submission->count; i++) {
        if (submission->plan[i]) {
            plan_release(&client->plans, submission->plan[i]);
        }
    }
}

static void note_uses(const struct submission *submission, unsigned lane, uint64_t last)
{
    for (size_t i = 0; i < submission->count; i++) {
        for (size_t t = 0; t < WIRE_MAX_TENSORS; t++) {
            if (submission->region[i][t]) {
                submission->region[i][t]->last_use[lane] = last;
            }
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
    /* Before the message, so that the daemon never has to look twice: host tensors are complete. */
    atomic_store_explicit(&client->page->lane[lane].ready, (uint32_t)(sent + submission->count),
        memory_order_release);
    enum attnd_status status = rpc_send(&client->rpc, &submission->message, 0);
    if (status == ATTND_OK) {
        uint64_t last = lane_advance(&client->lanes, lane, submission->count);
        note_uses(submission, lane, last);
        *ticket = submit_ticket(lane, last, submission->count);
    }
    return status;
}

static void sleep_a_little(void)
{
    struct timespec pause = clock_timespec(RETRY_NS);
    (void)nanosleep(&pause, NULL);
}

/* Sleeps until there may be room on a lane. With nothing in flight it is another's turn. */
static void wait_for_room(struct attnd *client, const void *stream)
{
    unsigned lane;
    uint64_t sequence;
    (void)pthread_mutex_lock(&client->mutex);
    bool busy = lane_oldest(&client->lanes, stream, &lane, &sequence);
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
    bool room = lane_is_turn(&client->lanes, turn) &&
                lane_pick(&client->lanes, turn->stream, turn->count, &lane);
    return room ? send_on(client, submission, lane, ticket) : ATTND_AGAIN;
}

/* Blocks until it is sent or the daemon has gone. */
static enum attnd_status send_submission(
    struct attnd *client, void *stream, struct submission *submission, attnd_ticket *ticket)
{
    struct lane_turn turn = {.stream = stream, .count = submission->count};
    int64_t deadline = 0; /* counts while the socket is full */
    (void)pthread_mutex_lock(&client->mutex);
    lane_enter(&client->lanes, &turn);
    for (;;) {
        enum attnd_status status = try_to_send(client, &turn, submission, ticket);
        if (status == ATTND_TIMED_OUT && deadline == 0) {
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
            wait_for_room(client, stream);
        } else {
            sleep_a_little();
        }
        (void)pthread_mutex_lock(&client->mutex);
    }
}

/* All but the daemon's part, and nothing is sent if a tensor lies outside of every region: *outside.
 * The sentences of an array name the request. */
static enum attnd_status submit_inside(struct attnd *client, void *stream,
    const struct request *requests, size_t count, bool array, bool *outside, attnd_ticket *ticket)
{
    struct submission submission = {.message.kind = WIRE_SUBMIT, .count = count};
    submission.message.submit.calls = (uint32_t)count;
    enum attnd_status status = ATTND_OK;
    for (size_t i = 0; i < count && status == ATTND_OK; i++) {
        struct wire_error error;
        char where[WHERE_BYTES] = "";
        if (!prepare(client, &submission, i, &requests[i], &error)) {
            if (array) {
                (void)snprintf(where, sizeof where, "requests[%zu].", i);
            }
            status = error_of_request(where, &error);
        }
    }
    *outside = submission.outside;
    if (status == ATTND_OK && !submission.outside) {
        status = send_submission(client, stream, &submission, ticket);
    }
    release(client, &submission);
    return status;
}

static enum attnd_status submit(struct attnd *client, void *stream, struct request *requests,
    size_t count, bool array, attnd_ticket *ticket)
{
    bool outside = false;
    attnd_ticket made;
    struct lengths lengths;
    enum attnd_status status = loss_check(&client->loss);
    if (status != ATTND_OK) {
        return status;
    }
    status = lengths_copy(client, requests, count, &lengths);
    if (status == ATTND_OK) {
        status = submit_inside(client, stream, requests, count, array, &outside, &made);
    }
    if (status == ATTND_OK && outside) {
        status = staging_submit(client, stream, requests, count, &made);
    }
    lengths_release(client, &lengths);
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
        (void)snprintf(where, sizeof where, "requests[%zu].", i);
        memcpy(&size, at, sizeof size);
        if (size != first) {
            return error_set(ATTND_INVALID_ARGUMENT, "%ssize is %zu, but that of requests[0] %zu",
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
        submit_inside(client, stream, requests, count, false, &outside, ticket);
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

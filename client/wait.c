#include "wait.h"

#include <stdatomic.h>
#include <stdio.h>

#include "client.h"
#include "clock.h"
#include "submit.h"

#define SLEEP_NS 1000000 /* the longest: a daemon that died wakes nobody */

static enum attnd_status check_ticket(const struct attnd *client, attnd_ticket ticket)
{
    unsigned lane = submit_ticket_lane(ticket);
    uint64_t sequence = submit_ticket_sequence(ticket);
    if (lane >= PAGE_LANES || sequence < submit_ticket_count(ticket) ||
        sequence > atomic_load(&client->lanes.lane[lane].sent)) {
        return error_set(ATTND_INVALID_ARGUMENT, "ticket is none that this client gave");
    }
    return ATTND_OK;
}

/* Whether it ended within the client's patience for spinning. */
static bool spin(struct attnd *client, unsigned lane, uint64_t sequence)
{
    int64_t deadline = clock_deadline(client->spin_ns);
    do {
        if (lane_ended(&client->lanes, lane, sequence)) {
            return true;
        }
        __builtin_ia32_pause();
    } while (clock_left_ns(deadline, 1) != 0);
    return false;
}

static enum attnd_status wait_until(
    struct attnd *client, unsigned lane, uint64_t sequence, int64_t deadline)
{
    bool ended = lane_ended(&client->lanes, lane, sequence);
    if (!ended && client->spin_ns > 0 && clock_left_ns(deadline, 1) != 0) {
        ended = spin(client, lane, sequence);
    }
    while (!ended) {
        bool lost = loss_happened(&client->loss);
        int64_t left = clock_left_ns(deadline, SLEEP_NS);
        ended = lane_ended(&client->lanes, lane, sequence); /* it may have been the last act */
        if (!ended && lost) {
            return loss_check(&client->loss);
        }
        if (!ended && left == 0) {
            return error_set(ATTND_TIMED_OUT, "the submission has not ended yet");
        }
        if (!ended) {
            lane_sleep(&client->lanes, lane, sequence, left);
        }
    }
    return ATTND_OK;
}

/* Caller holds the mutex. Waits for the sentence of a failure, as long as there is patience. */
static void read_failure(struct attnd *client, unsigned lane, uint64_t sequence, size_t count,
    int64_t deadline, struct lane_failure *found)
{
    deadline = found->patience < deadline ? found->patience : deadline;
    struct timespec until = clock_timespec(deadline);
    while (!found->told && clock_left_ns(deadline, 1) != 0 && !loss_happened(&client->loss)) {
        (void)pthread_cond_timedwait(&client->lanes.told, &client->mutex, &until);
        const struct lane_failure *now = lane_find_failure(&client->lanes, lane, sequence, count);
        if (!now) {
            return; /* 256 others failed meanwhile */
        }
        *found = *now;
    }
}

/* What ended while the daemon went away is not known to have ended well. */
static void read_loss(struct attnd *client, struct wire_error *error)
{
    enum attnd_status status = loss_check(&client->loss);
    if (status != ATTND_OK) {
        (void)wire_fail(error, (enum wire_status)status, "%.250s", attnd_message());
    }
}

/* How a submission that has ended did so. */
static void read_outcome(
    struct attnd *client, attnd_ticket ticket, int64_t deadline, struct wire_error *error)
{
    unsigned lane = submit_ticket_lane(ticket);
    uint64_t sequence = submit_ticket_sequence(ticket);
    size_t count = submit_ticket_count(ticket);
    error->status = WIRE_OK;
    if (stream_has_lost(client, lane, sequence)) {
        (void)wire_fail(error, WIRE_DEVICE_FAULT,
            "the CUDA context of the stream failed before the inputs were ready");
        return;
    }
    (void)pthread_mutex_lock(&client->mutex);
    lane_reap(&client->lanes, lane);
    const struct lane_failure *failure = lane_find_failure(&client->lanes, lane, sequence, count);
    if (failure) {
        struct lane_failure found = *failure;
        read_failure(client, lane, sequence, count, deadline, &found);
        *error = found.error;
        if (count > 1) {
            size_t index = count - 1 - (size_t)(sequence - found.sequence);
            (void)wire_fail(
                error, found.error.status, "requests[%zu]: %.230s", index, found.error.detail);
        }
    } else if (atomic_load(&client->lanes.lane[lane].reaped) < sequence) {
        read_loss(client, error);
    }
    (void)pthread_mutex_unlock(&client->mutex);
}

void wait_ended(struct attnd *client, attnd_ticket ticket, struct wire_error *error)
{
    enum attnd_status status =
        wait_until(client, submit_ticket_lane(ticket), submit_ticket_sequence(ticket), INT64_MAX);
    if (status == ATTND_OK) {
        read_outcome(client, ticket, INT64_MAX, error);
    } else {
        (void)wire_fail(error, (enum wire_status)status, "%.250s", attnd_message());
    }
}

void wait_all_ended(struct attnd *client)
{
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        uint64_t sent = atomic_load(&client->lanes.lane[lane].sent);
        (void)wait_until(client, lane, sent, INT64_MAX);
    }
}

enum attnd_status attnd_wait(struct attnd *client, attnd_ticket ticket, int64_t timeout_ns)
{
    int64_t deadline = clock_deadline(timeout_ns);
    enum attnd_status status = client_check(client);
    if (status == ATTND_OK && timeout_ns < 0 && timeout_ns != ATTND_FOREVER) {
        status = error_set(ATTND_INVALID_ARGUMENT,
            "timeout_ns is %lld, below 0 and not ATTND_FOREVER", (long long)timeout_ns);
    }
    if (status == ATTND_OK) {
        status = check_ticket(client, ticket);
    }
    if (status == ATTND_OK) {
        status = wait_until(
            client, submit_ticket_lane(ticket), submit_ticket_sequence(ticket), deadline);
    }
    if (status == ATTND_OK) {
        struct wire_error error;
        read_outcome(client, ticket, deadline, &error);
        status = error.status == WIRE_OK ? ATTND_OK : error_of_wire(&error);
    }
    return status;
}

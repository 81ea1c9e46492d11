#include "rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "clock.h"
#include "codec.h"

#define SEND_RETRY_NS 200000
#define ENDPOINT_BYTES 160
#define SUBMISSION (UINT32_C(1) << 31) /* in the numbers of these */
#define NEEDED_DESCRIPTORS 24          /* libzmq 4.3.4 takes 9 for a context with these sockets */
#define MONITOR "inproc://monitor"

struct rpc_waiter {
    struct rpc_waiter *next;
    uint32_t id;
    bool answered;
    struct wire_reply *reply;
};

/* libzmq ends the process where it runs out of descriptors, so that is found out before. */
static bool enough_descriptors(void)
{
    int fds[NEEDED_DESCRIPTORS];
    int count = 0;
    while (count < NEEDED_DESCRIPTORS && (fds[count] = eventfd(0, EFD_CLOEXEC)) >= 0) {
        count++;
    }
    for (int i = 0; i < count; i++) {
        (void)close(fds[i]);
    }
    return count == NEEDED_DESCRIPTORS;
}

static int set_option(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof value);
}

/* Of a connection that is made only once there is nothing to tell but its end. */
static bool watch_connection(struct rpc *rpc)
{
    size_t size = sizeof rpc->monitor_fd;
    if (zmq_socket_monitor(rpc->socket, MONITOR, ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED) != 0) {
        return false;
    }
    rpc->monitor = zmq_socket(rpc->context, ZMQ_PAIR);
    return rpc->monitor && set_option(rpc->monitor, ZMQ_LINGER, 0) == 0 &&
           zmq_connect(rpc->monitor, MONITOR) == 0 &&
           zmq_getsockopt(rpc->monitor, ZMQ_FD, &rpc->monitor_fd, &size) == 0 &&
           !rpc_is_closed(rpc); /* who has never looked is not woken */
}

static bool configure(struct rpc *rpc, const char *endpoint)
{
    size_t size = sizeof rpc->fd;
    return set_option(rpc->socket, ZMQ_LINGER, 0) == 0 &&
           set_option(rpc->socket, ZMQ_IMMEDIATE, 1) == 0 &&
           set_option(rpc->socket, ZMQ_RECONNECT_IVL, -1) == 0 &&
           set_option(rpc->socket, ZMQ_SNDHWM, 4096) == 0 &&
           set_option(rpc->socket, ZMQ_RCVHWM, 0) == 0 && /* the requests in flight bound it */
           zmq_getsockopt(rpc->socket, ZMQ_FD, &rpc->fd, &size) == 0 && watch_connection(rpc) &&
           zmq_connect(rpc->socket, endpoint) == 0;
}

static void close_sockets(struct rpc *rpc)
{
    if (rpc->socket) {
        (void)zmq_close(rpc->socket);
    }
    if (rpc->monitor) {
        (void)zmq_close(rpc->monitor);
    }
    while (rpc->context && zmq_ctx_term(rpc->context) != 0 && errno == EINTR) {}
    rpc->socket = NULL;
    rpc->monitor = NULL;
    rpc->context = NULL;
}

static void wake_receiver(const struct rpc *rpc)
{
    (void)eventfd_write(rpc->wake_fd, 1);
}

/* Caller holds the mutex. 0 or errno. */
static int try_send(struct rpc *rpc, const struct wire_request *request)
{
    size_t size = codec_encode_request(request, rpc->buffer, sizeof rpc->buffer);
    int code = 0;
    if (size == 0) {
        return EMSGSIZE;
    }
    if (zmq_send(rpc->socket, rpc->buffer, size, ZMQ_DONTWAIT) < 0) {
        code = errno;
    }
    int events = 0;
    size_t events_size = sizeof events;
    if (zmq_getsockopt(rpc->socket, ZMQ_EVENTS, &events, &events_size) == 0 &&
        (events & ZMQ_POLLIN)) {
        wake_receiver(rpc);
    }
    return code;
}

/* Never 0. */
static uint32_t next_id(struct rpc *rpc, enum wire_request_kind kind)
{
    rpc->last_id = rpc->last_id % (SUBMISSION - 1) + 1;
    return rpc->last_id | (kind == WIRE_SUBMIT ? SUBMISSION : 0);
}

/* Caller holds the mutex; it is given up between two tries, so that the receiver goes on. */
static enum attnd_status send_locked(
    struct rpc *rpc, struct wire_request *request, int64_t timeout_ns)
{
    int64_t deadline = clock_deadline(timeout_ns);
    request->id = next_id(rpc, request->kind);
    for (;;) {
        int code = try_send(rpc, request);
        if (code == 0) {
            return ATTND_OK;
        }
        if (code != EAGAIN && code != EINTR) {
            return error_set(ATTND_INTERNAL, "a message cannot be sent: %s", zmq_strerror(code));
        }
        if (loss_happened(rpc->loss)) {
            return loss_check(rpc->loss);
        }
        if (clock_left_ns(deadline, 1) == 0) {
            return error_set(ATTND_TIMED_OUT, "the daemon took no message for %.3f s",
                (double)timeout_ns / (double)CLOCK_SECOND_NS);
        }
        struct timespec pause = clock_timespec(SEND_RETRY_NS);
        (void)pthread_mutex_unlock(&rpc->mutex);
        (void)nanosleep(&pause, NULL);
        (void)pthread_mutex_lock(&rpc->mutex);
    }
}

static enum attnd_status await_locked(
    struct rpc *rpc, const struct rpc_waiter *waiter, int64_t timeout_ns)
{
    int64_t deadline = clock_deadline(timeout_ns);
    struct timespec until = clock_timespec(deadline);
    while (!waiter->answered) {
        if (loss_happened(rpc->loss)) {
            return loss_check(rpc->loss);
        }
        if (clock_left_ns(deadline, 1) == 0) {
            return error_set(ATTND_TIMED_OUT, "the daemon did not answer within %.3f s",
                (double)timeout_ns / (double)CLOCK_SECOND_NS);
        }
        (void)pthread_cond_timedwait(&rpc->answered, &rpc->mutex, &until);
    }
    return ATTND_OK;
}

static void remove_waiter(struct rpc *rpc, struct rpc_waiter *waiter)
{
    struct rpc_waiter **link = &rpc->waiters;
    while (*link != waiter) {
        link = &(*link)->next;
    }
    *link = waiter->next;
}

/* Whether somebody waited for it and now has it. */
static bool deliver_locked(struct rpc *rpc, const struct wire_reply *reply)
{
    for (struct rpc_waiter *waiter = rpc->waiters; waiter; waiter = waiter->next) {
        if (waiter->id == reply->id && !waiter->answered) {
            *waiter->reply = *reply;
            waiter->answered = true;
            (void)pthread_cond_broadcast(&rpc->answered);
            return true;
        }
    }
    return false;
}

static bool receive_locked(struct rpc *rpc, struct wire_reply *reply)
{
    for (;;) {
        int size = zmq_recv(rpc->socket, rpc->buffer, sizeof rpc->buffer, ZMQ_DONTWAIT);
        if (size < 0 && errno == EINTR) {
            continue;
        }
        if (size < 0) {
            return false;
        }
        struct wire_error error;
        size_t taken = (size_t)size < sizeof rpc->buffer ? (size_t)size : sizeof rpc->buffer;
        if (!codec_decode_reply(rpc->buffer, taken, reply, &error)) {
            loss_declare(rpc->loss, ATTND_PROTOCOL_ERROR,
                "a reply of the daemon cannot be read: %.180s", error.detail);
            (void)pthread_cond_broadcast(&rpc->answered);
        } else if (!deliver_locked(rpc, reply)) {
            return true;
        }
    }
}

enum attnd_status rpc_open(struct rpc *rpc, const char *directory, int wake_fd, struct loss *loss)
{
    char endpoint[ENDPOINT_BYTES];
    (void)snprintf(endpoint, sizeof endpoint, "ipc://%s/rpc.sock", directory);
    rpc->context = NULL;
    rpc->socket = NULL;
    rpc->monitor = NULL;
    if (!enough_descriptors()) {
        return error_set(ATTND_RESOURCE_EXHAUSTED,
            "the process has fewer than %d file descriptors left", NEEDED_DESCRIPTORS);
    }
    rpc->wake_fd = wake_fd;
    rpc->loss = loss;
    rpc->waiters = NULL;
    rpc->last_id = 0;
    rpc->context = zmq_ctx_new();
    rpc->socket = rpc->context ? zmq_socket(rpc->context, ZMQ_DEALER) : NULL;
    if (!rpc->socket || !configure(rpc, endpoint)) {
        enum attnd_status status = error_set(ATTND_RESOURCE_EXHAUSTED,
            "no connection to %s can be made: %s", endpoint, zmq_strerror(errno));
        close_sockets(rpc);
        return status;
    }
    clock_init_condition(&rpc->answered);
    (void)pthread_mutex_init(&rpc->mutex, NULL);
    return ATTND_OK;
}

void rpc_close(struct rpc *rpc, bool forked)
{
    if (forked || !rpc->context) {
        return;
    }
    close_sockets(rpc);
    (void)pthread_cond_destroy(&rpc->answered);
    (void)pthread_mutex_destroy(&rpc->mutex);
}

enum attnd_status rpc_send(struct rpc *rpc, struct wire_request *request, int64_t timeout_ns)
{
    (void)pthread_mutex_lock(&rpc->mutex);
    enum attnd_status status = send_locked(rpc, request, timeout_ns);
    (void)pthread_mutex_unlock(&rpc->mutex);
    return status;
}

enum attnd_status rpc_call(
    struct rpc *rpc, struct wire_request *request, struct wire_reply *reply, int64_t timeout_ns)
{
    (void)pthread_mutex_lock(&rpc->mutex);
    enum attnd_status status = send_locked(rpc, request, timeout_ns);
    if (status == ATTND_OK) {
        struct rpc_waiter waiter = {.next = rpc->waiters, .id = request->id, .reply = reply};
        rpc->waiters = &waiter;
        status = await_locked(rpc, &waiter, timeout_ns);
        remove_waiter(rpc, &waiter);
    }
    (void)pthread_mutex_unlock(&rpc->mutex);
    return status;
}

bool rpc_receive(struct rpc *rpc, struct wire_reply *reply)
{
    (void)pthread_mutex_lock(&rpc->mutex);
    bool received = receive_locked(rpc, reply);
    (void)pthread_mutex_unlock(&rpc->mutex);
    return received;
}

bool rpc_is_closed(struct rpc *rpc)
{
    char event[64]; /* of any size; it is cut to this */
    bool closed = false;
    int size = 0;
    while (size >= 0 || errno == EINTR) {
        size = zmq_recv(rpc->monitor, event, sizeof event, ZMQ_DONTWAIT);
        closed = closed || size >= 0;
    }
    return closed;
}

bool rpc_may_be_about_submission(const struct wire_reply *reply)
{
    return reply->id == 0 || (reply->id & SUBMISSION);
}

void rpc_release_waiters(struct rpc *rpc)
{
    (void)pthread_mutex_lock(&rpc->mutex);
    (void)pthread_cond_broadcast(&rpc->answered);
    (void)pthread_mutex_unlock(&rpc->mutex);
}

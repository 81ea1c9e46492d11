#include "gate.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "codec.h"

#define PACKET_BYTES 1024 /* no gate message comes near it */
#define RETRY_NS 1000000

static bool wait_until(int fd, short events, int64_t deadline)
{
    struct pollfd poller = {.fd = fd, .events = events};
    struct timespec left = clock_timespec(clock_left_ns(deadline, INT64_MAX));
    int ready = ppoll(&poller, 1, &left, NULL);
    return ready > 0 || (ready < 0 && errno == EINTR);
}

static enum attnd_status hung_up(struct gate *gate)
{
    loss_declare(gate->loss, ATTND_DISCONNECTED, "the daemon has closed the connection");
    return loss_check(gate->loss);
}

static enum attnd_status unreadable(struct gate *gate, const struct wire_error *error)
{
    loss_declare(gate->loss, ATTND_PROTOCOL_ERROR, "the daemon's answer cannot be read: %.180s",
        error->detail);
    (void)shutdown(gate->fd, SHUT_RDWR); /* wakes who polls it: streams are to be let go */
    return loss_check(gate->loss);
}

/* A status of this file becomes one of the API. */
static enum attnd_status conclude(enum attnd_status status, int64_t timeout_ns)
{
    return status != ATTND_TIMED_OUT
               ? status
               : error_set(ATTND_TIMED_OUT, "the daemon did not answer within %.3f s",
                     (double)timeout_ns / (double)CLOCK_SECOND_NS);
}

static enum attnd_status connect_failed(const char *path, int code)
{
    switch (code) {
    case ENOENT:
    case ENOTDIR:
        return error_set(ATTND_DISCONNECTED, "no daemon serves there: %s does not exist", path);
    case ECONNREFUSED:
        return error_set(ATTND_DISCONNECTED,
            "no daemon serves there: nobody listens on %s, which an ended daemon left", path);
    case EACCES:
    case EPERM:
        return error_set(ATTND_PERMISSION_DENIED, "this user may not connect to %s", path);
    case EAGAIN:
        return error_set(
            ATTND_DISCONNECTED, "the daemon behind %s does not accept connections in time", path);
    default:
        return error_set(
            ATTND_DISCONNECTED, "%s does not take a connection: %s", path, strerrordesc_np(code));
    }
}

/* A full backlog answers EAGAIN and offers nothing to poll for. */
static int connect_until(int fd, const struct sockaddr_un *address, int64_t deadline)
{
    for (;;) {
        if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0) {
            return 0;
        }
        if ((errno != EAGAIN && errno != EINTR) || clock_left_ns(deadline, 1) == 0) {
            return errno;
        }
        struct timespec pause = clock_timespec(RETRY_NS);
        (void)nanosleep(&pause, NULL);
    }
}

/* false: errno is EAGAIN after the deadline, or why the socket takes nothing. */
static bool send_packet(int socket, const void *bytes, size_t size, int fd, int64_t deadline)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part;
    memcpy(&part.iov_base, &bytes, sizeof bytes); /* sendmsg() does not write through it */
    part.iov_len = size;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    while (sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
        if (errno != EINTR && errno != EAGAIN) {
            return false;
        }
        if (!wait_until(socket, POLLOUT, deadline)) {
            errno = EAGAIN;
            return false;
        }
    }
    return true;
}

/* The size; 0: the daemon hung up; -1: the time is over. */
static ssize_t receive_packet(int socket, void *bytes, size_t capacity, int64_t deadline)
{
    bool reset = false;
    for (;;) {
        ssize_t size = recv(socket, bytes, capacity, 0);
        if (size >= 0) {
            return size;
        }
        if (errno == ECONNRESET && !reset) {
            reset = true; /* the daemon left our packet unread; its parting words lie behind this */
        } else if (errno != EINTR && errno != EAGAIN) {
            return 0;
        } else if (!wait_until(socket, POLLIN, deadline)) {
            return -1;
        }
    }
}

/* Late replies are told apart by their numbers: the lowest bit is set where a region was added. */
static uint32_t next_id(struct gate *gate, enum wire_gate_kind kind)
{
    gate->last_id = gate->last_id + 2 != 0 ? gate->last_id + 2 : 2;
    return gate->last_id | (kind == WIRE_GATE_ADD_REGION ? 1 : 0);
}

static bool is_about_new_region(uint32_t id)
{
    return (id & 1) != 0;
}

/* An exchange that ran out of time left a region behind that nobody knows. */
static void drop_late_region(struct gate *gate, uint32_t region, int64_t deadline)
{
    struct wire_gate_request request = {.id = next_id(gate, WIRE_GATE_DROP_REGION),
        .kind = WIRE_GATE_DROP_REGION,
        .region = region};
    uint8_t packet[PACKET_BYTES];
    size_t size = codec_encode_gate_request(&request, packet, sizeof packet);
    (void)send_packet(gate->fd, packet, size, -1, deadline);
}

static enum attnd_status await_reply(
    struct gate *gate, uint32_t id, struct wire_gate_reply *reply, int64_t deadline)
{
    uint8_t packet[PACKET_BYTES];
    for (;;) {
        ssize_t size = receive_packet(gate->fd, packet, sizeof packet, deadline);
        if (size <= 0) {
            return size == 0 ? hung_up(gate) : ATTND_TIMED_OUT;
        }
        struct wire_error error;
        if (!codec_decode_gate_reply(packet, (size_t)size, reply, &error)) {
            return unreadable(gate, &error);
        }
        /* Who is turned away before the daemon reads a word gets an answer to no question. */
        if (reply->id == id || (reply->id == 0 && reply->error.status != WIRE_OK)) {
            return ATTND_OK;
        }
        if (reply->region != 0 && is_about_new_region(reply->id)) {
            drop_late_region(gate, reply->region, deadline);
        }
    }
}

/* Sets request->id, to 0 where nothing was sent. That the daemon has hung up is told by what waits for
 * the reply, behind its parting words. */
static enum attnd_status send_request(
    struct gate *gate, struct wire_gate_request *request, int fd, int64_t deadline)
{
    uint8_t packet[PACKET_BYTES];
    request->id = next_id(gate, request->kind);
    size_t size = codec_encode_gate_request(request, packet, sizeof packet);
    if (send_packet(gate->fd, packet, size, fd, deadline) || errno == EPIPE ||
        errno == ECONNRESET) {
        return ATTND_OK;
    }
    request->id = 0;
    return errno == EAGAIN
               ? ATTND_TIMED_OUT
               : error_set(ATTND_RESOURCE_EXHAUSTED,
                     "a descriptor cannot be passed to the daemon: %s", strerrordesc_np(errno));
}

static enum attnd_status send_all(
    struct gate *gate, struct gate_message *message, size_t count, size_t *sent, int64_t timeout_ns)
{
    enum attnd_status status = ATTND_OK;
    *sent = 0;
    for (size_t i = 0; i < count; i++) {
        if (status == ATTND_OK) {
            status =
                send_request(gate, &message[i].request, message[i].fd, clock_deadline(timeout_ns));
            *sent += status == ATTND_OK;
        }
        (void)close(message[i].fd);
    }
    return status;
}

/* Also the replies behind the first refusal, which would else be in the way of later ones. */
static enum attnd_status await_all(struct gate *gate, const struct gate_message *message,
    size_t count, size_t *done, struct wire_gate_reply *last, int64_t timeout_ns)
{
    for (size_t i = 0; i < count; i++) {
        struct wire_gate_reply reply = {0};
        enum attnd_status status =
            await_reply(gate, message[i].request.id, &reply, clock_deadline(timeout_ns));
        if (status != ATTND_OK) {
            return status;
        }
        if (last->error.status == WIRE_OK) {
            *last = reply;
            *done += reply.error.status == WIRE_OK;
        }
    }
    return ATTND_OK;
}

/* One exchange at a time. The mutex is not held during it: who waits for it has a deadline. */
static enum attnd_status enter(struct gate *gate, int64_t deadline)
{
    struct timespec until = clock_timespec(deadline);
    (void)pthread_mutex_lock(&gate->mutex);
    while (gate->busy && clock_left_ns(deadline, 1) != 0) {
        (void)pthread_cond_timedwait(&gate->left, &gate->mutex, &until);
    }
    enum attnd_status status = gate->busy ? ATTND_TIMED_OUT : loss_check(gate->loss);
    gate->busy = gate->busy || status == ATTND_OK;
    (void)pthread_mutex_unlock(&gate->mutex);
    return status;
}

static void leave(struct gate *gate)
{
    (void)pthread_mutex_lock(&gate->mutex);
    gate->busy = false;
    (void)pthread_cond_signal(&gate->left);
    (void)pthread_mutex_unlock(&gate->mutex);
}

enum attnd_status gate_open(
    struct gate *gate, const char *directory, struct loss *loss, int64_t timeout_ns)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s/gate.sock", directory);
    if (length < 0 || (size_t)length >= sizeof address.sun_path) {
        return error_set(ATTND_INVALID_ARGUMENT,
            "options->address is %zu bytes long; a socket's path has room for %zu",
            strlen(directory), sizeof address.sun_path - sizeof "/gate.sock");
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return error_set(
            ATTND_RESOURCE_EXHAUSTED, "no socket can be made: %s", strerrordesc_np(errno));
    }
    int code = connect_until(fd, &address, clock_deadline(timeout_ns));
    if (code != 0) {
        (void)close(fd);
        return connect_failed(address.sun_path, code);
    }
    *gate = (struct gate){.fd = fd, .loss = loss};
    (void)pthread_mutex_init(&gate->mutex, NULL);
    clock_init_condition(&gate->left);
    return ATTND_OK;
}

void gate_close(struct gate *gate, bool forked)
{
    if (gate->fd < 0) {
        return;
    }
    if (!forked) {
        (void)shutdown(gate->fd, SHUT_RDWR); /* also where a child still holds the descriptor */
        (void)pthread_cond_destroy(&gate->left);
        (void)pthread_mutex_destroy(&gate->mutex);
    }
    (void)close(gate->fd);
    gate->fd = -1;
}

enum attnd_status gate_exchange(struct gate *gate, struct wire_gate_request *request, int fd,
    struct wire_gate_reply *reply, int64_t timeout_ns)
{
    int64_t deadline = clock_deadline(timeout_ns);
    request->id = 0;
    enum attnd_status status = enter(gate, deadline);
    if (status == ATTND_OK) {
        status = send_request(gate, request, fd, deadline);
        if (status == ATTND_OK) {
            status = await_reply(gate, request->id, reply, deadline);
        }
        leave(gate);
    }
    return conclude(status, timeout_ns);
}

enum attnd_status gate_exchange_all(struct gate *gate, struct gate_message *message, size_t count,
    size_t *done, struct wire_gate_reply *reply, int64_t timeout_ns)
{
    *done = 0;
    *reply = (struct wire_gate_reply){0};
    enum attnd_status status = enter(gate, clock_deadline(timeout_ns));
    if (status != ATTND_OK) {
        for (size_t i = 0; i < count; i++) {
            (void)close(message[i].fd);
        }
        return conclude(status, timeout_ns);
    }
    size_t sent;
    enum attnd_status sending = send_all(gate, message, count, &sent, timeout_ns);
    bool late = sending == ATTND_TIMED_OUT;
    status = await_all(gate, message, sent, done, reply, late ? 0 : timeout_ns);
    leave(gate);
    if (status == ATTND_OK && reply->error.status == WIRE_OK) {
        status = sending;
    }
    return conclude(status, timeout_ns);
}

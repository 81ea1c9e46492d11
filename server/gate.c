#include "gate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "codec.h"
#include "log.h"
#include "packet.h"

#define BACKLOG 128
#define CONNECTIONS_PER_TURN 16
#define PACKETS_PER_TURN 8 /* of one connection; then others get their turn */
#define MAX_CLOSINGS 128   /* descriptors of one user that are not yet closed */
#define SPARE_CONNECTIONS 64
#define SPARE_CONNECTIONS_PER_UID 16 /* such as have no session and learn why */

struct connection {
    struct list_node node;
    struct gate *gate;       /* borrowed */
    struct session *session; /* borrowed; NULL: none yet */
    struct ucred peer;
    int fd;
    int process; /* pidfd of the peer; -1: its process cannot be seen from here */
    bool is_closed;
    unsigned references; /* handles, the request that workers have, and the closing */
    uv_poll_t poll;
    uv_poll_t process_poll;
    struct worker_task closing;

    /* The request that workers have. */
    bool is_waiting;
    uint32_t request_id;
    uint32_t minor; /* that the client speaks */
    struct worker_task fence;
};

static void release(struct connection *connection)
{
    if (--connection->references == 0) {
        free(connection);
    }
}

static void on_packets(uv_poll_t *poll, int status, int events);

static void on_closed(uv_handle_t *handle)
{
    release(handle->data);
}

static void close_socket(struct worker_task *task)
{
    (void)close(list_entry(task, struct connection, closing)->fd);
}

static void on_socket_closed(struct worker_task *task)
{
    release(list_entry(task, struct connection, closing));
}

/* What was sent to it and not yet received goes with the socket, and that may be gigabytes of memory. */
static void give_socket(struct connection *connection)
{
    (void)shutdown(connection->fd, SHUT_RDWR);
    connection->closing = (struct worker_task){
        .uid = connection->peer.uid, .work = close_socket, .done = on_socket_closed};
    connection->references++;
    worker_give(connection->gate->sessions->options.unmapper, &connection->closing);
}

static void close_connection(struct connection *connection)
{
    struct gate *gate = connection->gate;

    if (connection->session != NULL) {
        session_close(gate->sessions, connection->session);
        connection->session = NULL;
    }
    list_remove(&connection->node);
    gate->count--;
    connection->is_closed = true;
    /* uv_close() stops the polling at once, so the descriptors may go. */
    uv_close((uv_handle_t *)&connection->poll, on_closed);
    give_socket(connection);
    if (connection->process >= 0) {
        uv_close((uv_handle_t *)&connection->process_poll, on_closed);
        (void)close(connection->process);
    }
}

/* Closing one may free gigabytes of memory, or ask a file system whose server never answers: on this
 * thread neither. Only memory has seals, and asking for them asks no file system. */
static void let_go(const struct connection *connection, int fd)
{
    const struct gate *gate = connection->gate;

    if (fcntl(fd, F_GET_SEALS) >= 0) {
        worker_close(gate->sessions->options.unmapper, connection->peer.uid, fd);
    } else {
        worker_close(gate->closer, connection->peer.uid, fd);
    }
}

static void log_refusal(const struct connection *connection, const struct wire_error *error)
{
    log_debug("gate: pid=%d refused: %s: %s", (int)connection->peer.pid,
        wire_status_name(error->status), error->detail);
}

/* Of a connection whose request is with the workers, or of the peer's process: children may hold the
 * connection open after that. */
static void on_end(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    close_connection(poll->data);
}

static void start_waiting(struct connection *connection, const struct wire_gate_request *request)
{
    connection->is_waiting = true;
    connection->request_id = request->id;
    connection->references++;
    (void)uv_poll_start(&connection->poll, UV_DISCONNECT, on_end);
}

/* The workers are done with the request; the connection may be closed meanwhile. */
static void stop_waiting(struct connection *connection, const struct wire_gate_reply *reply)
{
    connection->is_waiting = false;
    if (!connection->is_closed) {
        if (packet_send(connection->fd, reply)) {
            (void)uv_poll_start(&connection->poll, UV_READABLE, on_packets);
        } else {
            close_connection(connection);
        }
    }
    release(connection);
}

static void refuse(struct connection *connection, int fd, struct wire_gate_reply *reply,
    const struct wire_error *error)
{
    reply->error = *error;
    log_refusal(connection, error);
    if (fd >= 0) {
        let_go(connection, fd);
    }
}

static void describe(const struct connection *connection, struct wire_gate_reply *reply)
{
    reply->has_session = true;
    session_describe(connection->gate->sessions, connection->session, &reply->session);
    if (connection->minor < reply->session.minor) {
        reply->session.minor = connection->minor;
    }
}

static void on_session(void *context, int fd, const struct wire_error *error)
{
    struct connection *connection = context;
    struct wire_gate_reply reply = {.id = connection->request_id};

    if (error != NULL) {
        connection->session = NULL;
        refuse(connection, fd, &reply, error);
    } else {
        describe(connection, &reply);
    }
    stop_waiting(connection, &reply);
}

static void on_region(void *context, uint32_t number, int fd, const struct wire_error *error)
{
    struct connection *connection = context;
    struct wire_gate_reply reply = {.id = connection->request_id, .region = number};

    if (number == 0) {
        refuse(connection, fd, &reply, error);
    }
    stop_waiting(connection, &reply);
}

/* On the unmapper's thread, behind all that was to be unmapped. */
static void pass_fence(struct worker_task *task)
{
    (void)task;
}

static void on_fence(struct worker_task *task)
{
    struct connection *connection = list_entry(task, struct connection, fence);
    const struct wire_gate_reply reply = {.id = connection->request_id};

    stop_waiting(connection, &reply);
}

static bool open_session(struct connection *connection, const struct wire_gate_request *request,
    int fd, struct wire_error *error)
{
    if (connection->session != NULL) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "this connection has a session");
    }
    connection->session = session_open(connection->gate->sessions, request, connection->peer.uid,
        (int)connection->peer.pid, fd, on_session, connection, error);
    connection->minor = request->minor;
    return connection->session != NULL;
}

static bool add_region(struct connection *connection, const struct wire_gate_request *request,
    int fd, struct wire_error *error)
{
    struct backend_offer offer = {
        .kind = request->memory, .bytes = request->bytes, .reserve = request->reserve, .fd = fd};

    memcpy(offer.handle, request->handle, sizeof(offer.handle));
    return session_add_region(
        connection->gate->sessions, connection->session, &offer, on_region, connection, error);
}

static bool extend_region(struct connection *connection, const struct wire_gate_request *request,
    int fd, struct wire_error *error)
{
    const struct backend_offer piece = {
        .kind = WIRE_MEMORY_CUDA_VMM, .bytes = request->bytes, .fd = fd};

    return session_extend_region(connection->gate->sessions, connection->session, request->region,
        request->offset, &piece, on_region, connection, error);
}

static bool trim(struct connection *connection)
{
    connection->fence =
        (struct worker_task){.uid = connection->peer.uid, .work = pass_fence, .done = on_fence};
    region_trim(&connection->session->regions, &connection->fence);
    return true;
}

static bool drop_region(struct connection *connection, const struct wire_gate_request *request,
    struct wire_error *error)
{
    return region_drop(&connection->session->regions, request->region) ||
           wire_fail(
               error, WIRE_NOT_FOUND, "the session has no region %u", (unsigned)request->region);
}

/* How many a request comes with. */
static unsigned descriptors_of(const struct wire_gate_request *request)
{
    switch (request->kind) {
    case WIRE_GATE_OPEN:
    case WIRE_GATE_EXTEND_REGION:
        return 1;
    case WIRE_GATE_ADD_REGION:
        return request->memory != WIRE_MEMORY_CUDA_IPC;
    default:
        return 0;
    }
}

/* Does the request, or has workers do it and is waiting then. They take its descriptor. */
static bool dispatch(struct connection *connection, struct packet *packet,
    const struct wire_gate_request *request, struct wire_error *error)
{
    int fd = packet->descriptors > 0 ? packet->descriptor[0] : -1;
    bool good = false;

    if (request->kind != WIRE_GATE_OPEN && connection->session == NULL) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "this connection has no session; it must be opened first");
    }
    switch (request->kind) {
    case WIRE_GATE_OPEN:
        good = open_session(connection, request, fd, error);
        break;
    case WIRE_GATE_ADD_REGION:
        good = add_region(connection, request, fd, error);
        break;
    case WIRE_GATE_EXTEND_REGION:
        good = extend_region(connection, request, fd, error);
        break;
    case WIRE_GATE_TRIM:
        good = trim(connection);
        break;
    case WIRE_GATE_DROP_REGION:
        return drop_region(connection, request, error);
    case WIRE_GATE_NONE:
        return wire_fail(
            error, WIRE_PROTOCOL_ERROR, "the message asks for nothing that this daemon knows");
    }
    if (good) {
        start_waiting(connection, request);
        packet->descriptors = 0;
    }
    return good;
}

static bool answer(
    struct connection *connection, struct packet *packet, struct wire_gate_reply *reply)
{
    struct wire_gate_request request = {0};

    if (packet->cut) {
        return wire_fail(&reply->error, WIRE_PROTOCOL_ERROR, "the message has more than %d bytes",
            WIRE_MAX_MESSAGE_BYTES);
    }
    bool decoded = codec_decode_gate_request(packet->bytes, packet->size, &request, &reply->error);
    reply->id = request.id;
    if (!decoded) {
        return false;
    }
    return packet_check(packet, descriptors_of(&request), &reply->error) &&
           dispatch(connection, packet, &request, &reply->error);
}

/* Either thread may be held up for long, and what it has not closed counts towards the program's limit
 * of descriptors. */
static bool has_many_closings(const struct connection *connection)
{
    const struct gate *gate = connection->gate;
    uint32_t uid = connection->peer.uid;

    return worker_closings(gate->closer, uid) +
               worker_closings(gate->sessions->options.unmapper, uid) >=
           MAX_CLOSINGS;
}

/* As packet_receive(). Who has too many is hung up on, so that a worker lets go of what is in the socket:
 * taken without room for them, the kernel would do so on this thread. */
static int receive(const struct connection *connection, struct packet *packet)
{
    if (has_many_closings(connection) && packet_has_descriptors(connection->fd)) {
        log_debug("gate: pid=%d hung up on: too many of its user's descriptors are not yet closed",
            (int)connection->peer.pid);
        return -1;
    }
    return packet_receive(connection->fd, packet);
}

/* false: the connection is to be closed. */
static bool handle_packet(struct connection *connection, struct packet *packet)
{
    struct wire_gate_reply reply = {0};

    if (answer(connection, packet, &reply)) {
        reply.error.status = WIRE_OK;
    } else {
        log_refusal(connection, &reply.error);
    }
    for (unsigned i = 0; i < packet->descriptors; i++) {
        let_go(connection, packet->descriptor[i]);
    }
    return connection->is_waiting || packet_send(connection->fd, &reply);
}

static void on_packets(uv_poll_t *poll, int status, int events)
{
    struct connection *connection = poll->data;
    struct packet packet;

    (void)events;
    for (int i = 0; i < PACKETS_PER_TURN && !connection->is_waiting; i++) {
        int received = status < 0 ? -1 : receive(connection, &packet);
        if (received == 0) {
            return;
        }
        if (received < 0 || !handle_packet(connection, &packet)) {
            close_connection(connection);
            return;
        }
    }
}

/* Watches the peer's process; false only if it has ended already or the system is short of
 * something. One in another pid namespace cannot be watched: its connection has to do. */
static bool watch_process(struct connection *connection, uv_loop_t *loop)
{
    if (connection->peer.pid == 0) {
        return true;
    }
    connection->process = (int)syscall(SYS_pidfd_open, connection->peer.pid, 0);
    if (connection->process < 0) {
        return false;
    }
    if (uv_poll_init(loop, &connection->process_poll, connection->process) != 0) {
        (void)close(connection->process);
        connection->process = -1;
        return false;
    }
    connection->references++;
    connection->process_poll.data = connection;
    (void)uv_poll_start(&connection->process_poll, UV_READABLE, on_end);
    return true;
}

static bool has_room(const struct gate *gate, uint32_t uid)
{
    const struct session_options *options = &gate->sessions->options;
    uint32_t same = 0;

    list_for_each(node, &gate->connections) {
        same += list_entry(node, struct connection, node)->peer.uid == uid;
    }
    uint32_t most = options->max_sessions_per_uid + SPARE_CONNECTIONS_PER_UID;

    return gate->count < options->max_sessions + SPARE_CONNECTIONS && same < most &&
           worker_count(options->unmapper, uid, close_socket) < most;
}

static bool add_connection(struct gate *gate, int fd)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !has_room(gate, peer.uid)) {
        return false;
    }
    struct connection *connection = calloc(1, sizeof(*connection));
    if (connection == NULL) {
        return false;
    }
    *connection = (struct connection){.gate = gate, .peer = peer, .fd = fd, .process = -1};
    if (uv_poll_init(gate->poll.loop, &connection->poll, fd) != 0) {
        free(connection);
        return false;
    }
    connection->references = 1;
    connection->poll.data = connection;
    list_append(&gate->connections, &connection->node);
    gate->count++;
    if (watch_process(connection, gate->poll.loop)) {
        (void)uv_poll_start(&connection->poll, UV_READABLE, on_packets);
    } else {
        close_connection(connection);
    }
    return true;
}

static void on_connections(uv_poll_t *poll, int status, int events)
{
    struct gate *gate = poll->data;

    (void)status;
    (void)events;
    for (int i = 0; i < CONNECTIONS_PER_TURN; i++) {
        /* The door's, as everywhere in this program. */
        int fd = accept4(gate->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno != ECONNABORTED && errno != EINTR) {
            return;
        }
        if (fd >= 0 && !add_connection(gate, fd)) {
            (void)close(fd);
        }
    }
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd >= 0 && (bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
                       listen(fd, BACKLOG) != 0)) {
        int code = errno;
        (void)close(fd);
        errno = code;
        return -1;
    }
    return fd;
}

bool gate_open(struct gate *gate, uv_loop_t *loop, const char *path, struct session_table *sessions,
    struct worker *closer)
{
    *gate = (struct gate){.sessions = sessions, .closer = closer, .listener = listen_at(path)};
    list_init(&gate->connections);
    if (gate->listener < 0) {
        return false;
    }
    int code = uv_poll_init(loop, &gate->poll, gate->listener);
    if (code != 0) {
        (void)close(gate->listener);
        gate->listener = -1;
        errno = -code;
        return false;
    }
    gate->poll.data = gate;
    (void)uv_poll_start(&gate->poll, UV_READABLE, on_connections);
    return true;
}

void gate_close(struct gate *gate)
{
    if (gate->listener < 0) {
        return;
    }
    list_for_each(node, &gate->connections) {
        close_connection(list_entry(node, struct connection, node));
    }
    uv_close((uv_handle_t *)&gate->poll, NULL);
    (void)close(gate->listener);
    gate->listener = -1;
}

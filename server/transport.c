#include "transport.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "wire.h"

#define MESSAGES_PER_TURN 64 /* then the gate and the engine get their turn */
#define UNREAD_REPLIES 1024  /* of a peer, before more are dropped */
#define UNREAD_REQUESTS 64   /* of a peer, before it has to wait: each may have 64 KiB */
#define BACKLOG 4096         /* a connect that finds it full fails; the kernel may cut it */
#define HANDSHAKE_MS 2000    /* a connection that does not speak ZMTP is closed after this */

static bool readable(const struct transport *transport)
{
    int events = 0;
    size_t size = sizeof(events);

    return zmq_getsockopt(transport->socket, ZMQ_EVENTS, &events, &size) == 0 &&
           (events & ZMQ_POLLIN) != 0;
}

static bool receive_frame(struct transport *transport, zmq_msg_t *frame)
{
    int received = 0;

    do {
        received = zmq_msg_recv(frame, transport->socket, ZMQ_DONTWAIT);
    } while (received < 0 && errno == EINTR);
    return received >= 0;
}

static void set_peer(struct transport_peer *peer, const uint8_t *name, size_t size)
{
    uint32_t key = UINT32_C(2166136261); /* FNV-1a */

    for (size_t i = 0; i < size; i++) {
        key = (key ^ name[i]) * UINT32_C(16777619);
    }
    peer->key = key;
    peer->size = (uint8_t)size;
    memcpy(peer->bytes, name, size);
}

/* The frames past the second; how many there were. */
static unsigned skip_frames(struct transport *transport, zmq_msg_t *frame)
{
    unsigned skipped = 0;

    while (zmq_msg_more(frame) && receive_frame(transport, frame)) {
        skipped++;
    }
    return skipped;
}

/* A message is the peer's name, added by the socket, and one frame of the peer's; anything else is
 * dropped. */
static void receive_body(
    struct transport *transport, const struct transport_peer *peer, zmq_msg_t *body)
{
    if (!receive_frame(transport, body)) {
        transport->malformed++;
        return;
    }
    if (!zmq_msg_more(body) && zmq_msg_size(body) > 0) {
        transport->receive(
            transport->receive_context, peer, zmq_msg_data(body), zmq_msg_size(body));
        return;
    }
    (void)skip_frames(transport, body);
    transport->malformed++;
}

/* false: nothing was there. */
static bool receive_message(struct transport *transport)
{
    struct transport_peer peer;
    zmq_msg_t name;
    zmq_msg_t body;

    (void)zmq_msg_init(&name);
    (void)zmq_msg_init(&body);
    bool received = receive_frame(transport, &name);
    if (received && zmq_msg_more(&name) && zmq_msg_size(&name) <= sizeof(peer.bytes)) {
        set_peer(&peer, zmq_msg_data(&name), zmq_msg_size(&name));
        receive_body(transport, &peer, &body);
    } else if (received) {
        transport->malformed++;
    }
    (void)zmq_msg_close(&name);
    (void)zmq_msg_close(&body);
    return received;
}

/*
 * ZMQ_FD becomes readable once when the socket's state changes, and any send or receive may eat that
 * change. So the descriptor only ends the loop's sleep; whether there is something to receive is
 * asked of the socket itself right before each sleep (prepare), and if so, the sleep is cut to
 * nothing (idle) and the messages are taken after it (check).
 */
static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)poll;
    (void)status;
    (void)events;
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle;
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct transport *transport = prepare->data;

    if (readable(transport)) {
        (void)uv_idle_start(&transport->idle, on_idle);
    }
}

static void on_check(uv_check_t *check)
{
    struct transport *transport = check->data;

    (void)uv_idle_stop(&transport->idle);
    for (int i = 0; i < MESSAGES_PER_TURN && receive_message(transport); i++) {}
}

static bool set_option(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof(value)) == 0;
}

static bool set_options(void *socket)
{
    int64_t largest = WIRE_MAX_MESSAGE_BYTES;

    return set_option(socket, ZMQ_ROUTER_MANDATORY, 1) && set_option(socket, ZMQ_LINGER, 0) &&
           set_option(socket, ZMQ_SNDHWM, UNREAD_REPLIES) &&
           set_option(socket, ZMQ_RCVHWM, UNREAD_REQUESTS) &&
           set_option(socket, ZMQ_BACKLOG, BACKLOG) &&
           set_option(socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS) &&
           zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof(largest)) == 0;
}

static bool open_socket(struct transport *transport, const char *path)
{
    char address[128];

    transport->context = zmq_ctx_new();
    if (transport->context == NULL) {
        return false;
    }
    transport->socket = zmq_socket(transport->context, ZMQ_ROUTER);
    (void)snprintf(address, sizeof(address), "ipc://%s", path);
    return transport->socket != NULL && set_options(transport->socket) &&
           zmq_bind(transport->socket, address) == 0;
}

static void close_socket(struct transport *transport)
{
    if (transport->socket != NULL) {
        (void)zmq_close(transport->socket);
    }
    while (transport->context != NULL && zmq_ctx_term(transport->context) != 0 && errno == EINTR) {}
    transport->socket = NULL;
    transport->context = NULL;
}

static bool send_frames(struct transport *transport, const struct transport_peer *peer,
    const uint8_t *bytes, size_t size)
{
    /* With ROUTER_MANDATORY the first frame fails if the peer has gone or its queue is full. */
    return zmq_send(transport->socket, peer->bytes, peer->size, ZMQ_DONTWAIT | ZMQ_SNDMORE) >= 0 &&
           zmq_send(transport->socket, bytes, size, ZMQ_DONTWAIT) >= 0;
}

bool transport_open(struct transport *transport, uv_loop_t *loop, const char *path,
    transport_receive_fn receive, void *context)
{
    int fd = -1;
    size_t size = sizeof(fd);

    *transport = (struct transport){.receive = receive, .receive_context = context};
    if (!open_socket(transport, path) ||
        zmq_getsockopt(transport->socket, ZMQ_FD, &fd, &size) != 0 ||
        uv_poll_init(loop, &transport->poll, fd) != 0) {
        int code = errno;
        close_socket(transport);
        errno = code;
        return false;
    }
    (void)uv_prepare_init(loop, &transport->prepare);
    (void)uv_check_init(loop, &transport->check);
    (void)uv_idle_init(loop, &transport->idle);
    transport->prepare.data = transport;
    transport->check.data = transport;
    (void)uv_poll_start(&transport->poll, UV_READABLE, on_readable);
    (void)uv_prepare_start(&transport->prepare, on_prepare);
    (void)uv_check_start(&transport->check, on_check);
    return true;
}

bool transport_send(struct transport *transport, const struct transport_peer *peer,
    const uint8_t *bytes, size_t size)
{
    bool sent = send_frames(transport, peer, bytes, size);

    transport->unsent += !sent;
    return sent;
}

void transport_close(struct transport *transport)
{
    if (transport->socket == NULL) {
        return;
    }
    uv_close((uv_handle_t *)&transport->poll, NULL);
    uv_close((uv_handle_t *)&transport->prepare, NULL);
    uv_close((uv_handle_t *)&transport->check, NULL);
    uv_close((uv_handle_t *)&transport->idle, NULL);
    close_socket(transport);
}

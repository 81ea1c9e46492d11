/*
 * The ZeroMQ socket of the requests: whole messages in, whole messages out, on the event loop.
 *
 * The only user of libzmq. I/O thread only. Looks into no message and knows no session; a peer's
 * name is what the socket gave it, and holds for as long as the peer is connected.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <uv.h>

struct transport_peer {
    uint32_t key; /* of the name: differing keys mean differing peers */
    uint8_t size;
    uint8_t bytes[255];
};

typedef void (*transport_receive_fn)(
    void *context, const struct transport_peer *peer, const uint8_t *bytes, size_t size);

struct transport {
    void *context;
    void *socket;
    uv_poll_t poll;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    transport_receive_fn receive;
    void *receive_context;
    uint64_t malformed; /* messages dropped for their number of frames */
    uint64_t unsent;    /* messages dropped because the peer has gone or does not read */
};

/* Binds ipc://path. false: errno says why, and nothing is left open. */
bool transport_open(struct transport *transport, uv_loop_t *loop, const char *path,
    transport_receive_fn receive, void *context);

/* Never waits. false: the peer has gone or does not read; counted. */
bool transport_send(struct transport *transport, const struct transport_peer *peer,
    const uint8_t *bytes, size_t size);

static inline bool transport_peer_equal(
    const struct transport_peer *a, const struct transport_peer *b)
{
    return a->key == b->key && a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

/* Closes the socket; the struct must stay until the loop has run its closing callbacks. */
void transport_close(struct transport *transport);

/*
 * The client's end of gate.sock: opening the session and passing descriptors, one exchange at a time.
 * Any thread. Who polls the descriptor for the daemon's end does so elsewhere (watch.h).
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "loss.h"
#include "wire.h"

struct gate {
    int fd;                /* -1: not open */
    pthread_mutex_t mutex; /* of `busy`; takes no other */
    pthread_cond_t left;
    bool busy;         /* an exchange goes on: what follows is its thread's */
    uint32_t last_id;  /* even */
    struct loss *loss; /* borrowed; declared when the daemon hangs up */
};

struct gate_message {
    struct wire_gate_request request;
    int fd; /* travels along */
};

/* Connects. On failure there is nothing to close. */
enum attnd_status gate_open(
    struct gate *gate, const char *directory, struct loss *loss, int64_t timeout_ns);

/* Ends the session. In a child of fork() only the child's descriptor is closed. */
void gate_close(struct gate *gate, bool forked);

/*
 * One round trip; `fd` travels along unless it is -1. Sets request->id, to 0 where nothing was sent.
 * ATTND_OK also if the daemon refused: reply->error says so. ATTND_TIMED_OUT: no answer, the daemon may
 * have acted on what was sent or not.
 */
enum attnd_status gate_exchange(struct gate *gate, struct wire_gate_request *request, int fd,
    struct wire_gate_reply *reply, int64_t timeout_ns);

/*
 * Several round trips that take little longer than one: all messages are sent before the first reply is
 * awaited. Closes their descriptors, each as soon as it is sent. *done: so many the daemon did, before the
 * first that it refused, if any: *reply says so, and ATTND_OK is returned then. The time is that for each
 * message and each reply.
 */
enum attnd_status gate_exchange_all(struct gate *gate, struct gate_message *message, size_t count,
    size_t *done, struct wire_gate_reply *reply, int64_t timeout_ns);

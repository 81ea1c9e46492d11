/*
 * The client's end of gate.sock: opening the session and passing descriptors, one exchange at a time.
 * Any thread. Who polls the descriptor for the daemon's end does so elsewhere (watch.h).
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

#include "attnd.h"
#include "loss.h"
#include "wire.h"

struct gate {
    int fd; /* -1: not open */
    pthread_mutex_t mutex;
    uint32_t last_id;  /* even */
    struct loss *loss; /* borrowed; declared when the daemon hangs up */
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

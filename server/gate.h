/*
 * The gate: the unix socket at which clients open their session and pass descriptors.
 *
 * A connection is a session's life line: when it closes, or its process ends, the session ends. It
 * takes one request at a time: while a worker maps what one asked for, later ones stay in the socket.
 * Who may connect at all is the door's business. I/O thread only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "list.h"
#include "session.h"
#include "worker.h"

struct gate {
    struct session_table *sessions; /* borrowed */
    struct worker *closer;          /* borrowed; for descriptors that are no sealed memory */
    int listener;                   /* descriptor; -1: closed */
    uv_poll_t poll;
    struct list connections;
    uint32_t count;
};

/* false: errno says why, and nothing is left open. */
bool gate_open(struct gate *gate, uv_loop_t *loop, const char *path, struct session_table *sessions,
    struct worker *closer);

/* Closes all connections and with them their sessions. The struct must stay until the loop has run
 * its closing callbacks and the sessions' workers have been destroyed. Accepts what gate_open() failed on. */
void gate_close(struct gate *gate);

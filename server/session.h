/*
 * Sessions: what the daemon knows of each client, in a fixed number of slots.
 *
 * A slot goes opening -> open -> closing -> free: opening lasts until a worker has mapped its control
 * page, closing until the engine no longer refers to it; only then is its memory given to a worker and
 * the slot used again. I/O thread only. Knows neither the gate's connections nor messages: gate.c opens
 * and closes sessions, request.c works for them.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "control.h"
#include "engine.h"
#include "plan.h"
#include "region.h"
#include "transport.h"
#include "wire.h"
#include "worker.h"

#define SESSION_SPARE_SLOTS 64 /* for closing sessions, so that others may open */

enum session_state {
    SESSION_FREE,
    SESSION_OPENING,
    SESSION_OPEN,
    SESSION_CLOSING,
};

struct session_counters {
    struct wire_counters shown; /* its "now" fields are filled in when they are asked for */
    uint64_t last_group;        /* members of a group end one after another */
};

/* On the thread that collects. NULL: the session is open. Else *error says why not, and fd is the
 * descriptor that was not taken, or -1. */
typedef void session_done_fn(void *context, int fd, const struct wire_error *error);

struct session_table;

struct session {
    enum session_state state;
    struct session_table *table; /* borrowed */
    uint32_t slot;
    uint32_t id; /* on the wire; never given twice */
    uint8_t token[WIRE_TOKEN_BYTES];
    uint32_t uid;
    int pid; /* for the log */
    char name[WIRE_NAME_BYTES];
    bool bound; /* HELLO was said, by `peer` */
    struct transport_peer peer;
    struct control *control; /* owned */
    session_done_fn *done;   /* called once it is open, or will not be */
    void *done_context;
    struct region_set regions;
    struct plan **plan; /* owned; number n at [n - 1], NULL: free */
    uint32_t plans;
    uint32_t next_sequence[PAGE_LANES];
    uint32_t in_flight;
    struct session_counters counters;
};

struct session_options {
    struct backend *backend; /* borrowed */
    struct engine *engine;   /* borrowed */
    struct worker *mapper;   /* borrowed */
    struct worker *unmapper; /* borrowed */
    uint32_t max_sessions;
    uint32_t max_sessions_per_uid;
    uint64_t region_bytes_per_uid;
    bool any_ipc_user;         /* else one user at a time has CUDA_IPC regions */
    struct wire_limits limits; /* of each session */
};

struct session_table {
    struct session_options options;
    struct session *session; /* owned; session_slots() of them */
    uint32_t open;           /* sessions, and those opening */
    uint32_t next_id;
    uint32_t in_flight; /* of all sessions */
    bool draining;
    struct session_counters counters;
    uint64_t started_ns;

    /* Takes back what the engine is done with, so that nothing is refused for what has ended. */
    void (*collect)(void *context);
    void *collect_context;
};

/* All that may be there at a time: numbers of slots are below. */
uint32_t session_slots(const struct session_options *options);

bool session_table_init(struct session_table *table, const struct session_options *options);

/* After the engine's end. Accepts zeroes. */
void session_table_finish(struct session_table *table);

/* A new session for the process that uid and pid name, which opens when its control page is mapped; then
 * `done` is called, also if it is closed before. NULL with *error: `done` will not be called. */
struct session *session_open(struct session_table *table, const struct wire_gate_request *request,
    uint32_t uid, int pid, int page_fd, session_done_fn *done, void *context,
    struct wire_error *error);

/* What its client is told about it. */
void session_describe(const struct session_table *table, const struct session *session,
    struct wire_session *description);

/* What anybody may know of the daemon. */
void session_info(const struct session_table *table, struct wire_info *info);

/* Ends a session that is open or opening: its number and token mean nothing from here on. */
void session_close(struct session_table *table, struct session *session);

/* The engine no longer refers to the session in `slot`. */
void session_free(struct session_table *table, uint32_t slot);

/* As region_add() and region_extend(), within the limits of bytes and users. May call table->collect. */
bool session_add_region(struct session_table *table, struct session *session,
    const struct backend_offer *offer, region_done_fn *done, void *context,
    struct wire_error *error);
bool session_extend_region(struct session_table *table, struct session *session, uint32_t number,
    uint64_t offset, const struct backend_offer *piece, region_done_fn *done, void *context,
    struct wire_error *error);

/* The open session that this peer is bound to, or NULL. */
struct session *session_of_peer(struct session_table *table, const struct transport_peer *peer);

/* Binds a peer to the session whose number and token it knows. NULL with *error. */
struct session *session_bind(struct session_table *table, const struct transport_peer *peer,
    uint32_t id, const uint8_t token[WIRE_TOKEN_BYTES], struct wire_error *error);

/* Returns the plan's number, 0 with *error. */
uint32_t session_add_plan(struct session_table *table, struct session *session,
    const struct wire_plan *wire, struct wire_error *error);
struct plan *session_plan(
    const struct session_table *table, const struct session *session, uint32_t number);
bool session_drop_plan(struct session_table *table, struct session *session, uint32_t number);

/* Notes that a request has ended, in the counters of its session and of the daemon. */
void session_count(struct session_table *table, struct session *session, const struct job *job);

void session_stats(
    const struct session_table *table, const struct session *session, struct wire_stats *stats);

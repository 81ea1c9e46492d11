/*
 * Requests: turns a client's messages into replies, plans and jobs, and ended jobs into replies.
 *
 * I/O thread only. Believes nothing that a message says; allocates nothing for a submission: jobs
 * come from a pool that is large enough for every session's credit.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "session.h"
#include "transport.h"

struct request_handler;

/* Jobs that the engine may hold at a time: the credit of all sessions. */
uint32_t request_max_jobs(const struct session_options *options);

/* All borrowed. Becomes the sessions' collector. NULL: out of memory. */
struct request_handler *request_handler_create(
    struct session_table *sessions, struct transport *transport);
void request_handler_destroy(
    struct request_handler *handler); /* after the engine's end; takes NULL */

/* A message from a peer; a transport_receive_fn with the handler as its context. */
void request_handle(
    void *context, const struct transport_peer *peer, const uint8_t *bytes, size_t size);

/* Takes back what the engine is done with: jobs and closed sessions. */
void request_collect(struct request_handler *handler);

/*
 * The engine: a thread that owns the device. It takes jobs from the I/O thread, keeps them in their
 * lanes until their inputs are ready, forms groups, runs them on the backend, writes the clients'
 * control pages and gives ended jobs back.
 *
 * All functions but the constructor are for the I/O thread, and none of them blocks, except
 * engine_destroy. Two single-producer rings are all that the two threads share.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "job.h"
#include "page.h"

struct engine;

struct engine_options {
    struct backend *backend;     /* borrowed */
    uint32_t max_jobs;           /* never more are posted and not taken back */
    uint32_t max_sessions;       /* session slots are 0 .. max_sessions - 1 */
    uint64_t group_budget_ns;    /* estimated run time of one launch: 500,000 */
    void (*wake)(void *context); /* called on the engine thread when there is something to take */
    void *wake_context;
};

struct engine *engine_create(const struct engine_options *options); /* NULL: no memory or thread */

/* Stops the thread; what is on the device finishes. Jobs not run are dropped: the caller owns the pool
 * and gets nothing back. Accepts NULL. */
void engine_destroy(struct engine *engine);

/* A session's lanes come to life. uid is whom the scheduler is fair to. page_device is where the
 * device sees the page, from the backend's pin_page, or NULL: the device leaves it alone. The page
 * stays mapped and pinned until the session comes back through engine_take_closed(). */
void engine_open_session(
    struct engine *engine, uint32_t session, uint32_t uid, struct page *page, void *page_device);

/* Queued jobs of the session end as WIRE_CANCELLED without running, those on the device finish; when
 * the engine no longer refers to the session or its page, engine_take_closed() returns it. */
void engine_close_session(struct engine *engine, uint32_t session);

void engine_post(struct engine *engine, struct job *job);

/* The next ended job (error.status says how), or NULL. A job is here before its client can see on the
 * control page that it has ended, unless it is the device that writes the session's page. */
struct job *engine_take_ended(struct engine *engine);

/* The next session fully closed, or false: call it after engine_take_ended() has returned NULL. All of
 * the session's jobs have come back by then. */
bool engine_take_closed(struct engine *engine, uint32_t *session);

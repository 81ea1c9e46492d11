/*
 * Which requests run next, together: sessions with their lanes of jobs, in; groups, out.
 *
 * Only decisions: no thread, no clock, no device, no control page; the one who calls (the engine
 * thread) does what the hooks and the groups say. Nothing is allocated after scheduler_create().
 *
 * The jobs of a lane run in order, except that those of one submission (equal array_first) are
 * independent of each other; at most one group of a lane runs at a time. A job that fails poisons its
 * lane: those of later submissions with its epoch end as WIRE_LANE_POISONED without running.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "backend.h"
#include "job.h"

/* Told to the owner, from within the scheduler's functions; they must not call it back. */
struct scheduler_hooks {
    void *context;
    /* Whether the inputs of all of a lane's jobs up to `sequence` are complete. */
    bool (*ready)(void *context, uint32_t session, uint32_t lane, uint32_t sequence);
    /* The latest job of a lane that is about to run for the first time. */
    void (*started)(void *context, uint32_t session, uint32_t lane, uint32_t sequence);
    /* If the group just picked succeeds, finished() will say this, without anything else of the lane
     * before it; in the order of the lane. */
    void (*foretold)(void *context, struct group *group, uint32_t session, uint32_t lane,
        uint32_t sequence, enum wire_status status);
    /* The job has ended and is the owner's again; out of order within a submission. */
    void (*ended)(void *context, struct job *job);
    /* How a job ended; in the order of the lane, each after its ended(). */
    void (*finished)(
        void *context, uint32_t session, uint32_t lane, uint32_t sequence, enum wire_status status);
    /* Nothing refers to the session any more; its slot may be opened again. */
    void (*closed)(void *context, uint32_t session);
};

struct scheduler;

/* NULL: no memory. The arena is borrowed. */
struct scheduler *scheduler_create(
    uint32_t max_sessions, struct arena *arena, const struct scheduler_hooks *hooks);
void scheduler_destroy(struct scheduler *scheduler); /* accepts NULL; drops what is queued */

void scheduler_open(struct scheduler *scheduler, uint32_t session, uint32_t uid);

/* Ends the session's jobs as WIRE_CANCELLED, except those in a running group, which finish. */
void scheduler_close(struct scheduler *scheduler, uint32_t session);

/* The sequence numbers of a submission follow each other; a lane's submissions come in order. */
void scheduler_post(struct scheduler *scheduler, struct job *job);

/* Groups take at least so many tiles of their problems, if these have them and whatever the budget: a
 * device has processors that idle otherwise. 0, as at first: no such number. */
void scheduler_set_fill(struct scheduler *scheduler, uint64_t tiles);

/* Fills a group of about `budget_flops`, at least one slice. false: nothing can run now. */
bool scheduler_pick(struct scheduler *scheduler, double budget_flops, struct group *group);

/* A group has ended: its jobs end or, if slices are left, wait for their next turn. */
void scheduler_end(struct scheduler *scheduler, struct group *group, enum wire_status status);

/* Jobs posted and not ended. */
uint32_t scheduler_jobs(const struct scheduler *scheduler);

/*
 * A scheduler with a fake backend and the other side of its hooks: pages as plain numbers, a pool of
 * jobs, and a judge of what the hooks may say when. One thread.
 */
#pragma once

#include "fake_backend.h"
#include "job.h"
#include "page.h"
#include "scheduler.h"

#define WORLD_SESSIONS 8
#define WORLD_LANES 8
#define WORLD_JOBS 20000
#define WORLD_QUEUED 256 /* of a lane at most */

struct world_lane {
    uint32_t next; /* sequence of the next job made */
    uint32_t ready;
    uint32_t started;
    uint32_t done;

    /* What the group that runs was said to finish: sequences up to foretold, in order. */
    const struct group *foretelling; /* NULL: nothing */
    uint32_t foretold;
    uint8_t foretold_status[WIRE_MAX_CALLS]; /* at sequence % WIRE_MAX_CALLS */

    bool cancels; /* a job of it was cancelled */
    uint32_t
        failed_epoch; /* the latest epoch of which a job failed, and the submission that had it */
    uint32_t failed_first;
};

struct world {
    struct fake_backend fake;
    struct arena *arena;
    struct scheduler *scheduler;
    struct group group[FAKE_MAX_GROUPS];
    bool group_runs[FAKE_MAX_GROUPS];
    const struct group *ending; /* well, at the moment; or NULL */
    const struct group *failing;
    struct world_lane lane[WORLD_SESSIONS][WORLD_LANES];
    bool open[WORLD_SESSIONS];
    bool holds_ready; /* false: everything is ready */
    struct job job[WORLD_JOBS];
    bool job_ended[WORLD_JOBS];
    struct job *queued[WORLD_SESSIONS][WORLD_LANES][WORLD_QUEUED]; /* at sequence % WORLD_QUEUED */
    uint32_t jobs;
    uint32_t ended;
    uint32_t foretold; /* in all */
    int closed;
    const char *fault; /* the first wrong call of a hook; NULL: none */
};

struct world *world_create(unsigned max_groups, uint64_t workspace_bytes);
void world_destroy(struct world *world);

void world_open(struct world *world, uint32_t session, uint32_t uid);

/* The next job of a lane, a submission of its own: 10 flops, one tile, no workspace. Never used twice. */
struct job *world_job(struct world *world, uint32_t session, uint32_t lane);
void world_post(struct world *world, struct job *job);

/* A job of the lane's last WORLD_QUEUED, or NULL. */
struct job *world_find(
    const struct world *world, uint32_t session, uint32_t lane, uint32_t sequence);
bool world_ended(const struct world *world, const struct job *job);

/* Picks a group and starts it; its members or 0. */
size_t world_pick(struct world *world, double budget);

/* Ends the index-th of the running groups. */
void world_complete(struct world *world, size_t index, enum wire_status status);

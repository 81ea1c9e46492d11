#include "scheduler_world.h"

#include <stdlib.h>
#include <string.h>

static void blame(struct world *world, const char *fault)
{
    if (world->fault == NULL) {
        world->fault = fault;
    }
}

static bool on_ready(void *context, uint32_t session, uint32_t lane, uint32_t sequence)
{
    struct world *world = context;
    return !world->holds_ready || page_reached(world->lane[session][lane].ready, sequence);
}

static void on_started(void *context, uint32_t session, uint32_t lane, uint32_t sequence)
{
    struct world *world = context;
    struct world_lane *at = &world->lane[session][lane];
    if (!page_reached(sequence, at->done + 1)) {
        blame(world, "a job starts that `done` has passed");
    }
    at->started = sequence;
}

static void on_foretold(void *context, struct group *group, uint32_t session, uint32_t lane,
    uint32_t sequence, enum wire_status status)
{
    struct world *world = context;
    struct world_lane *at = &world->lane[session][lane];
    if (at->foretelling != NULL && at->foretelling != group) {
        blame(world, "two groups foretell the ends of one lane");
    }
    if (sequence != (at->foretelling == NULL ? at->done : at->foretold) + 1) {
        blame(world, "what is foretold skips a job or goes back");
    }
    at->foretelling = group;
    at->foretold = sequence;
    at->foretold_status[sequence % WIRE_MAX_CALLS] = (uint8_t)status;
    world->foretold++;
}

static void judge_foretold(struct world *world, const struct world_lane *at, const struct job *job)
{
    const struct group *group = at->foretelling;
    if (group == NULL || !page_reached(at->foretold, job->sequence)) {
        bool of_group = world->ending != NULL && job->group_id == world->ending->id;
        if (of_group && job->error.status == WIRE_OK && !at->cancels) {
            blame(world, "a group finishes a job and had not foretold it");
        }
    } else if (world->ending == group) {
        if (at->foretold_status[job->sequence % WIRE_MAX_CALLS] != (uint8_t)job->error.status) {
            blame(world, "a job finished with another status than was foretold");
        }
    } else if (world->failing != group) {
        blame(world, "a foretold job finished before its group had ended");
    }
}

static void judge_poison(struct world *world, struct world_lane *at, const struct job *job)
{
    enum wire_status status = job->error.status;
    bool poisoned =
        job->epoch != 0 && job->epoch == at->failed_epoch && job->array_first != at->failed_first;
    if (status == WIRE_LANE_POISONED && (!poisoned || job->next_tile > 0)) {
        blame(world, "a job was poisoned by nothing, or after it had started");
    }
    if (poisoned && (status == WIRE_OK || status == WIRE_DEVICE_FAULT)) {
        blame(world, "a poisoned job ran");
    }
    if (!poisoned && job->epoch != 0 && status != WIRE_OK && job->epoch != at->failed_epoch) {
        at->failed_epoch = job->epoch;
        at->failed_first = job->array_first;
    }
    at->cancels |= status == WIRE_CANCELLED;
}

static void on_ended(void *context, struct job *job)
{
    struct world *world = context;
    judge_poison(world, &world->lane[job->session][job->lane], job);
    if (world->job_ended[job - world->job]) {
        blame(world, "a job ended twice");
    }
    if (job->error.status == WIRE_OK && job->next_tile != job->tiles) {
        blame(world, "a job ended well with tiles left");
    }
    if (job->error.status == WIRE_OK &&
        (job->group_members == 0 || job->group_members > GROUP_MAX_MEMBERS)) {
        blame(world, "a job ended well without a group");
    }
    world->job_ended[job - world->job] = true;
    world->ended++;
}

static void on_finished(
    void *context, uint32_t session, uint32_t lane, uint32_t sequence, enum wire_status status)
{
    struct world *world = context;
    struct world_lane *at = &world->lane[session][lane];
    const struct job *job = world_find(world, session, lane, sequence);
    if (sequence != at->done + 1) {
        blame(world, "`done` skips a job or goes back");
    }
    if (job == NULL || !world->job_ended[job - world->job]) {
        blame(world, "`done` passes a job that has not ended");
    } else if (job->error.status != status) {
        blame(world, "a job finished with another status than it ended with");
    } else {
        judge_foretold(world, at, job);
    }
    at->done = sequence;
}

static void on_closed(void *context, uint32_t session)
{
    struct world *world = context;
    if (!world->open[session]) {
        blame(world, "a session closed twice");
    }
    for (uint32_t lane = 0; lane < WORLD_LANES; lane++) {
        if (world->lane[session][lane].done + 1 != world->lane[session][lane].next) {
            blame(world, "a session closed with jobs left");
        }
    }
    world->open[session] = false;
    world->closed++;
}

struct world *world_create(unsigned max_groups, uint64_t workspace_bytes)
{
    struct world *world = calloc(1, sizeof(*world));
    const struct scheduler_hooks hooks = {
        .context = world,
        .ready = on_ready,
        .started = on_started,
        .foretold = on_foretold,
        .ended = on_ended,
        .finished = on_finished,
        .closed = on_closed,
    };
    fake_backend_init(&world->fake, max_groups, workspace_bytes);
    world->arena = arena_create(world->fake.backend.workspace, workspace_bytes, WORLD_JOBS);
    world->scheduler = scheduler_create(WORLD_SESSIONS, world->arena, &hooks);
    return world;
}

void world_destroy(struct world *world)
{
    scheduler_destroy(world->scheduler);
    arena_destroy(world->arena);
    fake_backend_finish(&world->fake);
    free(world);
}

void world_open(struct world *world, uint32_t session, uint32_t uid)
{
    for (uint32_t lane = 0; lane < WORLD_LANES; lane++) {
        world->lane[session][lane] = (struct world_lane){.next = 1};
    }
    memset(world->queued[session], 0, sizeof(world->queued[session]));
    world->open[session] = true;
    scheduler_open(world->scheduler, session, uid);
}

struct job *world_job(struct world *world, uint32_t session, uint32_t lane)
{
    if (world->jobs == WORLD_JOBS) {
        abort();
    }
    struct job *job = &world->job[world->jobs++];
    job->session = session;
    job->lane = lane;
    job->sequence = world->lane[session][lane].next++;
    job->array_first = job->sequence;
    job->direction = ATTN_FORWARD;
    job->family = fake_family(0);
    job->flops = 10;
    job->tiles = 1;
    world->queued[session][lane][job->sequence % WORLD_QUEUED] = job;
    return job;
}

struct job *world_find(
    const struct world *world, uint32_t session, uint32_t lane, uint32_t sequence)
{
    struct job *job = world->queued[session][lane][sequence % WORLD_QUEUED];
    return job != NULL && job->sequence == sequence ? job : NULL;
}

void world_post(struct world *world, struct job *job)
{
    scheduler_post(world->scheduler, job);
}

bool world_ended(const struct world *world, const struct job *job)
{
    return world->job_ended[job - world->job];
}

size_t world_pick(struct world *world, double budget)
{
    size_t free_group = 0;
    while (world->group_runs[free_group]) {
        free_group++;
    }
    struct group *group = &world->group[free_group];
    if (!scheduler_pick(world->scheduler, budget, group)) {
        return 0;
    }
    struct backend *backend = &world->fake.backend;
    if (backend->ops->submit(backend, group) != WIRE_OK) {
        abort();
    }
    world->group_runs[free_group] = true;
    return group->members;
}

/* All that a group foretold has come true, or was not to. */
static void settle_foretold(struct world *world, const struct group *group, enum wire_status status)
{
    for (uint32_t session = 0; session < WORLD_SESSIONS; session++) {
        for (uint32_t lane = 0; lane < WORLD_LANES; lane++) {
            struct world_lane *at = &world->lane[session][lane];
            if (at->foretelling != group) {
                continue;
            }
            if (status == WIRE_OK && !page_reached(at->done, at->foretold)) {
                blame(world, "a foretold job did not finish");
            }
            at->foretelling = NULL;
        }
    }
}

void world_complete(struct world *world, size_t index, enum wire_status status)
{
    struct backend *backend = &world->fake.backend;
    enum wire_status told;
    fake_backend_complete(&world->fake, index, status);
    struct group *group = backend->ops->poll(backend, &told);
    world->group_runs[group - world->group] = false;
    world->ending = told == WIRE_OK ? group : NULL;
    world->failing = told == WIRE_OK ? NULL : group;
    scheduler_end(world->scheduler, group, told);
    world->ending = NULL;
    world->failing = NULL;
    settle_foretold(world, group, told);
}

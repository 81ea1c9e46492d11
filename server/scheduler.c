#include "scheduler.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "page.h"
#include "share.h"

/* A group is shared by this many turns: a large problem gets one part of it, and more only when
 * nobody else wants it. */
#define QUANTA_PER_GROUP 4

/* Requests that may take workspace ahead of one that waits for a larger piece. */
#define MAX_OVERTAKES 64

struct lane {
    struct share share;
    uint32_t session;
    uint32_t number;
    struct list jobs; /* not ended, by sequence */
    uint32_t running; /* of them, in a group */
    bool has_started;
    uint32_t started; /* the latest sequence told to started() */

    /* The submission whose jobs end now: jobs end in any order, the owner hears of it in order. */
    uint32_t array_first;
    uint32_t array_ended;    /* bit i: job array_first + i */
    uint32_t array_finished; /* told to finished() */
    uint8_t array_status[WIRE_MAX_CALLS];

    uint32_t poisoned_epoch; /* 0: not poisoned */
    uint32_t poisoned_first; /* the submission that did it, whose other jobs run all the same */

    /* The pick at hand. */
    uint64_t pick;
    struct list_node *next;
    uint32_t ends; /* bit i: the group holds what is left of job array_first + i */
};

struct session {
    struct share share;
    struct user *user; /* NULL: the slot is free */
    bool closing;
    uint32_t jobs;
    struct lane lane[PAGE_LANES];
};

struct user {
    struct share share;
    uint32_t uid;
    uint32_t sessions; /* 0: the slot is free */
};

struct scheduler {
    struct scheduler_hooks hooks;
    struct arena *arena; /* borrowed */
    uint32_t max_sessions;
    struct session *sessions; /* owned */
    struct user *users;       /* owned, as many as sessions */
    struct share root;
    uint32_t jobs;
    double quantum; /* of the last pick */
    uint64_t picks;
    uint64_t groups;
    uint64_t fill_tiles;

    /* The job that waits longest for workspace, or NULL, and how many have taken some since. */
    struct job *hungry;
    uint32_t overtakes;
};

struct pick {
    struct group *group;
    double room;
    double quantum;
    double least; /* what a member costs at least: a launch takes so many and no more */
};

static struct job *job_of(struct list_node *node)
{
    return list_entry(node, struct job, node);
}

static struct lane *lane_of(struct scheduler *scheduler, const struct job *job)
{
    assert(job->session < scheduler->max_sessions && job->lane < PAGE_LANES);
    return &scheduler->sessions[job->session].lane[job->lane];
}

/* The job at `at` if it belongs to the lane's first submission, the only one that may run. */
static struct job *head_job(struct lane *lane, struct list_node *at)
{
    if (at == &lane->jobs.head) {
        return NULL;
    }
    struct job *job = job_of(at);
    return job->array_first == job_of(list_first(&lane->jobs))->array_first ? job : NULL;
}

/* -- ending ------------------------------------------------------------------------------------- */

static void set_error(struct job *job, enum wire_status status, const char *detail)
{
    job->error.status = status;
    snprintf(job->error.detail, sizeof(job->error.detail), "%s", detail);
}

static void tell_finished(struct scheduler *scheduler, struct lane *lane)
{
    while (lane->array_finished < WIRE_MAX_CALLS &&
           (lane->array_ended >> lane->array_finished & 1) != 0) {
        uint32_t index = lane->array_finished++;
        scheduler->hooks.finished(scheduler->hooks.context, lane->session, lane->number,
            lane->array_first + index, (enum wire_status)lane->array_status[index]);
    }
}

static bool is_poisoned(const struct lane *lane, const struct job *job)
{
    return job->epoch != 0 && job->epoch == lane->poisoned_epoch &&
           job->array_first != lane->poisoned_first;
}

static void poison(struct lane *lane, const struct job *job)
{
    if (job->epoch != 0 && job->epoch != lane->poisoned_epoch) {
        lane->poisoned_epoch = job->epoch;
        lane->poisoned_first = job->array_first;
    }
}

static void end_job(struct scheduler *scheduler, struct lane *lane, struct job *job)
{
    uint32_t index = job->sequence - job->array_first;
    assert(index < WIRE_MAX_CALLS && !job->running);
    if (lane->array_first != job->array_first) {
        lane->array_first = job->array_first;
        lane->array_ended = 0;
        lane->array_finished = 0;
    }
    lane->array_ended |= UINT32_C(1) << index;
    lane->array_status[index] = (uint8_t)job->error.status;
    if (job->error.status != WIRE_OK) {
        poison(lane, job);
    }
    if (job->workspace != NULL) {
        arena_release(scheduler->arena, job->workspace);
        job->workspace = NULL;
    }
    if (scheduler->hungry == job) {
        scheduler->hungry = NULL;
    }
    list_remove(&job->node);
    scheduler->sessions[lane->session].jobs--;
    scheduler->jobs--;
    /* From here on the job is not ours. */
    scheduler->hooks.ended(scheduler->hooks.context, job);
    tell_finished(scheduler, lane);
}

/* Ends the jobs at the front of the lane that will not run. */
static void end_unrunnable(struct scheduler *scheduler, struct lane *lane)
{
    bool closing = scheduler->sessions[lane->session].closing;
    struct list_node *next;
    struct job *job;
    for (struct list_node *at = lane->jobs.head.next; (job = head_job(lane, at)) != NULL;
         at = next) {
        next = at->next;
        if (job->running) {
            continue;
        }
        if (job->error.status == WIRE_OK && closing) {
            set_error(job, WIRE_CANCELLED, "the session closed before the request had run");
        } else if (job->error.status == WIRE_OK && is_poisoned(lane, job)) {
            set_error(job, WIRE_LANE_POISONED,
                "an earlier request of the lane failed; nothing runs in it until it is reset");
        }
        if (job->error.status != WIRE_OK) {
            end_job(scheduler, lane, job);
        }
    }
}

static void free_user(struct session *session)
{
    session->user->sessions--;
    session->user = NULL;
}

/* After anything that may have changed what is at the front of a lane. */
static void settle_lane(struct scheduler *scheduler, struct lane *lane)
{
    struct session *session = &scheduler->sessions[lane->session];
    end_unrunnable(scheduler, lane);
    if (list_empty(&lane->jobs)) {
        share_detach(&lane->share, scheduler->quantum);
    }
    if (session->user != NULL && session->closing && session->jobs == 0) {
        free_user(session);
        scheduler->hooks.closed(scheduler->hooks.context, lane->session);
    }
}

/* -- picking ------------------------------------------------------------------------------------ */

static bool compatible(const struct group *group, const struct job *job)
{
    return group->members == 0 || (group->direction == job->direction &&
                                      group->family == job->family && group->key == job->group_key);
}

static double tile_flops(const struct job *job)
{
    return job->flops / (double)job->tiles;
}

/* How many of the job's tiles the group takes: all that are left, or a quantum's worth. */
static uint64_t tiles_that_fit(const struct pick *pick, const struct job *job)
{
    uint64_t tiles = job->tiles - job->next_tile;
    double each = tile_flops(job);
    if (each * (double)tiles > pick->quantum) {
        uint64_t part = (uint64_t)(pick->quantum / each);
        tiles = part > 0 ? part : 1;
    }
    bool leads = pick->group->members == 0; /* a tile larger than a whole group must run as well */
    return leads || each * (double)tiles <= pick->room ? tiles : 0;
}

/*
 * Gives a job its workspace before its first slice. One that finds none is remembered; smaller ones
 * may overtake it for a while, then nobody starts until what runs has freed enough.
 */
static bool has_workspace(struct scheduler *scheduler, struct job *job)
{
    if (job->workspace != NULL || job->workspace_bytes == 0) {
        return true;
    }
    struct job *hungry = scheduler->hungry;
    if (hungry != NULL && hungry != job && scheduler->overtakes >= MAX_OVERTAKES) {
        return false;
    }
    job->workspace = arena_acquire(scheduler->arena, job->workspace_bytes);
    if (job->workspace == NULL && hungry == NULL) {
        scheduler->hungry = job;
        scheduler->overtakes = 0;
    } else if (job->workspace != NULL && hungry == job) {
        scheduler->hungry = NULL;
    } else if (job->workspace != NULL && hungry != NULL) {
        scheduler->overtakes++;
    }
    return job->workspace != NULL;
}

/* A job that once was ready stays it, whatever the client does with its counter: one that holds
 * workspace, or that others make way for, must be able to go on. */
static bool is_ready(struct scheduler *scheduler, const struct job *job)
{
    return job->next_tile > 0 || job == scheduler->hungry ||
           scheduler->hooks.ready(scheduler->hooks.context, job->session, job->lane, job->sequence);
}

static void tell_started(struct scheduler *scheduler, struct lane *lane, const struct job *job)
{
    if (!lane->has_started || !page_reached(lane->started, job->sequence)) {
        lane->has_started = true;
        lane->started = job->sequence;
        scheduler->hooks.started(
            scheduler->hooks.context, lane->session, lane->number, job->sequence);
    }
}

static void add_member(struct scheduler *scheduler, struct pick *pick, struct lane *lane,
    struct job *job, uint64_t tiles)
{
    struct group *group = pick->group;
    double flops = tile_flops(job) * (double)tiles;
    double cost = flops > pick->least ? flops : pick->least;
    if (group->members == 0) {
        group->direction = job->direction;
        group->family = job->family;
        group->key = job->group_key;
    }
    tell_started(scheduler, lane, job);
    job->running = true;
    lane->running++;
    group->slice[group->members] = (struct attn_slice){
        .problem = &job->problem,
        .workspace = job->workspace,
        .begin = job->next_tile,
        .end = job->next_tile + tiles,
    };
    group->job[group->members++] = job;
    group->flops += flops;
    pick->room -= cost;
    share_charge(&lane->share, cost);
}

/* Adds the lane's next job that can join the group. Looks behind those that are not ready: what is
 * behind may be a job that once was. */
static bool take_from_lane(struct scheduler *scheduler, struct pick *pick, struct lane *lane)
{
    if (lane->pick != scheduler->picks) {
        if (lane->running > 0) {
            return false;
        }
        lane->pick = scheduler->picks;
        lane->next = lane->jobs.head.next;
    }
    struct job *job;
    while ((job = head_job(lane, lane->next)) != NULL) {
        lane->next = lane->next->next;
        if (!is_ready(scheduler, job)) {
            continue;
        }
        uint64_t tiles = compatible(pick->group, job) ? tiles_that_fit(pick, job) : 0;
        if (tiles > 0 && has_workspace(scheduler, job)) {
            add_member(scheduler, pick, lane, job, tiles);
            return true;
        }
        lane->share.has_more = true;
    }
    return false;
}

static void take_more(struct scheduler *scheduler, struct pick *pick, size_t member, uint64_t tiles)
{
    struct group *group = pick->group;
    struct job *job = group->job[member];
    double flops = tile_flops(job) * (double)tiles;
    group->slice[member].end += tiles;
    group->flops += flops;
    pick->room -= flops;
    share_charge(&lane_of(scheduler, job)->share, flops);
}

static uint64_t tiles_left(const struct group *group, size_t member)
{
    return group->job[member]->tiles - group->slice[member].end;
}

/* Cut below what the device works on at a time, a launch would take as long and do less. */
static void fill(struct scheduler *scheduler, struct pick *pick)
{
    struct group *group = pick->group;
    uint64_t tiles = 0;
    for (size_t i = 0; i < group->members; i++) {
        tiles += group->slice[i].end - group->slice[i].begin;
    }
    for (size_t i = 0; i < group->members && tiles < scheduler->fill_tiles; i++) {
        uint64_t left = tiles_left(group, i);
        uint64_t wanted = scheduler->fill_tiles - tiles;
        uint64_t more = left < wanted ? left : wanted;
        take_more(scheduler, pick, i, more);
        tiles += more;
    }
}

/* What nobody else wanted goes to the group's own large problems, the leader's first. */
static void use_leftover(struct scheduler *scheduler, struct pick *pick)
{
    struct group *group = pick->group;
    for (size_t i = 0; i < group->members; i++) {
        uint64_t left = tiles_left(group, i);
        double each = tile_flops(group->job[i]);
        if (left == 0 || pick->room < each) {
            continue;
        }
        uint64_t more = (double)left * each <= pick->room ? left : (uint64_t)(pick->room / each);
        take_more(scheduler, pick, i, more);
    }
}

/* Tells what the lane's jobs in the group will finish: those in front of them have ended, or are in it
 * as well. */
static void foretell_lane(struct scheduler *scheduler, struct group *group, struct lane *lane)
{
    const struct job *first = job_of(list_first(&lane->jobs));
    bool fresh = lane->array_first != first->array_first; /* none of them has ended yet */
    uint32_t ended = fresh ? 0 : lane->array_ended;
    uint32_t will_end = ended | lane->ends;
    for (uint32_t i = fresh ? 0 : lane->array_finished;
         i < WIRE_MAX_CALLS && (will_end >> i & 1) != 0; i++) {
        enum wire_status status =
            (ended >> i & 1) != 0 ? (enum wire_status)lane->array_status[i] : WIRE_OK;
        scheduler->hooks.foretold(scheduler->hooks.context, group, lane->session, lane->number,
            first->array_first + i, status);
    }
}

static void foretell(struct scheduler *scheduler, struct group *group)
{
    for (size_t i = 0; i < group->members; i++) {
        const struct job *job = group->job[i];
        if (group->slice[i].end == job->tiles) {
            lane_of(scheduler, job)->ends |= UINT32_C(1) << (job->sequence - job->array_first);
        }
    }
    for (size_t i = 0; i < group->members; i++) {
        struct lane *lane = lane_of(scheduler, group->job[i]);
        if (lane->ends != 0) {
            foretell_lane(scheduler, group, lane);
            lane->ends = 0;
        }
    }
}

/* -- the interface ------------------------------------------------------------------------------ */

struct scheduler *scheduler_create(
    uint32_t max_sessions, struct arena *arena, const struct scheduler_hooks *hooks)
{
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (scheduler == NULL) {
        return NULL;
    }
    scheduler->hooks = *hooks;
    scheduler->arena = arena;
    scheduler->max_sessions = max_sessions;
    scheduler->sessions = calloc(max_sessions, sizeof(*scheduler->sessions));
    scheduler->users = calloc(max_sessions, sizeof(*scheduler->users));
    if (scheduler->sessions == NULL || scheduler->users == NULL) {
        scheduler_destroy(scheduler);
        return NULL;
    }
    share_init(&scheduler->root, NULL);
    return scheduler;
}

void scheduler_destroy(struct scheduler *scheduler)
{
    if (scheduler != NULL) {
        free(scheduler->sessions);
        free(scheduler->users);
        free(scheduler);
    }
}

static struct user *acquire_user(struct scheduler *scheduler, uint32_t uid)
{
    struct user *unused = NULL;
    for (uint32_t i = 0; i < scheduler->max_sessions; i++) {
        struct user *user = &scheduler->users[i];
        if (user->sessions > 0 && user->uid == uid) {
            user->sessions++;
            return user;
        }
        if (user->sessions == 0) {
            unused = user;
        }
    }
    assert(unused != NULL);
    share_init(&unused->share, &scheduler->root);
    unused->uid = uid;
    unused->sessions = 1;
    return unused;
}

void scheduler_open(struct scheduler *scheduler, uint32_t session, uint32_t uid)
{
    assert(session < scheduler->max_sessions);
    struct session *slot = &scheduler->sessions[session];
    assert(slot->user == NULL);
    slot->user = acquire_user(scheduler, uid);
    slot->closing = false;
    slot->jobs = 0;
    share_init(&slot->share, &slot->user->share);
    for (uint32_t i = 0; i < PAGE_LANES; i++) {
        struct lane *lane = &slot->lane[i];
        *lane = (struct lane){.session = session, .number = i};
        share_init(&lane->share, &slot->share);
        list_init(&lane->jobs);
    }
}

void scheduler_close(struct scheduler *scheduler, uint32_t session)
{
    assert(session < scheduler->max_sessions && scheduler->sessions[session].user != NULL);
    scheduler->sessions[session].closing = true;
    for (uint32_t i = 0; i < PAGE_LANES; i++) {
        settle_lane(scheduler, &scheduler->sessions[session].lane[i]);
    }
}

void scheduler_post(struct scheduler *scheduler, struct job *job)
{
    struct lane *lane = lane_of(scheduler, job);
    struct session *session = &scheduler->sessions[job->session];
    assert(session->user != NULL && job->sequence - job->array_first < WIRE_MAX_CALLS);
    job->next_tile = 0;
    job->workspace = NULL;
    job->running = false;
    job->group_members = 0;
    job->group_id = 0;
    if (job->error.status == WIRE_OK && job->workspace_bytes > arena_capacity(scheduler->arena)) {
        job->error.status = WIRE_RESOURCE_EXHAUSTED;
        snprintf(job->error.detail, sizeof(job->error.detail),
            "the request needs %zu bytes of workspace, all there is are %zu", job->workspace_bytes,
            arena_capacity(scheduler->arena));
    }
    list_append(&lane->jobs, &job->node);
    session->jobs++;
    scheduler->jobs++;
    share_attach(&lane->share);
    settle_lane(scheduler, lane);
}

void scheduler_set_fill(struct scheduler *scheduler, uint64_t tiles)
{
    scheduler->fill_tiles = tiles;
}

bool scheduler_pick(struct scheduler *scheduler, double budget_flops, struct group *group)
{
    struct pick pick = {
        .group = group,
        .room = budget_flops,
        .quantum = budget_flops / QUANTA_PER_GROUP,
        .least = budget_flops / GROUP_MAX_MEMBERS,
    };
    assert(budget_flops > 0);
    scheduler->picks++;
    scheduler->quantum = pick.quantum;
    group->members = 0;
    group->flops = 0;
    while (group->members < GROUP_MAX_MEMBERS && pick.room >= pick.least) {
        struct share *share = share_next(&scheduler->root, pick.quantum);
        if (share == NULL) {
            break;
        }
        struct lane *lane = list_entry(share, struct lane, share);
        if (!take_from_lane(scheduler, &pick, lane)) {
            share_pass(share);
        }
    }
    use_leftover(scheduler, &pick);
    fill(scheduler, &pick);
    share_settle(&scheduler->root, pick.quantum);
    if (group->members == 0) {
        return false;
    }
    group->id = ++scheduler->groups;
    foretell(scheduler, group);
    return true;
}

void scheduler_end(struct scheduler *scheduler, struct group *group, enum wire_status status)
{
    struct lane *lanes[GROUP_MAX_MEMBERS];
    for (size_t i = 0; i < group->members; i++) {
        struct job *job = group->job[i];
        lanes[i] = lane_of(scheduler, job);
        job->running = false;
        lanes[i]->running--;
        job->next_tile = group->slice[i].end;
        if (status != WIRE_OK) {
            set_error(job, status, "the device failed to run the request's group");
        }
        if (status != WIRE_OK || job->next_tile == job->tiles) {
            job->group_members = (uint32_t)group->members;
            job->group_id = group->id;
            end_job(scheduler, lanes[i], job);
        }
    }
    /* Only now, so that nothing comes between the members. */
    for (size_t i = 0; i < group->members; i++) {
        settle_lane(scheduler, lanes[i]);
    }
}

uint32_t scheduler_jobs(const struct scheduler *scheduler)
{
    return scheduler->jobs;
}

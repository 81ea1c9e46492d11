/*
 * Random schedules: everything that can happen to a scheduler, in random order, judged after every
 * step against what the requests' own histories allow.
 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "dice.h"
#include "scheduler_world.h"

#define SEEDS 40
#define STEPS 4000
#define LANES 3
#define MOST_IN_LANE 40
#define WORKSPACE 65536

struct play {
    struct world *world;
    struct dice dice;
    uint64_t seed;
    double budget;
    bool closing[WORLD_SESSIONS];
    uint32_t epoch[WORLD_SESSIONS][LANES];
};

static uint32_t below(struct play *play, uint32_t bound)
{
    return dice_below(&play->dice, bound);
}

/* The first job of a lane that has not ended: its submission is the only one that may run. */
static const struct job *first_open(const struct world *world, uint32_t session, uint32_t lane)
{
    const struct world_lane *at = &world->lane[session][lane];
    for (uint32_t sequence = at->done + 1; sequence != at->next; sequence++) {
        const struct job *job = world_find(world, session, lane, sequence);
        if (!world_ended(world, job)) {
            return job;
        }
    }
    return NULL;
}

static void open_or_close(struct play *play)
{
    uint32_t session = below(play, WORLD_SESSIONS);
    struct world *world = play->world;
    if (!world->open[session]) {
        world_open(world, session, 100 + session % 3);
        play->closing[session] = false;
    } else if (!play->closing[session] && dice_one_in(&play->dice, 8)) {
        play->closing[session] = true;
        scheduler_close(world->scheduler, session);
    }
}

static void fill_job(struct play *play, struct job *job)
{
    job->tiles = dice_one_in(&play->dice, 5) ? 1 + below(play, 60) : 1 + below(play, 3);
    job->flops = (double)job->tiles * below(play, 200);
    job->group_key = below(play, 2);
    job->direction = dice_one_in(&play->dice, 4) ? ATTN_BACKWARD : ATTN_FORWARD;
    job->family = fake_family(dice_one_in(&play->dice, 8));
    job->workspace_bytes =
        dice_one_in(&play->dice, 6) ? below(play, WORKSPACE + 2048) : below(play, 9000);
    if (dice_one_in(&play->dice, 12)) {
        job->error.status = WIRE_NOT_FOUND;
    }
    /* A lane's epochs only grow, and some of its requests have none. */
    play->epoch[job->session][job->lane] += dice_one_in(&play->dice, 6);
    job->epoch = dice_one_in(&play->dice, 2) ? play->epoch[job->session][job->lane] : 0;
}

static void post_some(struct play *play)
{
    uint32_t session = below(play, WORLD_SESSIONS);
    uint32_t lane = below(play, LANES);
    uint32_t calls = 1 + below(play, 5);
    struct world *world = play->world;
    const struct world_lane *at = &world->lane[session][lane];
    if (!world->open[session] || play->closing[session] ||
        at->next - at->done + calls > MOST_IN_LANE || world->jobs + calls > WORLD_JOBS) {
        return;
    }
    uint32_t first = at->next;
    for (uint32_t i = 0; i < calls; i++) {
        struct job *job = world_job(world, session, lane);
        fill_job(play, job);
        job->array_first = first;
        world_post(world, job);
    }
}

static void make_ready(struct play *play)
{
    struct world_lane *at = &play->world->lane[below(play, WORLD_SESSIONS)][below(play, LANES)];
    if (at->next != 0) {
        uint32_t behind = at->next - 1 - at->ready;
        at->ready += behind > 0 ? 1 + below(play, behind) : 0;
    }
}

static void judge_group(struct play *play, const struct group *group)
{
    struct world *world = play->world;
    for (size_t i = 0; i < group->members; i++) {
        const struct job *job = group->job[i];
        const struct job *first = first_open(world, job->session, job->lane);
        const struct world_lane *at = &world->lane[job->session][job->lane];
        cr_assert_not(world_ended(world, job), "seed %zu", (size_t)play->seed);
        cr_assert_eq(job->array_first, first->array_first, "seed %zu: a later submission runs",
            (size_t)play->seed);
        cr_assert_not(play->closing[job->session], "seed %zu: a closing session's job starts",
            (size_t)play->seed);
        cr_assert(
            page_reached(at->ready, job->sequence), "seed %zu: runs unready", (size_t)play->seed);
        cr_assert(page_reached(at->started, job->sequence), "seed %zu: not told to have started",
            (size_t)play->seed);
    }
    /* Slices are cut to the budget, or to the least there is of one job. */
    bool one_tile = group->members == 1 && group->slice[0].end == group->slice[0].begin + 1;
    cr_assert(one_tile || group->flops <= play->budget * 1.001, "seed %zu: %.0f flops",
        (size_t)play->seed, group->flops);
}

static void judge_idleness(struct play *play)
{
    struct world *world = play->world;
    for (uint32_t session = 0; session < WORLD_SESSIONS; session++) {
        for (uint32_t lane = 0; world->open[session] && lane < LANES; lane++) {
            const struct job *job = first_open(world, session, lane);
            cr_assert(job == NULL || !page_reached(world->lane[session][lane].ready, job->sequence),
                "seed %zu: nothing runs though session %u, lane %u could", (size_t)play->seed,
                session, lane);
        }
    }
}

static void pick(struct play *play)
{
    struct world *world = play->world;
    size_t running = fake_backend_running(&world->fake);
    if (running == world->fake.backend.max_groups) {
        return;
    }
    play->budget = 100 * (1 + below(play, 20));
    if (world_pick(world, play->budget) > 0) {
        judge_group(play, fake_backend_group(&world->fake, running));
    } else if (running == 0) {
        judge_idleness(play);
    }
}

static void complete(struct play *play)
{
    size_t running = fake_backend_running(&play->world->fake);
    if (running > 0) {
        enum wire_status status = dice_one_in(&play->dice, 25) ? WIRE_DEVICE_FAULT : WIRE_OK;
        world_complete(play->world, below(play, (uint32_t)running), status);
    }
}

static void step(struct play *play)
{
    switch (below(play, 16)) {
    case 0:
        open_or_close(play);
        break;
    case 1:
    case 2:
    case 3:
        post_some(play);
        break;
    case 4:
    case 5:
    case 6:
        make_ready(play);
        break;
    case 7:
    case 8:
    case 9:
    case 10:
        complete(play);
        break;
    default:
        pick(play);
    }
}

/* With all inputs there, everything posted must end and every session must close. */
static void drain(struct play *play)
{
    struct world *world = play->world;
    world->holds_ready = false;
    for (uint32_t session = 0; session < WORLD_SESSIONS; session++) {
        for (uint32_t lane = 0; lane < LANES; lane++) {
            world->lane[session][lane].ready = world->lane[session][lane].next - 1;
        }
    }
    for (int i = 0; scheduler_jobs(world->scheduler) > 0; i++) {
        cr_assert_lt(i, 100000, "seed %zu: does not come to an end", (size_t)play->seed);
        pick(play);
        complete(play);
    }
    for (uint32_t session = 0; session < WORLD_SESSIONS; session++) {
        if (world->open[session]) {
            scheduler_close(world->scheduler, session);
        }
        cr_assert_not(world->open[session]);
    }
    cr_assert_eq(world->ended, world->jobs);
    cr_assert_not_null(
        arena_acquire(world->arena, WORKSPACE), "seed %zu: workspace leaks", (size_t)play->seed);
}

Test(scheduler_model, random_schedules_break_no_rule)
{
    uint32_t ran = 0;
    uint32_t foretold = 0;
    uint32_t poisoned = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct play play = {
            .world = world_create(1 + seed % FAKE_MAX_GROUPS, WORKSPACE),
            .dice = {.state = seed},
            .seed = seed,
        };
        struct world *world = play.world;
        world->holds_ready = true;
        for (int i = 0; i < STEPS; i++) {
            step(&play);
            cr_assert_null(world->fault, "seed %zu, step %d: %s", (size_t)seed, i, world->fault);
            const char *fault = fake_backend_fault(&world->fake);
            cr_assert_null(fault, "seed %zu, step %d: %s", (size_t)seed, i, fault);
        }
        drain(&play);
        for (uint32_t i = 0; i < world->jobs; i++) {
            ran += world->job[i].error.status == WIRE_OK;
            poisoned += world->job[i].error.status == WIRE_LANE_POISONED;
        }
        foretold += world->foretold;
        world_destroy(world);
    }
    cr_expect_gt(ran, SEEDS * 300, "%u requests ran: too few to show much", ran);
    cr_expect_gt(foretold, ran / 2, "%u ends were foretold of %u", foretold, ran);
    cr_expect_gt(poisoned, SEEDS * 20, "%u requests were poisoned", poisoned);
}

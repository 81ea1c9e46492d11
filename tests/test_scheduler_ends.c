/* What the scheduler foretells of a group's success, and what a failure does to the rest of a lane. */
#include <criterion/criterion.h>

#include "scheduler_world.h"

#define BUDGET 1000.0

static struct world *world; /* each test runs in a process of its own */

static void set_up(void)
{
    world = world_create(2, 1 << 20);
    world_open(world, 0, 100);
}

static void tear_down(void)
{
    cr_expect_null(fake_backend_fault(&world->fake), "%s", fake_backend_fault(&world->fake));
    cr_expect_null(world->fault, "%s", world->fault);
    world_destroy(world);
}

TestSuite(scheduler_ends, .init = set_up, .fini = tear_down);

static size_t pick(void)
{
    return world_pick(world, BUDGET);
}

/* The next job of lane 0, in the submission that began with `first`; 0: in one of its own. */
static struct job *post(uint32_t first, uint32_t epoch)
{
    struct job *job = world_job(world, 0, 0);
    job->array_first = first != 0 ? first : job->sequence;
    job->epoch = epoch;
    return job;
}

static const struct world_lane *lane(void)
{
    return &world->lane[0][0];
}

Test(scheduler_ends, only_last_slices_are_foretold)
{
    struct job *job = post(0, 0);
    job->flops = 1e4;
    job->tiles = 10;
    world_post(world, job);
    for (int slice = 0; slice < 9; slice++) {
        cr_assert_eq(pick(), 1);
        cr_assert_eq(world->foretold, 0);
        world_complete(world, 0, WIRE_OK);
    }
    cr_assert_eq(pick(), 1);
    cr_expect_eq(world->foretold, 1);
    cr_expect_eq(lane()->foretold, 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(lane()->done, 1);
}

Test(scheduler_ends, a_whole_submission_is_foretold_in_order)
{
    for (int i = 0; i < 5; i++) {
        world_post(world, post(1, 0));
    }
    world_post(world, post(0, 0)); /* not of it: does not run yet */
    cr_assert_eq(pick(), 5);
    cr_expect_eq(lane()->foretold, 5);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(lane()->done, 5);
    cr_assert_eq(pick(), 1);
    cr_expect_eq(lane()->foretold, 6);
    world_complete(world, 0, WIRE_OK);
}

Test(scheduler_ends, what_waits_for_an_earlier_one_is_foretold_with_that)
{
    for (uint32_t i = 0; i < 3; i++) {
        struct job *job = post(1, 0);
        job->group_key = i == 1;
        job->error.status = i == 2 ? WIRE_NOT_FOUND : WIRE_OK;
        world_post(world, job);
    }
    cr_assert_eq(pick(), 1); /* the first; the third has ended already */
    cr_expect_eq(lane()->foretold, 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(lane()->done, 1);
    cr_assert_eq(pick(), 1);
    cr_expect_eq(lane()->foretold, 3);
    cr_expect_eq(lane()->foretold_status[3], WIRE_NOT_FOUND);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(lane()->done, 3);
}

Test(scheduler_ends, nothing_is_foretold_past_one_that_is_not_in_the_group)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct job *job = post(1, 0);
        job->flops = i == 0 ? 1e4 : 10;
        job->tiles = i == 0 ? 100 : 1;
        world_post(world, job);
    }
    cr_assert_eq(pick(), 2);
    cr_expect_eq(world->foretold, 0, "the first is not through with this group");
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(lane()->done, 0);
    while (scheduler_jobs(world->scheduler) > 0) {
        cr_assert_gt(pick(), 0);
        world_complete(world, 0, WIRE_OK);
    }
    cr_expect_eq(world->foretold, 2);
}

Test(scheduler_ends, lanes_of_a_group_are_foretold_each_for_itself)
{
    world_open(world, 1, 100);
    for (uint32_t session = 0; session < 2; session++) {
        for (uint32_t i = 0; i < 3; i++) {
            world_post(world, world_job(world, session, i));
        }
    }
    cr_assert_eq(pick(), 6);
    cr_expect_eq(world->foretold, 6);
    world_complete(world, 0, WIRE_DEVICE_FAULT);
    for (uint32_t session = 0; session < 2; session++) {
        for (uint32_t i = 0; i < 3; i++) {
            cr_expect_eq(world->lane[session][i].done, 1);
        }
    }
}

Test(scheduler_ends, a_failure_poisons_the_rest_of_its_epoch)
{
    struct job *job[4];
    for (int i = 0; i < 4; i++) {
        job[i] = post(0, i < 3 ? 7 : 8);
        world_post(world, job[i]);
    }
    struct job *elsewhere = world_job(world, 0, 1);
    elsewhere->epoch = 7;
    cr_assert_eq(pick(), 1);
    world_complete(world, 0, WIRE_INTERNAL);
    cr_expect_eq(job[0]->error.status, WIRE_INTERNAL);
    cr_expect(world_ended(world, job[1]) && world_ended(world, job[2]));
    cr_expect_eq(job[1]->error.status, WIRE_LANE_POISONED);
    cr_expect_eq(job[2]->error.status, WIRE_LANE_POISONED);
    cr_expect_neq(job[2]->error.detail[0], '\0');
    cr_expect_eq(job[2]->group_members, 0);
    cr_expect_not(world_ended(world, job[3]), "a lane that was reset goes on");

    world_post(world, elsewhere);
    cr_assert_eq(pick(), 2);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(job[3]->error.status, WIRE_OK);
    cr_expect_eq(elsewhere->error.status, WIRE_OK, "lanes poison only themselves");
}

Test(scheduler_ends, what_is_posted_behind_a_failure_is_poisoned_as_well)
{
    struct job *failed = post(0, 3);
    failed->error.status = WIRE_NOT_FOUND;
    world_post(world, failed);
    struct job *late = post(0, 3);
    struct job *later = post(0, 3);
    world->holds_ready = true; /* which it need not wait for */
    world_post(world, late);
    world_post(world, later);
    cr_expect_eq(late->error.status, WIRE_LANE_POISONED);
    cr_expect_eq(later->error.status, WIRE_LANE_POISONED);
    cr_expect_eq(lane()->done, 3);
}

Test(scheduler_ends, members_of_a_submission_poison_only_what_follows)
{
    struct job *job[3];
    for (uint32_t i = 0; i < 3; i++) {
        job[i] = post(1, 1);
        job[i]->group_key = i;
        world_post(world, job[i]);
    }
    struct job *next = post(0, 1);
    world_post(world, next);
    for (uint32_t i = 0; i < 3; i++) {
        cr_assert_eq(pick(), 1);
        world_complete(world, 0, i == 0 ? WIRE_INTERNAL : WIRE_OK);
        cr_expect_eq(job[i]->error.status, i == 0 ? WIRE_INTERNAL : WIRE_OK);
    }
    cr_expect_eq(next->error.status, WIRE_LANE_POISONED);
}

Test(scheduler_ends, a_poisoned_submission_is_poisoned_as_a_whole)
{
    struct job *failed = post(0, 1);
    failed->error.status = WIRE_NOT_FOUND;
    world_post(world, failed);
    for (uint32_t i = 0; i < 3; i++) {
        struct job *job = post(2, 1);
        world_post(world, job);
        cr_expect_eq(job->error.status, WIRE_LANE_POISONED);
    }
}

Test(scheduler_ends, requests_without_an_epoch_neither_poison_nor_are_poisoned)
{
    struct job *job[3];
    for (uint32_t i = 0; i < 3; i++) {
        job[i] = post(0, i == 1 ? 5 : 0);
        world_post(world, job[i]);
    }
    for (uint32_t i = 0; i < 3; i++) {
        cr_assert_eq(pick(), 1);
        world_complete(world, 0, i < 2 ? WIRE_INTERNAL : WIRE_OK);
        cr_expect_eq(job[i]->error.status, i < 2 ? WIRE_INTERNAL : WIRE_OK);
    }
}

#include "scheduler.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "scheduler_world.h"

/* Budgets of 1000 flops: a turn is 250, the least cost of a member 1000/128. */
#define BUDGET 1000.0

static struct world *world; /* each test runs in a process of its own */

static void set_up(void)
{
    world = world_create(2, 1 << 20);
}

static void tear_down(void)
{
    cr_expect_null(fake_backend_fault(&world->fake), "%s", fake_backend_fault(&world->fake));
    cr_expect_null(world->fault, "%s", world->fault);
    world_destroy(world);
}

TestSuite(scheduler, .init = set_up, .fini = tear_down);

static struct job *post(uint32_t session, uint32_t lane, double flops, uint64_t tiles)
{
    struct job *job = world_job(world, session, lane);
    job->flops = flops;
    job->tiles = tiles;
    world_post(world, job);
    return job;
}

static size_t pick(void)
{
    return world_pick(world, BUDGET);
}

static size_t members_of(uint32_t session, const struct group *group)
{
    size_t count = 0;
    for (size_t i = 0; i < group->members; i++) {
        count += group->job[i]->session == session;
    }
    return count;
}

static double flops_of(uint32_t session, const struct group *group)
{
    double flops = 0;
    for (size_t i = 0; i < group->members; i++) {
        const struct job *job = group->job[i];
        uint64_t tiles = group->slice[i].end - group->slice[i].begin;
        flops += job->session == session ? job->flops * (double)tiles / (double)job->tiles : 0;
    }
    return flops;
}

Test(scheduler, joins_small_requests_of_different_sessions)
{
    for (uint32_t i = 0; i < 4; i++) {
        world_open(world, i, 100 + i);
        post(i, 0, 10, 1);
    }
    cr_expect_eq(pick(), 4);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(world->ended, 4);
    cr_expect_eq(world->job[0].group_members, 4);
    cr_expect_eq(world->job[0].group_id, world->job[3].group_id);
}

Test(scheduler, never_mixes_keys_families_or_directions)
{
    world_open(world, 0, 100);
    for (uint32_t lane = 0; lane < 8; lane++) {
        struct job *job = world_job(world, 0, lane);
        job->group_key = lane & 1;
        job->family = fake_family(lane >> 1 & 1);
        job->direction = (lane & 4) != 0 ? ATTN_FORWARD : ATTN_BACKWARD;
        world_post(world, job);
    }
    for (int i = 0; i < 8; i++) {
        cr_expect_eq(pick(), 1, "group %d", i);
        world_complete(world, 0, WIRE_OK);
    }
    cr_expect_eq(world->ended, 8);
}

Test(scheduler, keeps_the_order_of_a_lane)
{
    world_open(world, 0, 100);
    for (int i = 0; i < 3; i++) {
        post(0, 0, 10, 1);
    }
    for (uint32_t i = 0; i < 3; i++) {
        cr_assert_eq(pick(), 1);
        cr_expect_eq(fake_backend_group(&world->fake, 0)->job[0], &world->job[i]);
        cr_expect_eq(pick(), 0, "a later request overtakes a running one");
        cr_expect_eq(world->lane[0][0].done, i);
        world_complete(world, 0, WIRE_OK);
        cr_expect_eq(world->lane[0][0].done, i + 1);
    }
}

Test(scheduler, runs_the_members_of_a_submission_together_and_the_next_one_after_all_of_them)
{
    world_open(world, 0, 100);
    for (int i = 0; i < 3; i++) {
        struct job *job = world_job(world, 0, 5);
        job->array_first = 1;
        job->group_key = i == 1; /* the middle one can't join */
        world_post(world, job);
    }
    post(0, 5, 10, 1);
    cr_expect_eq(pick(), 2);
    cr_expect_eq(pick(), 0, "two groups of a lane at a time");
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(world->lane[0][5].done, 1, "`done` passed a request that has not ended");
    cr_expect_eq(world->ended, 2);
    cr_expect_eq(pick(), 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(world->lane[0][5].done, 3);
    cr_expect_eq(pick(), 1);
}

Test(scheduler, takes_late_members_of_a_submission_that_has_begun)
{
    world_open(world, 0, 100);
    for (uint32_t i = 0; i < 3; i++) {
        struct job *job = world_job(world, 0, 0);
        job->array_first = 1;
        world_post(world, job);
        cr_expect_eq(pick(), 1);
        world_complete(world, 0, WIRE_OK);
        cr_expect_eq(world->lane[0][0].done, i + 1);
    }
}

Test(scheduler, waits_for_inputs)
{
    world_open(world, 0, 100);
    world->holds_ready = true;
    post(0, 0, 10, 1);
    post(0, 1, 10, 1);
    cr_expect_eq(pick(), 0);
    world->lane[0][1].ready = 1;
    cr_expect_eq(pick(), 1);
    cr_expect_eq(fake_backend_group(&world->fake, 0)->job[0]->lane, 1);
    cr_expect_eq(world->lane[0][1].started, 1);
    cr_expect_eq(world->lane[0][0].started, 0);
}

Test(scheduler, follows_sequence_numbers_around_the_end_of_their_range)
{
    world_open(world, 0, 100);
    world->lane[0][0].next = UINT32_MAX - 1;
    world->lane[0][0].done = UINT32_MAX - 2;
    for (int i = 0; i < 4; i++) {
        struct job *job = world_job(world, 0, 0);
        job->array_first = UINT32_MAX - 1;
        world_post(world, job);
    }
    cr_expect_eq(pick(), 4);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(world->lane[0][0].done, 1);
    cr_expect_eq(world->lane[0][0].started, 1);
}

Test(scheduler, a_small_request_waits_for_two_slices_of_a_monster_at_most)
{
    world_open(world, 0, 100);
    world_open(world, 1, 101);
    post(0, 0, 1e6, 10000);
    cr_assert_eq(pick(), 1);
    cr_expect_leq(flops_of(0, fake_backend_group(&world->fake, 0)), BUDGET);
    struct job *small = post(1, 0, 10, 1);
    world_complete(world, 0, WIRE_OK);
    cr_assert_eq(pick(), 2, "the small request does not join the next group");
    cr_expect_leq(fake_backend_group(&world->fake, 0)->flops, BUDGET);
    world_complete(world, 0, WIRE_OK);
    cr_expect(world_ended(world, small));
    cr_expect_eq(world->ended, 1);
}

Test(scheduler, monsters_leave_room_for_each_other_and_for_small_requests)
{
    for (uint32_t i = 0; i < 4; i++) {
        world_open(world, i, 100 + i);
        post(i, 0, i < 3 ? 1e6 : 10, i < 3 ? 100000 : 1);
    }
    cr_assert_eq(pick(), 4);
    for (uint32_t i = 0; i < 3; i++) {
        cr_expect_geq(flops_of(i, fake_backend_group(&world->fake, 0)), 0.24 * BUDGET);
    }
    cr_expect_geq(fake_backend_group(&world->fake, 0)->flops, 0.98 * BUDGET);
}

Test(scheduler, a_request_that_could_fill_a_group_alone_shares_it)
{
    for (uint32_t i = 0; i < 2; i++) {
        world_open(world, i, 100 + i);
        post(i, 0, 900, 90);
    }
    cr_assert_eq(pick(), 2);
    cr_expect_geq(flops_of(1, fake_backend_group(&world->fake, 0)), 240);
}

Test(scheduler, finishes_a_monster_in_slices_that_fill_their_groups)
{
    world_open(world, 0, 100);
    struct job *monster = post(0, 0, 1e5, 1000);
    int slices = 0;
    while (pick() > 0) {
        world_complete(world, 0, WIRE_OK);
        slices++;
    }
    cr_expect(world_ended(world, monster));
    cr_expect_eq(monster->next_tile, 1000);
    cr_expect_geq(slices, 100);
    cr_expect_leq(slices, 102);
}

Test(scheduler, runs_a_tile_that_is_larger_than_any_group)
{
    world_open(world, 0, 100);
    struct job *job = post(0, 0, 1e6, 2);
    cr_expect_eq(pick(), 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(pick(), 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect(world_ended(world, job));
}

/* Both have work all the time; uid 100 has six sessions with heavy requests, uid 101 one with light
 * ones. */
static void share_between_uids(uint32_t keys)
{
    double served[2] = {0};
    for (uint32_t i = 0; i < 7; i++) {
        world_open(world, i, i < 6 ? 100 : 101);
    }
    for (int round = 0; round < 400; round++) {
        for (uint32_t i = 0; i < 7; i++) {
            for (uint32_t lane = 0; lane < 8; lane++) {
                if (world->lane[i][lane].next - world->lane[i][lane].done < 3) {
                    struct job *job = world_job(world, i, lane);
                    job->group_key = keys == 1 ? 0 : i == 6;
                    job->flops = i < 6 ? 700 : 90;
                    job->tiles = 7;
                    world_post(world, job);
                }
            }
        }
        cr_assert_gt(pick(), 0);
        const struct group *group = fake_backend_group(&world->fake, 0);
        for (uint32_t i = 0; i < 7; i++) {
            served[i == 6] += flops_of(i, group);
        }
        world_complete(world, 0, WIRE_OK);
        /* One group's worth ahead, and one more for the slice that exceeded its turn. */
        cr_assert_leq(fabs(served[0] - served[1]), 2 * BUDGET, "round %d: %.0f and %.0f", round,
            served[0], served[1]);
    }
}

Test(scheduler, is_fair_to_uids_whatever_their_load)
{
    share_between_uids(1);
}

Test(scheduler, is_fair_to_uids_whose_requests_can_not_share_a_group)
{
    share_between_uids(2);
}

Test(scheduler, lets_those_lead_that_could_not_join)
{
    for (uint32_t i = 0; i < 3; i++) {
        world_open(world, i, 100 + i);
        struct job *job = world_job(world, i, 0);
        job->group_key = i;
        world_post(world, job);
    }
    for (uint32_t i = 0; i < 3; i++) {
        cr_assert_eq(pick(), 1);
        cr_expect_eq(fake_backend_group(&world->fake, 0)->job[0]->session, i);
        world_complete(world, 0, WIRE_OK);
        post(i, 0, 10, 1)->group_key = i;
    }
}

Test(scheduler, requests_without_work_do_not_crowd_others_out)
{
    world_open(world, 0, 100);
    world_open(world, 1, 101);
    for (uint32_t lane = 0; lane < 8; lane++) {
        for (int i = 0; i < WIRE_MAX_CALLS; i++) {
            struct job *job = world_job(world, 0, lane);
            job->array_first = 1;
            job->flops = 0;
            world_post(world, job);
        }
    }
    post(1, 0, 100, 1);
    cr_expect_leq(pick(), GROUP_MAX_MEMBERS);
    const struct group *group = fake_backend_group(&world->fake, 0);
    cr_expect_eq(members_of(1, group), 1);
    cr_expect_gt(members_of(0, group), 64);
}

Test(scheduler, requests_with_an_error_only_take_their_turn)
{
    world_open(world, 0, 100);
    world->holds_ready = true;
    post(0, 0, 10, 1);
    struct job *bad = world_job(world, 0, 0);
    bad->error.status = WIRE_INVALID_ARGUMENT;
    world_post(world, bad);
    post(0, 0, 10, 1);
    cr_expect_not(world_ended(world, bad));
    world->lane[0][0].ready = 1;
    cr_expect_eq(pick(), 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect(world_ended(world, bad));
    cr_expect_eq(bad->error.status, WIRE_INVALID_ARGUMENT);
    cr_expect_eq(bad->group_members, 0);
    cr_expect_eq(world->lane[0][0].done, 2);
    cr_expect_eq(pick(), 0);
}

Test(scheduler, a_failed_group_fails_all_its_members_for_good)
{
    world_open(world, 0, 100);
    world_open(world, 1, 101);
    struct job *sliced = post(0, 0, 1e6, 100000);
    struct job *small = post(1, 0, 10, 1);
    cr_expect_eq(pick(), 2);
    world_complete(world, 0, WIRE_DEVICE_FAULT);
    cr_expect(world_ended(world, sliced) && world_ended(world, small));
    cr_expect_eq(sliced->error.status, WIRE_DEVICE_FAULT);
    cr_expect_eq(small->error.status, WIRE_DEVICE_FAULT);
    cr_expect_str_not_empty(small->error.detail);
    cr_expect_eq(pick(), 0);
}

Test(scheduler, closing_cancels_what_does_not_run_and_waits_for_what_does)
{
    world_open(world, 0, 100);
    world_open(world, 1, 100);
    struct job *first = post(0, 0, 10, 1);
    struct job *second = post(0, 0, 10, 1);
    struct job *other = post(1, 0, 10, 1);
    cr_expect_eq(pick(), 2);
    struct job *late = post(0, 7, 10, 1);
    scheduler_close(world->scheduler, 0);
    cr_expect(world_ended(world, late));
    cr_expect_eq(late->error.status, WIRE_CANCELLED);
    cr_expect_not(world_ended(world, first) || world_ended(world, second));
    cr_expect_eq(world->closed, 0);
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(first->error.status, WIRE_OK);
    cr_expect_eq(second->error.status, WIRE_CANCELLED);
    cr_expect_eq(other->error.status, WIRE_OK);
    cr_expect_eq(world->closed, 1);
    cr_expect_eq(world->lane[0][0].done, 2);
}

Test(scheduler, cuts_nothing_below_what_fills_the_device)
{
    const uint64_t fill = 64;
    world_open(world, 0, 100);
    world_open(world, 1, 101);
    scheduler_set_fill(world->scheduler, fill);
    struct job *monster = post(0, 0, 200 * 100.0, 200); /* a budget's worth are 10 tiles */
    uint64_t begin = 0;
    while (begin < 200) {
        cr_assert_eq(pick(), 1);
        uint64_t wanted = 200 - begin < fill ? 200 - begin : fill;
        cr_assert_eq(world->group[0].slice[0].begin, begin);
        cr_expect_eq(world->group[0].slice[0].end - begin, wanted);
        cr_expect_float_eq(world->group[0].flops, 100.0 * (double)wanted, 1e-6);
        begin = world->group[0].slice[0].end;
        world_complete(world, 0, WIRE_OK);
    }
    cr_expect(world_ended(world, monster));
    /* Small ones that fit are not held up, nor asked for tiles that they do not have. */
    struct job *small = post(1, 0, 10, 1);
    cr_expect_eq(pick(), 1);
    world_complete(world, 0, WIRE_OK);
    cr_expect(world_ended(world, small));
}

Test(scheduler, closing_stops_a_monster_between_its_slices)
{
    world_open(world, 0, 100);
    struct job *monster = post(0, 0, 1e6, 1000);
    monster->workspace_bytes = 1 << 20;
    cr_expect_eq(pick(), 1);
    scheduler_close(world->scheduler, 0);
    cr_expect_not(world_ended(world, monster));
    world_complete(world, 0, WIRE_OK);
    cr_expect_eq(monster->error.status, WIRE_CANCELLED);
    cr_expect_eq(world->closed, 1);
    cr_expect_not_null(arena_acquire(world->arena, 1 << 20), "its workspace is still taken");
}

Test(scheduler, an_idle_session_closes_at_once_and_its_slot_serves_again)
{
    for (int i = 0; i < 3; i++) {
        world_open(world, 4, 100);
        scheduler_close(world->scheduler, 4);
        cr_expect_eq(world->closed, i + 1);
    }
}

Test(scheduler, refuses_a_request_that_can_never_fit)
{
    world_open(world, 0, 100);
    struct job *job = world_job(world, 0, 0);
    job->workspace_bytes = (1 << 20) + 1;
    world_post(world, job);
    cr_expect(world_ended(world, job));
    cr_expect_eq(job->error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_not_null(strstr(job->error.detail, "1048577"));
}

/* Two groups overlap all the time, so that some small request always holds memory, unless they are held
 * back. */
Test(scheduler, a_request_that_waits_for_memory_is_served)
{
    struct job *large = NULL;
    int rounds = 0;
    for (uint32_t i = 0; i < 3; i++) {
        world_open(world, i, 100 + i);
    }
    for (; rounds < 1000 && (large == NULL || !world_ended(world, large)); rounds++) {
        for (uint32_t i = 0; i < 2; i++) {
            while (world->lane[i][0].next - world->lane[i][0].done < 3) {
                struct job *job = world_job(world, i, 0);
                job->group_key = i;
                job->workspace_bytes = 1 << 18;
                world_post(world, job);
            }
        }
        if (rounds == 10) {
            large = world_job(world, 2, 0);
            large->workspace_bytes = 1 << 20;
            world_post(world, large);
        }
        while (fake_backend_running(&world->fake) < 2 && pick() > 0) {}
        cr_assert_gt(fake_backend_running(&world->fake), 0, "round %d: nothing runs", rounds);
        world_complete(world, 0, WIRE_OK);
    }
    cr_expect(world_ended(world, large));
    cr_expect_gt(rounds, 20, "the large request did not have to wait: this test shows nothing");
    cr_expect_lt(rounds, 150);
}

/* The one who waits for memory is behind a member of its submission that then seems unready. */
Test(scheduler, a_liar_who_takes_readiness_back_while_waiting_for_memory_stops_nobody)
{
    for (uint32_t i = 0; i < 3; i++) {
        world_open(world, i, 100 + i);
        world->lane[i][0].ready = UINT32_MAX / 2;
    }
    world->holds_ready = true;
    struct job *monster = world_job(world, 1, 0);
    monster->flops = 1e4;
    monster->tiles = 100;
    monster->workspace_bytes = 1 << 19;
    world_post(world, monster);
    cr_expect_eq(pick(), 1);
    post(2, 0, 10, 1); /* leads, so that the first of the liar's can't join */
    for (int i = 0; i < 2; i++) {
        struct job *job = world_job(world, 0, 0);
        job->array_first = 1;
        job->group_key = i == 0;
        job->workspace_bytes = i == 0 ? 0 : 1 << 20;
        world_post(world, job);
    }
    cr_expect_eq(pick(), 1);
    world->lane[0][0].ready = 0;
    for (int i = 0; i < 300; i++) {
        for (uint32_t lane = 0; lane < 2; lane++) {
            if (world->lane[2][lane].next - world->lane[2][lane].done < 3) {
                struct job *job = world_job(world, 2, lane);
                job->workspace_bytes = 256;
                world->lane[2][lane].ready = job->sequence;
                world_post(world, job);
            }
        }
        if (fake_backend_running(&world->fake) > 0) {
            world_complete(world, 0, WIRE_OK);
        }
        pick();
    }
    cr_expect(world_ended(world, monster));
    cr_expect_gt(world->lane[2][0].done, 100);
}

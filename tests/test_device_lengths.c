/*
 * Where blocks of rows lie, of packed and other sequences, as device code works it out: the same code,
 * on the processor, against a count of every row.
 */
#include "device/lengths.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "dice.h"

#define SEED 20261122
#define MAX_BATCH 12
#define MAX_ROWS 700

/* A problem, and the copy of its lengths as the first stage would leave it. */
struct world {
    struct attn_problem problem;
    _Alignas(64) char workspace[1024];
    int32_t offsets[MAX_BATCH + 1]; /* never read: that there are some is all that matters */
};

static void draw_side(struct world *world, struct dice *dice, enum lengths_side side)
{
    struct attn_problem *problem = &world->problem;
    int64_t total = dice_below(dice, MAX_ROWS);
    int64_t longest = dice_below(dice, dice_one_in(dice, 3) ? 20 : MAX_ROWS);
    struct lengths_snapshot snapshot = lengths_snapshot_of(problem, world->workspace, side);
    int32_t at = (int32_t)dice_below(dice, (uint32_t)total / 2 + 1);

    *(side == LENGTHS_QUERIES ? &problem->seqlen_q : &problem->seqlen_k) = longest;
    *(side == LENGTHS_QUERIES ? &problem->lengths.total_q : &problem->lengths.total_k) = total;
    for (int32_t b = 0; b < problem->batch; b++) {
        int32_t room = (int32_t)total - at;
        int32_t extent =
            (int32_t)dice_below(dice, (uint32_t)(room / (dice_one_in(dice, 4) ? 1 : 4)) + 1);
        snapshot.start[b] = at;
        snapshot.length[b] = extent < longest ? extent : (int32_t)longest;
        if (dice_one_in(dice, 5)) {
            snapshot.length[b] = (int32_t)dice_below(dice, (uint32_t)snapshot.length[b] + 1);
        }
        at += extent;
    }
    snapshot.start[problem->batch] = at;
}

static void draw_world(struct world *world, struct dice *dice, bool packed)
{
    memset(world, 0, sizeof(*world));
    memset(world->workspace, 0xff, sizeof(world->workspace));
    world->problem.batch = (int32_t)dice_below(dice, MAX_BATCH + 1);
    world->problem.heads_q = world->problem.heads_kv = 1;
    world->problem.lengths.cu_seqlens_q = packed ? world->offsets : NULL;
    world->problem.lengths.cu_seqlens_k = packed ? world->offsets : NULL;
    draw_side(world, dice, LENGTHS_QUERIES);
    draw_side(world, dice, LENGTHS_KEYS);
}

/* Every row that counts is in one block, blocks begin at multiples of their rows, others are spare. */
static void check_blocks(const struct world *world, enum lengths_side side, int64_t rows)
{
    static unsigned char seen[MAX_BATCH][MAX_ROWS];
    const struct attn_problem *problem = &world->problem;
    int64_t blocks = lengths_blocks(problem, side, rows);

    memset(seen, 0, sizeof(seen));
    for (int64_t block = 0; block < blocks; block++) {
        struct lengths_place place = lengths_place_of(problem, world->workspace, side, rows, block);
        if (place.batch < 0) {
            continue;
        }
        cr_assert_lt(place.batch, problem->batch);
        cr_assert_eq(place.row % rows, 0);
        int32_t extent = lengths_sequence_of(problem, world->workspace, side, place.batch).extent;
        cr_assert_lt(place.row, extent, "a block without rows is not spare");
        for (int64_t row = place.row; row < place.row + rows && row < extent; row++) {
            seen[place.batch][row]++;
        }
    }
    for (int32_t b = 0; b < problem->batch; b++) {
        int32_t extent = lengths_sequence_of(problem, world->workspace, side, b).extent;
        for (int32_t row = 0; row < extent; row++) {
            cr_assert_eq(seen[b][row], 1, "row %d of sequence %d of %d is in %d blocks of %d", row,
                b, problem->batch, seen[b][row], (int)rows);
        }
    }
}

Test(device_lengths, every_row_is_in_one_block)
{
    struct dice dice = {SEED};
    for (int i = 0; i < 3000; i++) {
        struct world world;
        int64_t rows = INT64_C(32) << dice_below(&dice, 3);
        draw_world(&world, &dice, i % 4 != 0);
        check_blocks(&world, LENGTHS_QUERIES, rows);
        check_blocks(&world, LENGTHS_KEYS, rows);
    }
}

Test(device_lengths, few_blocks_are_spare)
{
    struct dice dice = {SEED + 1};
    for (int i = 0; i < 3000; i++) {
        struct world world;
        draw_world(&world, &dice, true);
        const struct attn_problem *problem = &world.problem;
        int64_t blocks = lengths_blocks(problem, LENGTHS_QUERIES, 64);
        cr_assert_leq(blocks, problem->lengths.total_q / 64 + problem->batch);
        cr_assert_leq(blocks, (problem->seqlen_q + 63) / 64 * problem->batch);
    }
}

Test(device_lengths, padding_is_what_no_sequence_has)
{
    struct dice dice = {SEED + 2};
    for (int i = 0; i < 3000; i++) {
        struct world world;
        bool has[MAX_ROWS] = {false};
        draw_world(&world, &dice, true);
        for (int32_t b = 0; b < world.problem.batch; b++) {
            struct lengths_sequence sequence =
                lengths_sequence_of(&world.problem, world.workspace, LENGTHS_KEYS, b);
            for (int32_t row = 0; row < sequence.length; row++) {
                has[sequence.first + row] = true;
            }
        }
        for (int64_t row = 0; row < world.problem.lengths.total_k; row++) {
            cr_assert_eq(
                lengths_padding(&world.problem, world.workspace, LENGTHS_KEYS, row), !has[row]);
        }
    }
}

Test(device_lengths, the_copy_has_room_for_both_sides)
{
    struct attn_problem problem = {.batch = 7};
    const char *base = NULL;
    int32_t offsets[8];
    cr_assert_eq(lengths_bytes(&problem), 0);
    problem.lengths.seqlens_k = offsets;
    struct lengths_snapshot queries = lengths_snapshot_of(&problem, base, LENGTHS_QUERIES);
    struct lengths_snapshot keys = lengths_snapshot_of(&problem, base, LENGTHS_KEYS);
    cr_assert_eq(lengths_bytes(&problem) % 64, 0);
    cr_assert_eq((uintptr_t)queries.length, (uintptr_t)(8 * sizeof(int32_t)));
    cr_assert_geq((uintptr_t)keys.start, (uintptr_t)queries.length + 7 * sizeof(int32_t));
    cr_assert_leq((uintptr_t)keys.length + 7 * sizeof(int32_t), lengths_bytes(&problem));
}

Test(device_lengths, a_dense_side_is_as_long_as_its_tensor)
{
    struct world world;
    struct dice dice = {SEED + 3};
    draw_world(&world, &dice, false);
    world.problem.batch = 3;
    world.problem.seqlen_k = 90;
    world.problem.lengths.seqlens_k = world.offsets;
    lengths_snapshot_of(&world.problem, world.workspace, LENGTHS_KEYS).length[2] = 17;
    struct lengths_sequence keys =
        lengths_sequence_of(&world.problem, world.workspace, LENGTHS_KEYS, 2);
    cr_assert_eq(keys.batch, 2);
    cr_assert_eq(keys.first, 0);
    cr_assert_eq(keys.length, 17);
    cr_assert_eq(keys.extent, 90);
    cr_assert_eq(lengths_blocks(&world.problem, LENGTHS_KEYS, 32), 9);
}

Test(device_lengths, numbers_are_as_large_as_they_may_be)
{
    struct attn_problem problem = {.batch = INT32_MAX, .seqlen_q = 1000000000};
    int32_t offsets[1] = {0};
    int64_t each = 7812500;
    cr_assert_eq(lengths_blocks(&problem, LENGTHS_QUERIES, 128), each * INT32_MAX);
    struct lengths_place place =
        lengths_place_of(&problem, NULL, LENGTHS_QUERIES, 128, each * INT32_MAX - 1);
    cr_assert_eq(place.batch, INT32_MAX - 1);
    cr_assert_eq(place.row, 999999872);
    problem.lengths.cu_seqlens_q = offsets;
    problem.lengths.total_q = INT64_C(1) << 40;
    problem.batch = 100000;
    cr_assert_eq(lengths_blocks(&problem, LENGTHS_QUERIES, 64), (INT64_C(1) << 34) + 100000);
}

Test(device_lengths, quotients_are_those_of_long_divisions)
{
    struct dice dice = {SEED + 4};
    for (int i = 0; i < 10000; i++) {
        int64_t a = (int64_t)(dice_next(&dice) >> (1 + dice_below(&dice, 60)));
        int64_t b = (int64_t)(dice_next(&dice) >> (1 + dice_below(&dice, 60))) + 1;
        cr_assert_eq(lengths_quotient(a, b), a / b);
    }
}

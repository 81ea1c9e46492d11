/*
 * How the backward pass on GPUs numbers its groups of rows and lays out its workspace, against what
 * that has to be: nothing overlaps, everything has room, nothing is there that nobody needs.
 */
#include "sm80/backward_layout.h"

#include <criterion/criterion.h>

#include "dice.h"

#define SEQUENCES 24

static struct attn_problem dense_problem(void)
{
    return (struct attn_problem){
        .dtype = ATTN_BF16,
        .batch = 3,
        .heads_q = 6,
        .heads_kv = 2,
        .head_dim_qk = 72,
        .head_dim_v = 40,
        .seqlen_q = 100,
        .seqlen_k = 333,
        .scale = 1,
        .window_left = ATTN_UNBOUNDED,
        .window_right = ATTN_UNBOUNDED,
        .alignment = ATTN_TOP_LEFT,
    };
}

Test(backward_layout, width_is_the_narrowest_tile)
{
    static const int tiles[] = {32, 64, 96, 128, 192, 256};
    struct attn_problem problem = dense_problem();

    for (int width = 1; width <= ATTN_MAX_HEAD_DIM; width++) {
        int narrowest = 0;
        while (tiles[narrowest] < width) {
            narrowest++;
        }
        problem.head_dim_qk = width;
        problem.head_dim_v = 1;
        cr_expect_eq(backward_width(&problem), tiles[narrowest], "head_dim_qk %d", width);
        problem.head_dim_qk = 1;
        problem.head_dim_v = width;
        cr_expect_eq(backward_width(&problem), tiles[narrowest], "head_dim_v %d", width);
    }
}

/* Sequences of packed rows, some of them empty, some shorter than their rows. */
static void check_packed(struct dice *dice)
{
    static const int32_t offsets[1] = {0};
    struct attn_problem problem = dense_problem();
    int64_t at = (int64_t)dice_below(dice, 40);
    int64_t free_group = 0;

    problem.batch = 1 + (int32_t)dice_below(dice, SEQUENCES);
    problem.lengths.cu_seqlens_q = offsets; /* that it is there is all that counts */
    struct lengths_sequence sequences[SEQUENCES];
    for (int32_t b = 0; b < problem.batch; b++) {
        int32_t rows = dice_one_in(dice, 4) ? 0 : (int32_t)dice_below(dice, 90);
        sequences[b] = (struct lengths_sequence){.first = at, .length = rows, .extent = rows};
        at += rows;
    }
    problem.lengths.total_q = at;
    for (int32_t b = 0; b < problem.batch; b++) {
        int64_t first = backward_first_group(&problem, &sequences[b], b);
        cr_assert_geq(first, free_group, "sequence %d begins in another one's group", (int)b);
        free_group = first + (sequences[b].length + BACKWARD_GROUP - 1) / BACKWARD_GROUP;
        cr_assert_eq(
            backward_first_row(&problem, LENGTHS_QUERIES, &sequences[b]), sequences[b].first);
    }
    cr_assert_leq(free_group, backward_groups(&problem));
    cr_assert_eq(backward_all_rows(&problem, LENGTHS_QUERIES), at);
}

Test(backward_layout, groups_of_packed_sequences_are_their_own)
{
    struct dice dice = {1};

    for (int i = 0; i < 2000; i++) {
        check_packed(&dice);
    }
}

Test(backward_layout, groups_of_dense_batches_follow_each_other)
{
    struct attn_problem problem = dense_problem(); /* 100 rows: 7 groups */

    cr_expect_eq(backward_groups(&problem), 3 * 7);
    for (int32_t b = 0; b < problem.batch; b++) {
        struct lengths_sequence sequence = {.batch = b, .length = 100, .extent = 100};
        cr_expect_eq(backward_first_group(&problem, &sequence, b), b * 7);
        cr_expect_eq(backward_first_row(&problem, LENGTHS_QUERIES, &sequence), b * 100);
    }
}

Test(backward_layout, parts_have_room_and_no_more_than_64_bytes_too_much)
{
    struct attn_problem problem = dense_problem();
    struct backward_layout layout = backward_layout_of(&problem);
    size_t rows = 3 * 6 * 100 * sizeof(float);

    cr_expect_eq(layout.lse, 0);
    cr_expect(layout.delta >= rows && layout.delta < rows + 64);
    cr_expect(layout.slopes >= layout.delta + rows);
    cr_expect_eq(layout.bias, layout.slopes, "no slopes, no sums for them");
    cr_expect_eq(layout.dq, layout.bias, "no dbias, no sums for it");
    cr_expect_eq(layout.bytes - layout.dq, 3 * 7 * 16 * 6 * 96 * sizeof(float));
    cr_expect_eq(layout.delta % 64 + layout.slopes % 64 + layout.dq % 64, 0);
}

Test(backward_layout, dq_has_sums_only_if_blocks_of_keys_make_it)
{
    float number;
    struct attn_problem problem = dense_problem();

    problem.deterministic = true;
    struct backward_layout layout = backward_layout_of(&problem);
    cr_expect_eq(layout.bytes, layout.dq);
    problem.deterministic = false;
    problem.dslopes.data = &number;
    layout = backward_layout_of(&problem);
    cr_expect_eq(layout.bytes, layout.dq);
    cr_expect_geq(layout.bias - layout.slopes, 3 * 6 * 100 * sizeof(float));
}

Test(backward_layout, a_vectors_gradient_has_sums_of_its_side)
{
    float number;
    struct attn_problem problem = dense_problem();

    problem.bias.data = &number;
    problem.dbias.data = &number;
    problem.bias_broadcast[2] = true; /* over the queries: a number for each key */
    struct backward_layout layout = backward_layout_of(&problem);
    cr_expect_eq(backward_bias_side(&problem), LENGTHS_KEYS);
    cr_expect_geq(layout.dq - layout.bias, 3 * 6 * 333 * sizeof(float));
    cr_expect_eq(backward_dbias_tiles(&problem), 0, "blocks that own keys leave them");
    cr_expect_eq(backward_vector_blocks(&problem), 6);

    problem.bias_broadcast[3] = true; /* one number in all, from one for each query */
    layout = backward_layout_of(&problem);
    cr_expect_eq(backward_bias_side(&problem), LENGTHS_QUERIES);
    cr_expect(layout.dq - layout.bias >= 3 * 6 * 100 * sizeof(float) &&
              layout.dq - layout.bias < 3 * 6 * 100 * sizeof(float) + 64);
    cr_expect_eq(backward_vector_blocks(&problem), 1);
    cr_expect_eq(backward_dbias_tiles(&problem), 0, "they come with delta");

    problem.bias_broadcast[2] = problem.bias_broadcast[3] = false;
    layout = backward_layout_of(&problem);
    cr_expect_eq(layout.dq, layout.bias, "a matrix needs no sums");
    problem.bias_dtype = ATTN_FP32;
    cr_expect_eq(backward_dbias_tiles(&problem), 3 * 6 * 2 * 6);
    problem.bias_broadcast[0] = true;
    cr_expect_eq(backward_dbias_tiles(&problem), 6 * 2 * 6);
}

Test(backward_layout, blocks_of_keys_write_what_is_nothing_but_ds)
{
    float number;
    static const int32_t offsets[1] = {0};
    struct attn_problem problem = dense_problem();

    cr_expect_not(backward_dbias_direct(&problem), "no dbias");
    problem.bias.data = &number;
    problem.dbias.data = &number;
    problem.bias_dtype = problem.dtype;
    cr_expect(backward_dbias_direct(&problem));

    struct attn_problem other = problem;
    other.bias_dtype = ATTN_FP32;
    cr_expect_not(backward_dbias_direct(&other), "ds is rounded to the dtype");
    other = problem;
    other.softcap = 1;
    cr_expect_not(backward_dbias_direct(&other), "ds has the derivative of the cap");
    other = problem;
    other.dropout_threshold = 1;
    cr_expect_not(backward_dbias_direct(&other), "ds is not scaled");
    other = problem;
    other.lengths.cu_seqlens_k = offsets;
    cr_expect_not(backward_dbias_direct(&other), "no block owns keys beyond a sequence");
    other = problem;
    other.bias_broadcast[0] = true;
    cr_expect_not(backward_dbias_direct(&other), "a sum of batches");
    other.batch = 1;
    cr_expect(backward_dbias_direct(&other), "a sum of one batch");
    other.bias_broadcast[1] = true;
    cr_expect_not(backward_dbias_direct(&other), "a sum of heads");
}

/*
 * What the sm80 family launches, without a device: its C sources between a runtime that writes launches
 * down and kernels that are names.
 */
#include "attn.h"

#include <criterion/criterion.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "dice.h"
#include "family.h"
#include "sm80/backward.h"
#include "sm80/backward_layout.h"

#define SEED 20261123
#define MAX_TILES 4000
#define MAX_STAGES 16
#define PROBLEMS 40

/* -- kernels: each an address of its own ---------------------------------------------------------- */

static const char names[1024];

#define KERNEL(n)                                                                                  \
    {                                                                                              \
        .function = &names[n], .threads = 128, .shared_bytes = 50000 + (n), .rows = 64, .keys = 64 \
    }
#define KINDS(n)                                    \
    {                                               \
        KERNEL(n), KERNEL((n) + 1), KERNEL((n) + 2) \
    }
#define FORWARD(n)                   \
    {                                \
        {                            \
            KINDS(n), KINDS((n) + 3) \
        }                            \
    }
#define FOUR(n)                              \
    {                                        \
        {KERNEL(n), KERNEL((n) + 1)},        \
        {                                    \
            KERNEL((n) + 2), KERNEL((n) + 3) \
        }                                    \
    }
#define BACKWARD(n)                                                                                \
    {                                                                                              \
        .columns = {{KINDS(n), KINDS((n) + 3)}}, .summing = FOUR((n) + 6), .rows = FOUR((n) + 10), \
        .dbias = FOUR((n) + 14),                                                                   \
    }

const struct sm80_kernels sm80_forward_d32 = FORWARD(0);
const struct sm80_kernels sm80_forward_d64 = FORWARD(10);
const struct sm80_kernels sm80_forward_d96 = FORWARD(20);
const struct sm80_kernels sm80_forward_d128 = FORWARD(30);
const struct sm80_kernels sm80_forward_d192 = FORWARD(40);
const struct sm80_kernels sm80_forward_d256 = FORWARD(50);
const struct backward_kernels sm80_backward_d32 = BACKWARD(100);
const struct backward_kernels sm80_backward_d64 = BACKWARD(120);
const struct backward_kernels sm80_backward_d96 = BACKWARD(140);
const struct backward_kernels sm80_backward_d128 = BACKWARD(160);
const struct backward_kernels sm80_backward_d192 = BACKWARD(180);
const struct backward_kernels sm80_backward_d256 = BACKWARD(200);
const struct sm80_kernel sm80_backward_delta[2] = {KERNEL(300), KERNEL(301)};
const struct sm80_kernel sm80_backward_convert[2] = {KERNEL(302), KERNEL(303)};
const struct sm80_kernel sm80_backward_sums[2] = {KERNEL(304), KERNEL(305)};
const struct sm80_kernel sm80_lengths = KERNEL(400);
const struct sm80_kernel sm80_padding_forward = KERNEL(401);
const struct sm80_kernel sm80_padding_backward = KERNEL(402);

/* -- the runtime ---------------------------------------------------------------------------------- */

/* A problem of a launch: how often each tile of each stage has run, and how far its stages are. */
struct subject {
    struct attn_problem problem;
    unsigned char ran[MAX_STAGES][MAX_TILES];
    size_t stage;
    char workspace;
};

static struct {
    const struct sm80_direction *direction;
    struct subject subjects[PROBLEMS];
    size_t launches;
    cudaError_t answer;
    bool prepared[sizeof(names)];
} runtime;

static size_t stage_of(const struct subject *subject, const void *kernel)
{
    for (size_t i = 0; i < runtime.direction->stage_count; i++) {
        const struct sm80_stage *stage = &runtime.direction->stages[i];
        if (stage->tiles(&subject->problem) > 0 &&
            stage->kernel(&subject->problem)->function == kernel) {
            return i;
        }
    }
    cr_assert_fail("a kernel that the problem does not need");
    return 0;
}

static void run_item(const struct device_item *item, const void *kernel, uint64_t blocks)
{
    struct subject *subject = NULL;
    for (size_t i = 0; i < PROBLEMS; i++) {
        if (item->workspace == &runtime.subjects[i].workspace) {
            subject = &runtime.subjects[i];
        }
    }
    cr_assert_not_null(subject, "a launch has the workspace of no problem");
    cr_assert_eq(memcmp(&item->problem, &subject->problem, sizeof(subject->problem)), 0);
    size_t stage = stage_of(subject, kernel);
    cr_assert_geq(stage, subject->stage, "an earlier stage runs later");
    subject->stage = stage;
    for (uint64_t tile = item->first; tile < item->first + blocks; tile++) {
        cr_assert_lt(tile, runtime.direction->stages[stage].tiles(&subject->problem));
        subject->ran[stage][tile]++;
    }
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
    size_t shared_bytes, cudaStream_t stream)
{
    const struct device_group *group = arguments[0];
    uint32_t begin = 0;
    runtime.launches++;
    cr_assert_eq((const void *)stream, (const void *)&runtime);
    cr_assert_eq(shared_bytes, 50000 + (size_t)((const char *)kernel - names));
    cr_assert(block.x == 128 && block.y == 1 && block.z == 1 && grid.y == 1 && grid.z == 1);
    cr_assert(group->items >= 1 && group->items <= DEVICE_MAX_ITEMS);
    for (uint32_t i = 0; i < group->items; i++) {
        cr_assert_gt(group->end[i], begin, "an item has no block");
        run_item(&group->item[i], kernel, group->end[i] - begin);
        begin = group->end[i];
    }
    cr_assert_eq(begin, grid.x);
    return runtime.answer;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel)
{
    memset(attributes, 0, sizeof(*attributes));
    runtime.prepared[(const char *)kernel - names] = true;
    return runtime.answer;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    cr_assert_eq(attribute, cudaFuncAttributeMaxDynamicSharedMemorySize);
    cr_assert_eq(value, 50000 + ((const char *)kernel - names));
    return cudaSuccess;
}

static size_t count_stages(const struct sm80_direction *direction)
{
    cr_assert_leq(direction->stage_count, MAX_STAGES);
    return direction->stage_count;
}

/* -- problems ------------------------------------------------------------------------------------- */

static char there; /* where tensors are; nobody looks */

static void draw_options(struct attn_problem *problem, struct dice *dice)
{
    problem->deterministic = dice_one_in(dice, 2);
    problem->dsinks.data = dice_one_in(dice, 2) ? &there : NULL;
    problem->sinks.data = &there;
    if (problem->softcap > 0) { /* of the general kind, all of them */
        problem->dslopes.data = dice_one_in(dice, 2) ? &there : NULL;
        problem->slopes.data = &there;
        problem->bias.data = &there;
        problem->bias_dtype = ATTN_FP32;
        problem->dbias.data = dice_one_in(dice, 2) ? &there : NULL;
        for (int i = 0; i < 4; i++) {
            problem->bias_broadcast[i] = dice_one_in(dice, 2);
        }
    }
}

static void draw_problem(struct attn_problem *problem, struct dice *dice, bool general)
{
    static const int32_t offsets[9];
    *problem = (struct attn_problem){
        .dtype = ATTN_BF16,
        .batch = (int32_t)dice_below(dice, 5),
        .heads_q = 2,
        .heads_kv = 1 + (int32_t)dice_below(dice, 2),
        .head_dim_qk = 33 + (int32_t)dice_below(dice, 32),
        .head_dim_v = 64,
        .seqlen_q = dice_below(dice, 400),
        .seqlen_k = dice_below(dice, 400),
        .scale = 1,
        .softcap = general ? 2 : 0,
        .window_left = ATTN_UNBOUNDED,
        .window_right = ATTN_UNBOUNDED,
        .alignment = ATTN_TOP_LEFT,
    };
    struct attn_lengths *lengths = &problem->lengths;
    lengths->cu_seqlens_q = dice_one_in(dice, 2) ? offsets : NULL;
    lengths->cu_seqlens_k = dice_one_in(dice, 2) ? offsets : NULL;
    lengths->seqlens_k = dice_one_in(dice, 3) ? offsets : NULL;
    lengths->total_q = dice_below(dice, 1000);
    lengths->total_k = dice_below(dice, 1000);
    problem->lse.data = problem->dlse.data = dice_one_in(dice, 2) ? &there : NULL;
    draw_options(problem, dice);
}

/* Slices of all problems, cut anywhere, until nothing is left. */
static void launch_all(enum attn_direction direction, size_t count, struct dice *dice)
{
    struct attn_target target = {.stream = &runtime};
    uint64_t done[PROBLEMS] = {0};
    size_t slices;
    do {
        struct attn_slice slice[PROBLEMS];
        slices = 0;
        for (size_t i = 0; i < count; i++) {
            struct subject *subject = &runtime.subjects[i];
            uint64_t left = sm80_family.tile_count(direction, &subject->problem) - done[i];
            uint64_t step = 1 + dice_below(dice, dice_one_in(dice, 2) ? 5 : MAX_TILES);
            step = step < left ? step : left;
            if (left > 0) {
                slice[slices++] = (struct attn_slice){
                    &subject->problem, &subject->workspace, done[i], done[i] + step};
                done[i] += step;
            }
        }
        cr_assert_eq(sm80_family.launch(direction, slice, slices, &target), 0);
    } while (slices > 0);
}

static void check_tiles(size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct subject *subject = &runtime.subjects[i];
        for (size_t stage = 0; stage < count_stages(runtime.direction); stage++) {
            uint64_t tiles = runtime.direction->stages[stage].tiles(&subject->problem);
            cr_assert_lt(tiles, MAX_TILES);
            for (uint64_t tile = 0; tile < tiles; tile++) {
                cr_assert_eq(subject->ran[stage][tile], 1, "tile %d of stage %d ran %d times",
                    (int)tile, (int)stage, subject->ran[stage][tile]);
            }
        }
    }
}

static void draw_and_launch(enum attn_direction direction, struct dice *dice)
{
    bool general = dice_one_in(dice, 2);
    size_t count = dice_one_in(dice, 3) ? PROBLEMS : 1 + dice_below(dice, 5);
    memset(&runtime, 0, sizeof(runtime));
    runtime.direction = direction == ATTN_FORWARD ? &sm80_forward : &sm80_backward;
    for (size_t i = 0; i < count; i++) {
        struct attn_problem *problem = &runtime.subjects[i].problem;
        do { /* until it may share a launch with the first */
            draw_problem(problem, dice, general);
        } while (sm80_family.group_key(direction, problem) !=
                 sm80_family.group_key(direction, &runtime.subjects[0].problem));
        cr_assert_null(sm80_family.unsupported(direction, problem));
    }
    launch_all(direction, count, dice);
    check_tiles(count);
}

Test(sm80, every_tile_of_every_stage_runs_once_and_in_order)
{
    struct dice dice = {SEED};
    for (int i = 0; i < 300; i++) {
        draw_and_launch(i % 2 == 0 ? ATTN_FORWARD : ATTN_BACKWARD, &dice);
    }
}

/* Of packed sequences none is as long as the longest may be, as far as the rows go. */
Test(sm80, a_vectors_gradient_has_tiles_for_rows_that_there_are)
{
    static const bool one[][4] = {{true, false, true, false}, {true, true, true, false},
        {true, false, false, true}, {true, false, true, true}, {false, false, true, true}};
    struct attn_problem problem;
    struct dice dice = {SEED + 5};
    draw_problem(&problem, &dice, true);
    problem.batch = 64;
    problem.heads_q = 16;
    problem.seqlen_q = problem.seqlen_k = 16384;
    problem.bias.data = problem.dbias.data = &there;
    problem.lengths.cu_seqlens_q = problem.lengths.cu_seqlens_k = (const int32_t *)(uintptr_t)names;
    problem.lengths.total_q = problem.lengths.total_k = 16384;
    for (size_t i = 0; i < sizeof(one) / sizeof(one[0]); i++) {
        memcpy(problem.bias_broadcast, one[i], sizeof(one[i]));
        const uint64_t most = 16 * (16384 / 64 + 64); /* of each stage */
        cr_expect_leq(sm80_family.tile_count(ATTN_BACKWARD, &problem), 5 * most, "bias %zu", i);
    }
    problem.seqlen_q = 1000000000; /* and one number in all: the last of them */
    cr_expect_leq(sm80_family.tile_count(ATTN_BACKWARD, &problem), 5 * 16 * (16384 / 64 + 64));
}

Test(sm80, problems_share_launches)
{
    struct attn_target target = {.stream = &runtime};
    struct attn_slice slice[PROBLEMS];
    struct dice dice = {SEED + 1};
    memset(&runtime, 0, sizeof(runtime));
    runtime.direction = &sm80_forward;
    for (size_t i = 0; i < PROBLEMS; i++) {
        struct subject *subject = &runtime.subjects[i];
        draw_problem(&subject->problem, &dice, false);
        subject->problem.batch = 1;
        subject->problem.seqlen_q = 1 + (int64_t)i;
        subject->problem.lengths = (struct attn_lengths){0};
        slice[i] = (struct attn_slice){&subject->problem, &subject->workspace, 0,
            sm80_family.tile_count(ATTN_FORWARD, &subject->problem)};
    }
    cr_assert_eq(sm80_family.launch(ATTN_FORWARD, slice, PROBLEMS, &target), 0);
    cr_assert_eq(runtime.launches, (PROBLEMS + DEVICE_MAX_ITEMS - 1) / DEVICE_MAX_ITEMS);
}

Test(sm80, a_launch_that_fails_is_the_last)
{
    struct attn_target target = {.stream = &runtime};
    struct dice dice = {SEED + 2};
    memset(&runtime, 0, sizeof(runtime));
    runtime.direction = &sm80_forward;
    runtime.answer = cudaErrorInvalidValue;
    struct subject *subject = &runtime.subjects[0];
    draw_problem(&subject->problem, &dice, false);
    subject->problem.batch = 2;
    subject->problem.seqlen_q = 100;
    subject->problem.lengths = (struct attn_lengths){.seqlens_k = (const int32_t *)names};
    struct attn_slice slice = {&subject->problem, &subject->workspace, 0,
        sm80_family.tile_count(ATTN_FORWARD, &subject->problem)};
    cr_assert_eq(sm80_family.launch(ATTN_FORWARD, &slice, 1, &target), (int)cudaErrorInvalidValue);
    cr_assert_eq(runtime.launches, 1);
}

/* Problems of one key take the same kernel in every stage, as a launch wants it. */
Test(sm80, keys_tell_kernels_apart)
{
    struct dice dice = {SEED + 7};
    for (int i = 0; i < 4000; i++) {
        struct attn_problem problems[2];
        bool general = dice_one_in(&dice, 2);
        draw_problem(&problems[0], &dice, general);
        draw_problem(&problems[1], &dice, general);
        if (sm80_family.group_key(ATTN_BACKWARD, &problems[0]) !=
            sm80_family.group_key(ATTN_BACKWARD, &problems[1])) {
            continue;
        }
        for (size_t stage = 0; stage < sm80_backward.stage_count; stage++) {
            cr_assert_eq(sm80_backward.stages[stage].kernel(&problems[0]),
                sm80_backward.stages[stage].kernel(&problems[1]));
        }
    }
}

/* Whatever a problem asks for, the kernel that does it has been made ready. */
Test(sm80, every_kernel_is_prepared)
{
    static const enum attn_dtype dtypes[2] = {ATTN_FP16, ATTN_BF16};
    struct dice dice = {SEED + 3};
    memset(&runtime, 0, sizeof(runtime));
    cr_assert_eq(sm80_family.prepare(), 0);
    for (int i = 0; i < 4000; i++) {
        struct attn_problem problem;
        const struct sm80_direction *direction = i % 2 == 0 ? &sm80_forward : &sm80_backward;
        draw_problem(&problem, &dice, dice_one_in(&dice, 2));
        problem.dtype = dtypes[dice_below(&dice, 2)];
        problem.head_dim_qk = 1 + (int32_t)dice_below(&dice, ATTN_MAX_HEAD_DIM);
        for (size_t stage = 0; stage < direction->stage_count; stage++) {
            const char *kernel = direction->stages[stage].kernel(&problem)->function;
            cr_assert(runtime.prepared[kernel - names]);
        }
    }
}

Test(sm80, what_fails_to_load_is_said)
{
    memset(&runtime, 0, sizeof(runtime));
    runtime.answer = cudaErrorInvalidValue;
    cr_assert_eq(sm80_family.prepare(), (int)cudaErrorInvalidValue);
}

Test(sm80, refuses_what_it_does_not_do)
{
    struct attn_problem problem;
    struct dice dice = {SEED + 4};
    draw_problem(&problem, &dice, false);
    problem.dtype = ATTN_FP32;
    cr_assert_str_eq(
        sm80_family.unsupported(ATTN_FORWARD, &problem), "fp32 is not computed on GPUs");
    problem.dtype = ATTN_FP16;
    cr_assert_null(sm80_family.unsupported(ATTN_BACKWARD, &problem));
    problem.seqlen_k = 1000000001;
    cr_assert_not_null(sm80_family.unsupported(ATTN_FORWARD, &problem));
    problem.seqlen_k = 1;
    problem.batch = problem.heads_q = 100000;
    cr_assert_not_null(sm80_family.unsupported(ATTN_FORWARD, &problem));
}

/* Head dims take the smallest tile that has room for both; other arithmetic takes other kernels. */
Test(sm80, keys_say_dims_dtype_and_kind)
{
    static const int32_t dims[SM80_WIDTHS] = {32, 64, 96, 128, 192, 256};
    struct attn_problem problem = {
        .dtype = ATTN_BF16, .head_dim_qk = 1, .head_dim_v = 1, .scale = 1};
    for (unsigned width = 0; width < SM80_WIDTHS; width++) {
        problem.head_dim_v = dims[width];
        cr_assert_eq(sm80_key_of(&problem).width, width);
        problem.head_dim_v = 1;
        problem.head_dim_qk = width > 0 ? dims[width - 1] + 1 : 1;
        cr_assert_eq(sm80_key_of(&problem).width, width);
    }
    cr_assert_eq(sm80_key_of(&problem).kind, SCORE_PLAIN);
    problem.bias.data = &there;
    cr_assert_eq(sm80_key_of(&problem).kind, SCORE_BIAS);
    problem.scale = -1; /* the greatest product is not the greatest score */
    cr_assert_eq(sm80_key_of(&problem).kind, SCORE_GENERAL);
    problem.scale = 1;
    problem.dropout_threshold = 1;
    cr_assert_eq(sm80_key_of(&problem).kind, SCORE_GENERAL);
    cr_assert(sm80_key_of(&problem).bf16);
}

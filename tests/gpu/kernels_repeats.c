/*
 * Races show as other bits: the same launch again and again while every multiprocessor is busy. Where dq
 * is summed in any order, all other results are the same bits nevertheless, and dq is hardly another.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "device.h"
#include "kernels.h"
#include "set.h"

struct shape {
    const char *name;
    struct set_extents extents;
    bool causal;
    int64_t window_left;
    float softcap;
    uint32_t dropout_threshold;
    bool bias; /* one for all batches and heads, with its gradient */
};

enum pass { PASS_FORWARD, PASS_DETERMINISTIC, PASS_ANY_ORDER, PASSES };

static const char *const pass_names[] = {
    "forward", "deterministic backward", "backward in any order"};

/* Most are 60 batches of 16 heads and more: many more blocks than the device holds. */
static const struct shape shapes[] = {
    {"d64", {64, 512, 16, 64}, false, ATTN_UNBOUNDED, 0, 0, false},
    {"d64 causal", {64, 512, 16, 64}, true, ATTN_UNBOUNDED, 0, 0, false},
    {"d128 causal", {60, 500, 16, 128}, true, ATTN_UNBOUNDED, 0, 0, false},
    {"d128 window, softcap, dropout", {60, 300, 16, 128}, true, 100, 20, 6554, false},
    {"d32", {128, 200, 16, 32}, false, ATTN_UNBOUNDED, 0, 0, false},
    {"d96", {60, 256, 16, 96}, false, ATTN_UNBOUNDED, 0, 0, false},
    {"d192", {60, 200, 8, 192}, true, ATTN_UNBOUNDED, 0, 0, false},
    {"d256 causal", {60, 256, 8, 256}, true, ATTN_UNBOUNDED, 0, 0, false},
    {"d64 bias", {16, 250, 8, 64}, false, ATTN_UNBOUNDED, 0, 0, true},
    {"d128 bias causal", {16, 256, 8, 128}, true, ATTN_UNBOUNDED, 0, 0, true},
};

struct runner {
    const struct attn_family *family;
    struct set set;
    struct attn_problem problem;
    void *workspace;
    size_t workspace_bytes;
    cudaStream_t stream;
};

static struct attn_view view_of(const struct set *set, enum set_tensor tensor)
{
    const int64_t *shape = set->shape;
    if (tensor == SET_LSE) {
        return (struct attn_view){.data = set->tensor[tensor].data,
            .batch_stride = shape[1] * shape[2],
            .row_stride = 1,
            .head_stride = shape[1]};
    }
    return (struct attn_view){.data = set->tensor[tensor].data,
        .batch_stride = shape[1] * shape[2] * shape[3],
        .row_stride = shape[2] * shape[3],
        .head_stride = shape[3],
        .column_stride = 1};
}

/* A number for each query and key. Its gradient lies where the memory of lse has room for it. */
static struct attn_view bias_view(void *data, const struct set_extents *e)
{
    return (struct attn_view){.data = data, .row_stride = e->seqlen, .column_stride = 1};
}

static uint16_t *dbias_data(const struct set *set)
{
    return set_data(set, SET_LSE) + 2 * set->shape[0] * set->shape[1] * set->shape[2];
}

static struct attn_problem problem_of(
    const struct set *set, const struct shape *shape, enum pass pass)
{
    const struct set_extents *e = &shape->extents;
    struct attn_problem problem = {.dtype = ATTN_BF16,
        .batch = (int32_t)e->batch,
        .heads_q = (int32_t)e->heads,
        .heads_kv = (int32_t)e->heads,
        .head_dim_qk = (int32_t)e->head_dim,
        .head_dim_v = (int32_t)e->head_dim,
        .seqlen_q = e->seqlen,
        .seqlen_k = e->seqlen,
        .scale = 1.0F / sqrtf((float)e->head_dim),
        .softcap = shape->softcap,
        .window_left = shape->window_left,
        .window_right = shape->causal ? 0 : ATTN_UNBOUNDED,
        .alignment = ATTN_BOTTOM_RIGHT,
        .deterministic = pass == PASS_DETERMINISTIC,
        .dropout_threshold = shape->dropout_threshold,
        .dropout_seed = 5,
        .bias_dtype = shape->bias ? ATTN_BF16 : ATTN_FP32,
        .bias_broadcast = {true, true, false, false},
        .q = view_of(set, SET_Q),
        .k = view_of(set, SET_K),
        .v = view_of(set, SET_V),
        .out = view_of(set, SET_OUT),
        .lse = view_of(set, SET_LSE)};
    if (shape->bias) {
        problem.bias = bias_view(set_data(set, SET_Q), e);
    }
    if (shape->bias && pass != PASS_FORWARD) {
        problem.dbias = bias_view(dbias_data(set), e);
    }
    if (pass != PASS_FORWARD) {
        problem.dout = view_of(set, SET_DOUT);
        problem.dq = view_of(set, SET_DQ);
        problem.dk = view_of(set, SET_DK);
        problem.dv = view_of(set, SET_DV);
    }
    return problem;
}

static enum attn_direction direction_of(enum pass pass)
{
    return pass == PASS_FORWARD ? ATTN_FORWARD : ATTN_BACKWARD;
}

static void runner_init(
    struct runner *runner, const struct kernels *kernels, const struct shape *shape, enum pass pass)
{
    *runner = (struct runner){.family = kernels->family};
    CU(cudaStreamCreateWithFlags(&runner->stream, cudaStreamNonBlocking));
    set_alloc(&runner->set, &shape->extents);
    runner->problem = problem_of(&runner->set, shape, pass);
    runner->workspace_bytes =
        attn_workspace_bytes(runner->family, direction_of(pass), &runner->problem);
    CU(cudaMalloc(&runner->workspace, runner->workspace_bytes));
    set_fill(&runner->set, runner->stream, 1);
}

static void runner_finish(struct runner *runner)
{
    CU(cudaStreamSynchronize(runner->stream));
    CU(cudaFree(runner->workspace));
    set_free(&runner->set);
    CU(cudaStreamDestroy(runner->stream));
}

static void launch(struct runner *runner, enum attn_direction direction,
    const struct attn_problem *problem, void *workspace)
{
    const struct attn_target target = {.stream = runner->stream};
    const struct attn_slice slice = {.problem = problem,
        .workspace = workspace,
        .end = attn_tile_count(runner->family, direction, problem)};
    CU(attn_launch(runner->family, direction, &slice, 1, &target));
}

/* What a backward reads. */
static void launch_forward_once(struct runner *runner)
{
    void *workspace = NULL;
    struct attn_problem forward = runner->problem;
    forward.dout = forward.dq = forward.dk = forward.dv = forward.dbias = (struct attn_view){0};
    CU(cudaMalloc(&workspace, attn_workspace_bytes(runner->family, ATTN_FORWARD, &forward)));
    launch(runner, ATTN_FORWARD, &forward, workspace);
    CU(cudaStreamSynchronize(runner->stream));
    CU(cudaFree(workspace));
}

/* Words of results that must not be others. lse, of which backward writes nothing, has dbias behind it. */
static uint64_t differences(const struct set *set, const struct set *first, enum pass pass)
{
    enum set_tensor begin = pass == PASS_FORWARD         ? SET_OUT
                            : pass == PASS_DETERMINISTIC ? SET_DQ
                                                         : SET_DK;
    size_t tensors = pass == PASS_FORWARD ? 1 : pass == PASS_DETERMINISTIC ? 3 : 2;
    return work_differences(set_data(set, begin), set_data(first, begin), tensors * set->pitch) +
           work_differences(set_data(set, SET_LSE), set_data(first, SET_LSE), set->pitch);
}

/* Infinite if one is NaN. */
static float largest_of(const struct set *set, enum set_tensor tensor, const struct set *zeros)
{
    return work_distance(set_data(set, tensor), set_data(zeros, SET_DV), set->count);
}

/* Runs it first, and notes what came out. Returns the largest result: it is plausible if finite. */
static float run_first(
    struct runner *runner, struct set *first, const struct shape *shape, enum pass pass)
{
    if (pass != PASS_FORWARD) {
        launch_forward_once(runner);
    }
    launch(runner, direction_of(pass), &runner->problem, runner->workspace);
    CU(cudaStreamSynchronize(runner->stream));
    set_alloc(first, &shape->extents);
    CU(cudaMemset(first->memory, 0, set_bytes(&shape->extents)));
    float largest = largest_of(&runner->set, pass == PASS_FORWARD ? SET_OUT : SET_DQ, first);
    CU(cudaMemcpy(
        first->memory, runner->set.memory, set_bytes(&shape->extents), cudaMemcpyDeviceToDevice));
    return largest;
}

/* Nothing that a launch before has left may help the next one. */
static void poison_results(struct runner *runner, const struct shape *shape, enum pass pass)
{
    const struct set *set = &runner->set;
    if (pass == PASS_FORWARD) {
        work_poison(runner->stream, set_data(set, SET_OUT), set->pitch);
        work_poison(runner->stream, set_data(set, SET_LSE), set->pitch);
    } else {
        work_poison(runner->stream, set_data(set, SET_DQ), 3 * set->pitch);
    }
    if (runner->problem.dbias.data != NULL) {
        size_t bytes = (size_t)(shape->extents.seqlen * shape->extents.seqlen) * sizeof(uint16_t);
        work_poison(runner->stream, dbias_data(set), bytes);
    }
    work_poison(runner->stream, runner->workspace, runner->workspace_bytes);
}

/* `noise` is another problem on another stream, so that blocks meet others in every launch. */
static void repeat(
    struct kernels *kernels, struct runner *noise, const struct shape *shape, enum pass pass)
{
    struct runner runner;
    struct set first;
    char label[128];
    uint64_t different = 0;
    float apart = 0;
    if (!kernels_begin(kernels)) {
        return;
    }
    runner_init(&runner, kernels, shape, pass);
    float largest = run_first(&runner, &first, shape, pass);
    for (unsigned i = 0; i < kernels->repeats; i++) {
        poison_results(&runner, shape, pass);
        launch(noise, ATTN_FORWARD, &noise->problem, noise->workspace);
        launch(&runner, direction_of(pass), &runner.problem, runner.workspace);
        CU(cudaStreamSynchronize(runner.stream));
        different += differences(&runner.set, &first, pass);
        if (pass == PASS_ANY_ORDER) {
            apart = fmaxf(apart, work_distance(set_data(&runner.set, SET_DQ),
                                     set_data(&first, SET_DQ), runner.set.count));
        }
    }
    /* Sums in fp32, of which rounding to bf16 makes one step at most. */
    bool close = apart <= largest * 0x1p-7F;
    (void)snprintf(label, sizeof label, "%s %s, %u times: %llu words differ, dq of %g by %g",
        shape->name, pass_names[pass], kernels->repeats, (unsigned long long)different,
        (double)largest, (double)apart);
    kernels_count(kernels, largest > 0 && isfinite(largest) && different == 0 && close, label);
    set_free(&first);
    runner_finish(&runner);
}

void kernels_repeats(struct kernels *kernels)
{
    struct runner noise;
    runner_init(&noise, kernels, &shapes[0], PASS_FORWARD);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (enum pass pass = PASS_FORWARD; pass < PASSES; pass++) {
            repeat(kernels, &noise, &shapes[i], pass);
        }
    }
    runner_finish(&noise);
}

/* Races show as other bits: the same launch again and again while every multiprocessor is busy. */
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
};

/* At least 60 batches of 16 heads: many more blocks than the device holds. */
static const struct shape shapes[] = {
    {"d64", {64, 512, 16, 64}, false, ATTN_UNBOUNDED, 0, 0},
    {"d64 causal", {64, 512, 16, 64}, true, ATTN_UNBOUNDED, 0, 0},
    {"d128 causal", {60, 500, 16, 128}, true, ATTN_UNBOUNDED, 0, 0},
    {"d128 window, softcap, dropout", {60, 300, 16, 128}, true, 100, 20, 6554},
    {"d32", {128, 200, 16, 32}, false, ATTN_UNBOUNDED, 0, 0},
    {"d96", {60, 256, 16, 96}, false, ATTN_UNBOUNDED, 0, 0},
    {"d192", {60, 200, 8, 192}, true, ATTN_UNBOUNDED, 0, 0},
    {"d256 causal", {60, 256, 8, 256}, true, ATTN_UNBOUNDED, 0, 0},
};

struct runner {
    const struct attn_family *family;
    struct set set;
    struct attn_problem problem;
    void *workspace;
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

static struct attn_problem problem_of(
    const struct set *set, const struct shape *shape, enum attn_direction direction)
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
        .deterministic = true,
        .dropout_threshold = shape->dropout_threshold,
        .dropout_seed = 5,
        .bias_dtype = ATTN_FP32,
        .q = view_of(set, SET_Q),
        .k = view_of(set, SET_K),
        .v = view_of(set, SET_V),
        .out = view_of(set, SET_OUT),
        .lse = view_of(set, SET_LSE)};
    if (direction == ATTN_BACKWARD) {
        problem.dout = view_of(set, SET_DOUT);
        problem.dq = view_of(set, SET_DQ);
        problem.dk = view_of(set, SET_DK);
        problem.dv = view_of(set, SET_DV);
    }
    return problem;
}

static void runner_init(struct runner *runner, const struct kernels *kernels,
    const struct shape *shape, enum attn_direction direction)
{
    *runner = (struct runner){.family = kernels->family};
    CU(cudaStreamCreateWithFlags(&runner->stream, cudaStreamNonBlocking));
    set_alloc(&runner->set, &shape->extents);
    runner->problem = problem_of(&runner->set, shape, direction);
    CU(cudaMalloc(
        &runner->workspace, attn_workspace_bytes(runner->family, direction, &runner->problem)));
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
    forward.dout = forward.dq = forward.dk = forward.dv = (struct attn_view){0};
    CU(cudaMalloc(&workspace, attn_workspace_bytes(runner->family, ATTN_FORWARD, &forward)));
    launch(runner, ATTN_FORWARD, &forward, workspace);
    CU(cudaStreamSynchronize(runner->stream));
    CU(cudaFree(workspace));
}

static uint64_t differences(const struct set *set, const struct set *first, bool backward)
{
    if (!backward) {
        return work_differences(set_data(set, SET_OUT), set_data(first, SET_OUT), set->pitch) +
               work_differences(set_data(set, SET_LSE), set_data(first, SET_LSE), set->pitch);
    }
    return work_differences(set_data(set, SET_DQ), set_data(first, SET_DQ), 3 * set->pitch);
}

/* No NaN and not all zero. */
static bool is_plausible(const struct set *set, enum set_tensor tensor, const void *zeros)
{
    float largest = work_distance(set_data(set, tensor), zeros, set->count);
    return largest > 0 && isfinite(largest);
}

/* Runs it first, and notes what came out. */
static bool run_first(struct runner *runner, struct set *first, const struct shape *shape,
    enum attn_direction direction)
{
    bool backward = direction == ATTN_BACKWARD;
    if (backward) {
        launch_forward_once(runner);
    }
    launch(runner, direction, &runner->problem, runner->workspace);
    CU(cudaStreamSynchronize(runner->stream));
    set_alloc(first, &shape->extents);
    CU(cudaMemset(first->memory, 0, set_bytes(&shape->extents)));
    bool plausible =
        is_plausible(&runner->set, backward ? SET_DQ : SET_OUT, set_data(first, SET_DV));
    CU(cudaMemcpy(
        first->memory, runner->set.memory, set_bytes(&shape->extents), cudaMemcpyDeviceToDevice));
    return plausible;
}

static void poison_results(struct runner *runner, bool backward)
{
    const struct set *set = &runner->set;
    if (backward) {
        work_poison(runner->stream, set_data(set, SET_DQ), 3 * set->pitch);
    } else {
        work_poison(runner->stream, set_data(set, SET_OUT), set->pitch);
        work_poison(runner->stream, set_data(set, SET_LSE), set->pitch);
    }
}

/* `noise` is another problem on another stream, so that blocks meet others in every launch. */
static void repeat(struct kernels *kernels, struct runner *noise, const struct shape *shape,
    enum attn_direction direction)
{
    bool backward = direction == ATTN_BACKWARD;
    struct runner runner;
    struct set first;
    char label[96];
    uint64_t different = 0;
    runner_init(&runner, kernels, shape, direction);
    bool plausible = run_first(&runner, &first, shape, direction);
    for (unsigned i = 0; i < kernels->repeats; i++) {
        poison_results(&runner, backward);
        launch(noise, ATTN_FORWARD, &noise->problem, noise->workspace);
        launch(&runner, direction, &runner.problem, runner.workspace);
        CU(cudaStreamSynchronize(runner.stream));
        different += differences(&runner.set, &first, backward);
    }
    (void)snprintf(label, sizeof label, "%s %s, %u times: %llu words differ", shape->name,
        backward ? "deterministic backward" : "forward", kernels->repeats,
        (unsigned long long)different);
    kernels_count(kernels, plausible && different == 0, label);
    set_free(&first);
    runner_finish(&runner);
}

void kernels_repeats(struct kernels *kernels)
{
    struct runner noise;
    runner_init(&noise, kernels, &shapes[0], ATTN_FORWARD);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        repeat(kernels, &noise, &shapes[i], ATTN_FORWARD);
        repeat(kernels, &noise, &shapes[i], ATTN_BACKWARD);
    }
    runner_finish(&noise);
}

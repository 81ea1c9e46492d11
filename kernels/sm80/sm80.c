/*
 * The sm80 family: its row of the table, and the launch, which runs stage by stage so that tiles of
 * many small problems share a kernel.
 */
#include "sm80.h"

#include "family.h"

#include "device/lengths.h"

#include <cuda_runtime_api.h>

#include <limits.h>

/* What one launch of a kernel holds; a copy of it is the kernel's parameter. */
struct batch {
    const struct sm80_kernel *kernel;
    cudaStream_t stream;
    struct device_group group;
};

static const struct sm80_direction *stages_of(enum attn_direction direction)
{
    return direction == ATTN_FORWARD ? &sm80_forward : &sm80_backward;
}

static const char *sm80_unsupported(
    enum attn_direction direction, const struct attn_problem *problem)
{
    (void)direction;
    if (problem->dtype == ATTN_FP32) {
        return "fp32 is not computed on GPUs";
    }
    if (problem->seqlen_q > DEVICE_LONGEST || problem->seqlen_k > DEVICE_LONGEST) {
        return "seqlen_q or seqlen_k is beyond 1000000000, the longest on GPUs";
    }
    if ((int64_t)problem->batch * problem->heads_q > INT32_MAX) {
        return "batch times heads_q is beyond 2147483647, the most on GPUs";
    }
    return NULL;
}

static size_t sm80_workspace_bytes(
    enum attn_direction direction, const struct attn_problem *problem)
{
    size_t bytes = stages_of(direction)->workspace_bytes(problem);

    return bytes > 0 ? bytes : 1;
}

/* Tiles of the stages before one. */
static uint64_t tiles_before(
    const struct sm80_direction *direction, size_t stage, const struct attn_problem *problem)
{
    uint64_t tiles = 0;

    for (size_t i = 0; i < stage; i++) {
        tiles += direction->stages[i].tiles(problem);
    }
    return tiles;
}

static uint64_t sm80_tile_count(enum attn_direction direction, const struct attn_problem *problem)
{
    const struct sm80_direction *stages = stages_of(direction);
    uint64_t tiles = tiles_before(stages, stages->stage_count, problem);

    return tiles > 0 ? tiles : 1; /* an empty problem has a tile without work */
}

static uint32_t sm80_group_key(enum attn_direction direction, const struct attn_problem *problem)
{
    struct sm80_key key = sm80_key_of(problem);

    (void)direction;
    return ((key.width * SCORE_KINDS + (uint32_t)key.kind) * 2 + key.bf16) * 2 + key.sums;
}

static cudaError_t prepare_kernel(const struct sm80_kernel *kernel)
{
    struct cudaFuncAttributes attributes; /* asked for, they load the kernel */
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel->function);

    if (error == cudaSuccess) {
        error = cudaFuncSetAttribute(kernel->function, cudaFuncAttributeMaxDynamicSharedMemorySize,
            (int)kernel->shared_bytes);
    }
    return error;
}

static int sm80_prepare(void)
{
    for (enum attn_direction direction = ATTN_FORWARD; direction <= ATTN_BACKWARD; direction++) {
        const struct sm80_direction *stages = stages_of(direction);
        const struct sm80_kernel *kernel;

        for (size_t i = 0; (kernel = stages->kernel_at(i)) != NULL; i++) {
            cudaError_t error = prepare_kernel(kernel);
            if (error != cudaSuccess) {
                return (int)error;
            }
        }
    }
    return 0;
}

static uint32_t blocks_of(const struct batch *batch)
{
    return batch->group.items > 0 ? batch->group.end[batch->group.items - 1] : 0;
}

/* Launches what the batch holds and empties it. */
static int flush(struct batch *batch)
{
    dim3 grid = {.x = blocks_of(batch), .y = 1, .z = 1};
    dim3 block = {.x = batch->kernel->threads, .y = 1, .z = 1};
    void *parameters[] = {&batch->group};
    cudaError_t error = cudaSuccess;

    if (grid.x > 0) {
        error = cudaLaunchKernel(batch->kernel->function, grid, block, parameters,
            batch->kernel->shared_bytes, batch->stream);
        batch->group.items = 0;
    }
    return (int)error;
}

/* Adds tiles [begin, end) of the batch's stage; they may take several launches. */
static int add(struct batch *batch, const struct attn_slice *slice, uint64_t begin, uint64_t end)
{
    struct device_group *group = &batch->group;

    while (begin < end) {
        uint64_t room = INT32_MAX - blocks_of(batch);
        uint64_t tiles = end - begin < room ? end - begin : room;

        group->end[group->items] = blocks_of(batch) + (uint32_t)tiles;
        group->item[group->items] = (struct device_item){
            .problem = *slice->problem,
            .workspace = slice->workspace,
            .first = begin,
        };
        group->items++;
        begin += tiles;
        if (group->items == DEVICE_MAX_ITEMS || blocks_of(batch) == INT32_MAX) {
            int error = flush(batch);
            if (error != 0) {
                return error;
            }
        }
    }
    return 0;
}

static int launch_stage(const struct sm80_direction *direction, size_t stage,
    const struct attn_slice *slices, size_t count, cudaStream_t stream)
{
    struct batch batch; /* large, and only what is used of it is written */

    batch.kernel = direction->stages[stage].kernel(slices[0].problem);
    batch.stream = stream;
    batch.group.items = 0;
    for (size_t i = 0; i < count; i++) {
        const struct attn_slice *slice = &slices[i];
        uint64_t first = tiles_before(direction, stage, slice->problem);
        uint64_t last = first + direction->stages[stage].tiles(slice->problem);
        uint64_t begin = slice->begin > first ? slice->begin : first;
        uint64_t end = slice->end < last ? slice->end : last;
        int error = begin < end ? add(&batch, slice, begin - first, end - first) : 0;

        if (error != 0) {
            return error;
        }
    }
    return flush(&batch);
}

static int sm80_launch(enum attn_direction direction, const struct attn_slice *slices, size_t count,
    const struct attn_target *target)
{
    const struct sm80_direction *stages = stages_of(direction);

    for (size_t stage = 0; count > 0 && stage < stages->stage_count; stage++) {
        int error = launch_stage(stages, stage, slices, count, target->stream);
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

const struct attn_family sm80_family = {
    .name = "sm80",
    .device = ATTN_DEVICE_CUDA,
    .min_capability = 80,
    .unsupported = sm80_unsupported,
    .workspace_bytes = sm80_workspace_bytes,
    .tile_count = sm80_tile_count,
    .group_key = sm80_group_key,
    .prepare = sm80_prepare,
    .launch = sm80_launch,
};

#include "cuda_warm.h"

#include <stdio.h>
#include <time.h>

#include "choose.h"
#include "log.h"

/* One block of queries and keys: every tensor of it fits into the same memory. */
#define HEAD_DIM 64
#define ROWS 64
#define BYTES ((size_t)ROWS * HEAD_DIM * sizeof(float))

static struct attn_view view_of(void *memory)
{
    return (struct attn_view){.data = memory,
        .batch_stride = (int64_t)ROWS * HEAD_DIM,
        .row_stride = HEAD_DIM,
        .head_stride = HEAD_DIM,
        .column_stride = 1};
}

/* Zeroes in; what comes out nobody reads, so that all outputs may be one. */
static struct attn_problem problem_of(
    enum attn_direction direction, enum attn_dtype dtype, char *memory)
{
    struct attn_view in = view_of(memory);
    struct attn_view out = view_of(memory + BYTES);
    struct attn_view lse = {
        .data = memory + 2 * BYTES, .batch_stride = ROWS, .row_stride = 1, .head_stride = ROWS};
    struct attn_problem problem = {
        .dtype = dtype,
        .batch = 1,
        .heads_q = 1,
        .heads_kv = 1,
        .head_dim_qk = HEAD_DIM,
        .head_dim_v = HEAD_DIM,
        .seqlen_q = ROWS,
        .seqlen_k = ROWS,
        .scale = 1,
        .window_left = ATTN_UNBOUNDED,
        .window_right = ATTN_UNBOUNDED,
        .alignment = ATTN_TOP_LEFT,
        .bias_dtype = ATTN_FP32,
        .q = in,
        .k = in,
        .v = in,
        .out = direction == ATTN_FORWARD ? out : in,
        .lse = lse,
    };
    if (direction == ATTN_BACKWARD) {
        problem.dout = in;
        problem.dq = out;
        problem.dk = out;
        problem.dv = out;
    }
    return problem;
}

struct warming {
    const struct backend *backend;
    cudaStream_t stream;
    char *memory; /* owned */
};

static bool run(const struct warming *warming, const struct attn_family *family,
    enum attn_direction direction, enum attn_dtype dtype, struct wire_error *error)
{
    const struct attn_problem problem = problem_of(direction, dtype, warming->memory);
    const struct attn_target target = {.stream = warming->stream};
    if (attn_unsupported(family, direction, &problem) != NULL ||
        attn_workspace_bytes(family, direction, &problem) > warming->backend->workspace_bytes) {
        return true;
    }
    const struct attn_slice slice = {
        .problem = &problem,
        .workspace = warming->backend->workspace,
        .begin = 0,
        .end = attn_tile_count(family, direction, &problem),
    };
    return CUDA_OK(error, WIRE_INTERNAL, attn_launch(family, direction, &slice, 1, &target)) &&
           CUDA_OK(error, WIRE_INTERNAL, cudaStreamSynchronize(warming->stream));
}

static bool warm_family(
    const struct warming *warming, const struct attn_family *family, struct wire_error *error)
{
    struct wire_error reason;
    bool ok = CUDA_OK(&reason, WIRE_INTERNAL, attn_prepare(family));
    for (int i = 0; ok && i < 4; i++) {
        ok = run(warming, family, i / 2 == 0 ? ATTN_FORWARD : ATTN_BACKWARD,
            i % 2 == 0 ? ATTN_FP16 : ATTN_BF16, &reason);
    }
    return ok || wire_fail(error, reason.status, "kernel family %s does not run: %.180s",
                     attn_family_name(family), reason.detail);
}

static bool warm_families(const struct warming *warming, struct wire_error *error)
{
    int capability = warming->backend->facts.capability;
    size_t fitting = 0;
    for (size_t i = 0; i < attn_family_count(); i++) {
        const struct attn_family *family = attn_family_at(i);
        if (!choose_fits(warming->backend, family)) {
            continue;
        }
        fitting++;
        if (!warm_family(warming, family, error)) {
            return false;
        }
    }
    return fitting > 0 || wire_fail(error, WIRE_UNSUPPORTED,
                              "device: this build has no kernels for compute capability %d.%d",
                              capability / 10, capability % 10);
}

bool cuda_warm_up(const struct backend *backend, cudaStream_t stream, struct wire_error *error)
{
    struct warming warming = {.backend = backend, .stream = stream};
    void *memory = NULL;
    if (!CUDA_OK(error, WIRE_INTERNAL, cudaMalloc(&memory, 3 * BYTES))) {
        return false;
    }
    warming.memory = memory;
    bool ok = CUDA_OK(error, WIRE_INTERNAL, cudaMemsetAsync(memory, 0, 3 * BYTES, stream)) &&
              warm_families(&warming, error);
    (void)cudaFree(memory);
    return ok;
}

/* Strides so large that elements lie more than 2^31 from the first one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "device.h"
#include "kernels.h"

#define ARENA_BYTES ((size_t)64 << 20)
#define WORKSPACE_BYTES ((size_t)64 << 20)
#define BEYOND ((INT64_C(1) << 31) + 64) /* elements */
#define BETWEEN ((size_t)1 << 20)        /* bytes from one tensor to the next: more than a block */
#define ROWS 80                          /* of queries; there are more keys */
#define FAR_BYTES ((size_t)5 * ((size_t)1 << 31)) /* lse and bias have 4 bytes an element */

enum far { FAR_BATCH, FAR_ROW, FAR_HEAD, FAR_PACKED_ROW, FAR_KINDS };

static const char *const far_names[] = {"batch", "row", "head", "packed row"};

static const enum tensor_id results[] = {
    TENSOR_OUT, TENSOR_LSE, TENSOR_DQ, TENSOR_DK, TENSOR_DV, TENSOR_DBIAS};

/* The least stride, of 8 elements or a multiple, with which the last index is far. */
static int64_t far_stride(int64_t extent)
{
    int64_t steps = extent > 1 ? extent - 1 : 1;
    return (BEYOND + steps - 1) / steps / 8 * 8 + 8;
}

/* The same tensor with one stride made far; data is where element 0 lies on the device. */
static struct attn_view far_view(const struct tensor *tensor, enum far kind, unsigned char *data)
{
    struct attn_view view = tensor->view;
    view.data = data;
    if (kind == FAR_BATCH && tensor->batch > 1) {
        view.batch_stride = far_stride(tensor->batch);
    } else if ((kind == FAR_ROW || kind == FAR_PACKED_ROW) && tensor->rows > 1) {
        view.row_stride = far_stride(ROWS); /* alike, so that no two tensors meet */
    } else if (kind == FAR_HEAD && tensor->heads > 1) {
        view.head_stride = far_stride(tensor->heads);
    }
    return view;
}

/* Copies runs of columns between the arena and the far memory. */
static void copy(const struct tensor *here, const struct attn_view *there, bool to_device)
{
    size_t element = dtype_bytes(here->dtype);
    for (int64_t b = 0; b < here->batch; b++) {
        for (int64_t row = 0; row < here->rows; row++) {
            for (int64_t head = 0; head < here->heads; head++) {
                int64_t index = ((b * here->rows + row) * here->heads + head) * here->columns;
                int64_t offset =
                    b * there->batch_stride + row * there->row_stride + head * there->head_stride;
                unsigned char *host = tensor_at(here, index);
                unsigned char *device = (unsigned char *)there->data + offset * (int64_t)element;
                size_t bytes = (size_t)here->columns * element;
                CU(to_device ? cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, NULL)
                             : cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, NULL));
            }
        }
    }
}

static void launch(
    struct kernels *kernels, enum attn_direction direction, const struct attn_problem *problem)
{
    void *workspace = NULL;
    size_t bytes = attn_workspace_bytes(kernels->family, direction, problem);
    const struct attn_target target = {.stream = NULL};
    CU(cudaMalloc(&workspace, bytes));
    CU(cudaMemset(workspace, 0xff, bytes));
    const struct attn_slice slice = {.problem = problem,
        .workspace = workspace,
        .end = attn_tile_count(kernels->family, direction, problem)};
    CU(attn_launch(kernels->family, direction, &slice, 1, &target));
    CU(cudaDeviceSynchronize());
    CU(cudaFree(workspace));
}

/* Lengths are where the twin has them since the problem was solved near. */
static void solve_far(struct kernels *kernels, const struct twin *twin, struct trial *trial,
    enum far kind, unsigned char *memory)
{
    struct attn_problem problem = trial->problem;
    problem.lengths = twin_problem(twin, &trial->problem).lengths;
    CU(cudaMemset(memory, 0xff, FAR_BYTES));
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        struct tensor tensor = tensor_of(&trial->problem, id);
        if (tensor.view.data != NULL) {
            struct attn_view view = far_view(&tensor, kind, memory + (size_t)id * BETWEEN);
            copy(&tensor, &view, true);
            *tensor_view(&problem, id) = view;
        }
    }
    struct trial far = *trial;
    far.problem = problem;
    struct attn_problem forward = trial_forward(&far);
    launch(kernels, ATTN_FORWARD, &forward);
    launch(kernels, ATTN_BACKWARD, &problem);
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        struct tensor tensor = tensor_of(&trial->problem, results[i]);
        copy(&tensor, tensor_view(&problem, results[i]), false);
    }
    CU(cudaDeviceSynchronize());
}

static struct trial_spec spec_of(int32_t head_dim, enum attn_dtype dtype)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = dtype;
    spec.batch = 2;
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.head_dim_qk = head_dim;
    spec.head_dim_v = head_dim;
    spec.seqlen_q = ROWS;
    spec.seqlen_k = 104;
    spec.window_right = 0;
    spec.scale = 0.125F;
    spec.deterministic = true;
    spec.bias = true;
    spec.bias_fp32 = true;
    spec.dbias = true;
    return spec;
}

/* Sequences one behind another, of so many queries that the last is far and all have room. */
static void pack(struct trial_spec *spec)
{
    spec->batch = 3;
    spec->seqlen_q = ROWS / 2;
    spec->seqlen_k = 50;
    spec->varlen_q = true;
    spec->varlen_k = true;
    for (;; spec->seed++) {
        struct trial trial;
        trial_init(&trial, spec);
        int64_t queries = trial.problem.lengths.total_q;
        trial_finish(&trial);
        if (queries > ROWS && queries < ROWS + 18) {
            return;
        }
    }
}

static void compare(struct kernels *kernels, struct twin *twin, const struct trial_spec *usual,
    unsigned char *memory)
{
    struct trial trial;
    struct executor executor;
    static unsigned char near[ARENA_BYTES];
    executor_init(&executor, kernels->family, 1);
    executor.twin = twin;
    for (enum far kind = 0; kind < FAR_KINDS; kind++) {
        char label[96];
        struct trial_spec spec = *usual;
        if (!kernels_begin(kernels)) {
            continue;
        }
        if (kind == FAR_PACKED_ROW) {
            pack(&spec);
        }
        twin->arena.used = 0;
        trial_init_in(&trial, &spec, &twin->arena);
        struct attn_problem forward = trial_forward(&trial);
        memcpy(near, twin->arena.bytes, twin->arena.used);
        CU(executor_solve(&executor, ATTN_FORWARD, &forward, 1, 0));
        CU(executor_solve(&executor, ATTN_BACKWARD, &trial.problem, 1, 0));
        for (size_t i = 0; i < twin->arena.used; i++) { /* results aside, as before */
            unsigned char result = twin->arena.bytes[i];
            twin->arena.bytes[i] = near[i];
            near[i] = result;
        }
        solve_far(kernels, twin, &trial, kind, memory);
        (void)snprintf(label, sizeof label, "a far %s, head dim %d, dtype %d", far_names[kind],
            spec.head_dim_qk, (int)spec.dtype);
        kernels_count(kernels, memcmp(near, twin->arena.bytes, twin->arena.used) == 0, label);
        trial_finish(&trial);
    }
    executor_finish(&executor);
}

void kernels_far(struct kernels *kernels)
{
    static const int32_t head_dims[] = {64, 128, 256, 41};
    unsigned char *memory = NULL;
    struct twin *twin = twin_create(kernels->family, ARENA_BYTES, WORKSPACE_BYTES);
    CU(cudaMalloc((void **)&memory, FAR_BYTES));
    for (size_t i = 0; i < sizeof head_dims / sizeof *head_dims; i++) {
        struct trial_spec spec = spec_of(head_dims[i], i % 2 == 0 ? ATTN_BF16 : ATTN_FP16);
        compare(kernels, twin, &spec, memory);
    }
    CU(cudaFree(memory));
    twin_destroy(twin);
}

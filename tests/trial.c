#include "trial.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD 67 /* elements; odd, so that tensors start unaligned */

static const enum tensor_id packed_inputs[3] = {TENSOR_Q, TENSOR_K, TENSOR_V};

static const enum tensor_id packed_outputs[3] = {TENSOR_DQ, TENSOR_DK, TENSOR_DV};

const bool trial_forward_outputs[TENSOR_COUNT] = {[TENSOR_OUT] = true, [TENSOR_LSE] = true};
const bool trial_backward_outputs[TENSOR_COUNT] = {
    [TENSOR_DQ] = true,
    [TENSOR_DK] = true,
    [TENSOR_DV] = true,
};

uint64_t trial_next(struct trial_rng *rng)
{
    rng->state += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t z = rng->state;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

int64_t trial_range(struct trial_rng *rng, int64_t low, int64_t high)
{
    return low + (int64_t)(trial_next(rng) % (uint64_t)(high - low + 1));
}

bool trial_chance(struct trial_rng *rng, int64_t one_in)
{
    return trial_range(rng, 1, one_in) == 1;
}

double trial_normal(struct trial_rng *rng)
{
    double u = (double)((trial_next(rng) >> 11) + 1) * 0x1p-53;
    double v = (double)(trial_next(rng) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static void *reserve(size_t bytes)
{
    void *memory = calloc(bytes > 0 ? bytes : 1, 1);
    if (memory == NULL) {
        fprintf(stderr, "trial: out of memory for %zu bytes\n", bytes);
        abort();
    }
    return memory;
}

/* -- layouts -------------------------------------------------------------------------------- */

static struct attn_view dense_view(const struct tensor *t)
{
    return (struct attn_view){.batch_stride = t->rows * t->heads * t->columns,
        .row_stride = t->heads * t->columns,
        .head_stride = t->columns,
        .column_stride = 1};
}

static struct attn_view view_of(const struct tensor *t, enum trial_layout layout)
{
    struct attn_view view = dense_view(t);
    switch (layout) {
    case TRIAL_HEAD_MAJOR:
        view.head_stride = t->rows * t->columns;
        view.row_stride = t->columns;
        break;
    case TRIAL_SEQUENCE_MAJOR:
        view.batch_stride = t->heads * t->columns;
        view.row_stride = t->batch * view.batch_stride;
        break;
    case TRIAL_PADDED:
        view.head_stride = t->columns + 3;
        view.row_stride = t->heads * view.head_stride + 5;
        view.batch_stride = t->rows * view.row_stride + 7;
        break;
    case TRIAL_REVERSED:
        view.row_stride = -view.row_stride;
        view.head_stride = -view.head_stride;
        break;
    case TRIAL_SHARED_ROWS:
        view.row_stride = 0;
        break;
    case TRIAL_SHARED_HEADS:
        view.head_stride = 0;
        break;
    case TRIAL_SHARED_BATCHES:
        view.batch_stride = 0;
        break;
    case TRIAL_COMPACT:
    case TRIAL_INPUT_LAYOUTS:
        break;
    }
    return view;
}

/* Adds one dimension's reach to the range of element offsets. */
static void widen(int64_t *low, int64_t *high, int64_t extent, int64_t stride)
{
    int64_t reach = extent > 0 ? (extent - 1) * stride : 0;
    *low += reach < 0 ? reach : 0;
    *high += reach > 0 ? reach : 0;
}

/* Where outputs wait for their values, and inputs for a kernel that reads too far. */
static void poison(struct trial_storage *storage, enum attn_dtype dtype, bool is_output)
{
    const double marks[3] = {NAN, INFINITY, -INFINITY};
    size_t element = dtype_bytes(dtype);
    memset(storage->bytes, 0xff, storage->size);
    for (size_t i = 0; i < storage->size / element && !is_output; i++) {
        dtype_store(dtype, storage->bytes + i * element, marks[i % 3]);
    }
}

static void place(struct trial *trial, enum tensor_id id, enum trial_layout layout)
{
    struct trial_storage *storage = &trial->storage[id];
    struct tensor tensor = tensor_of(&trial->problem, id);
    struct attn_view view = view_of(&tensor, layout);
    int64_t low = 0;
    int64_t high = 1;
    widen(&low, &high, tensor.batch, view.batch_stride);
    widen(&low, &high, tensor.rows, view.row_stride);
    widen(&low, &high, tensor.heads, view.head_stride);
    widen(&low, &high, tensor.columns, view.column_stride);
    size_t element = dtype_bytes(tensor.dtype);
    storage->size = (size_t)(high - low + 2 * GUARD) * element;
    storage->bytes = reserve(storage->size);
    storage->before = reserve(storage->size);
    view.data = storage->bytes + (size_t)(GUARD - low) * element;
    *tensor_view(&trial->problem, id) = view;
    poison(storage, tensor.dtype, id >= TENSOR_OUT);
}

/* Three tensors whose heads lie side by side in each row; the first owns the memory. */
static void place_packed(struct trial *trial, const enum tensor_id ids[3])
{
    struct attn_problem *p = &trial->problem;
    struct trial_storage *storage = &trial->storage[ids[0]];
    int64_t width[3] = {0};
    for (int i = 0; i < 3; i++) {
        struct tensor tensor = tensor_of(p, ids[i]);
        width[i] = tensor.heads * tensor.columns;
    }
    int64_t row = width[0] + width[1] + width[2];
    size_t element = dtype_bytes(p->dtype);
    storage->size = (size_t)(p->batch * p->seqlen_q * row + 2 * GUARD) * element;
    storage->bytes = reserve(storage->size);
    storage->before = reserve(storage->size);
    int64_t start = GUARD;
    for (int i = 0; i < 3; i++) {
        struct tensor tensor = tensor_of(p, ids[i]);
        *tensor_view(p, ids[i]) = (struct attn_view){
            storage->bytes + (size_t)start * element, p->seqlen_q * row, row, tensor.columns, 1};
        start += width[i];
    }
    poison(storage, p->dtype, ids[0] >= TENSOR_OUT);
}

static void place_all(struct trial *trial, const struct trial_spec *spec)
{
    if (spec->packed) {
        place_packed(trial, packed_inputs);
        place_packed(trial, packed_outputs);
    }

    static const enum tensor_id ids[] = {TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_DQ, TENSOR_DK,
        TENSOR_DV, TENSOR_OUT, TENSOR_LSE, TENSOR_DOUT, TENSOR_DLSE};

    for (size_t i = spec->packed ? 6 : 0; i < sizeof ids / sizeof ids[0]; i++) {
        if (ids[i] != TENSOR_DLSE || spec->dlse) {
            place(trial, ids[i], spec->layout[ids[i]]);
        }
    }
}

/* -- values --------------------------------------------------------------------------------- */

static void fill(const struct trial *trial, enum tensor_id id, struct trial_rng *rng, double size)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    int64_t count = tensor.view.data == NULL ? 0 : tensor_elements(&tensor);
    for (int64_t i = 0; i < count; i++) {
        tensor_set(&tensor, i, size * trial_normal(rng));
    }
}

static void equal_keys(const struct trial *trial)
{
    struct tensor k = tensor_of(&trial->problem, TENSOR_K);
    int64_t row = k.heads * k.columns;
    for (int64_t i = 0; i < tensor_elements(&k); i++) {
        tensor_set(&k, i, tensor_get(&k, i / (row * k.rows) * row * k.rows + i % row));
    }
}

static void fill_all(const struct trial *trial, const struct trial_spec *spec)
{
    struct trial_rng rng = {spec->seed};
    fill(trial, TENSOR_Q, &rng, spec->query_size);
    fill(trial, TENSOR_K, &rng, spec->values == TRIAL_ZERO_KEYS ? 0 : 1);
    fill(trial, TENSOR_V, &rng, spec->value_size);
    fill(trial, TENSOR_DOUT, &rng, spec->value_size);
    fill(trial, TENSOR_DLSE, &rng, 1);
    if (spec->values == TRIAL_EQUAL_KEYS) {
        equal_keys(trial);
    }
}

static struct attn_problem problem_of(const struct trial_spec *spec)
{
    return (struct attn_problem){
        .dtype = spec->dtype,
        .batch = spec->batch,
        .heads_q = spec->heads_q,
        .heads_kv = spec->heads_kv,
        .head_dim_qk = spec->head_dim_qk,
        .head_dim_v = spec->head_dim_v,
        .seqlen_q = spec->seqlen_q,
        .seqlen_k = spec->seqlen_k,
        .scale = spec->scale,
        .window_left = spec->window_left,
        .window_right = spec->window_right,
        .alignment = spec->alignment,
        .bias_dtype = ATTN_FP32,
    };
}

struct trial_spec trial_spec_default(void)
{
    return (struct trial_spec){
        .seed = 1,
        .dtype = ATTN_FP32,
        .batch = 1,
        .heads_q = 1,
        .heads_kv = 1,
        .head_dim_qk = 1,
        .head_dim_v = 1,
        .seqlen_q = 1,
        .seqlen_k = 1,
        .window_left = ATTN_UNBOUNDED,
        .window_right = ATTN_UNBOUNDED,
        .alignment = ATTN_BOTTOM_RIGHT,
        .scale = 1,
        .query_size = 1,
        .value_size = 1,
    };
}

void trial_init(struct trial *trial, const struct trial_spec *spec)
{
    *trial = (struct trial){.problem = problem_of(spec)};
    place_all(trial, spec);
    fill_all(trial, spec);
    trial_snapshot(trial);
}

void trial_finish(struct trial *trial)
{
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        free(trial->storage[i].bytes);
        free(trial->storage[i].before);
    }
}

struct attn_problem trial_forward(const struct trial *trial)
{
    struct attn_problem problem = trial->problem;

    static const enum tensor_id ids[] = {TENSOR_DOUT, TENSOR_DLSE, TENSOR_DQ, TENSOR_DK, TENSOR_DV,
        TENSOR_DBIAS, TENSOR_DSLOPES, TENSOR_DSINKS};

    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        *tensor_view(&problem, ids[i]) = (struct attn_view){0};
    }
    return problem;
}

void trial_snapshot(struct trial *trial)
{
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        struct trial_storage *storage = &trial->storage[i];
        if (storage->bytes != NULL) {
            memcpy(storage->before, storage->bytes, storage->size);
        }
    }
}

/* Copies the elements of a tensor into the snapshot. */
static void allow(struct trial *trial, enum tensor_id id)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    const struct trial_storage *storage = &trial->storage[id];
    if (storage->bytes == NULL) {
        storage = &trial->storage[packed_outputs[0]];
    }
    int64_t count = tensor.view.data == NULL ? 0 : tensor_elements(&tensor);
    for (int64_t i = 0; i < count; i++) {
        unsigned char *element = tensor_at(&tensor, i);
        memcpy(storage->before + (element - storage->bytes), element, dtype_bytes(tensor.dtype));
    }
}

bool trial_intact(struct trial *trial, const bool written[TENSOR_COUNT])
{
    bool intact = true;
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        if (written[id]) {
            allow(trial, id);
        }
    }
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        const struct trial_storage *storage = &trial->storage[i];
        intact = intact && (storage->bytes == NULL ||
                               memcmp(storage->before, storage->bytes, storage->size) == 0);
    }
    return intact;
}

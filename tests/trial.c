#include "trial.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trial_fill.h"

#define GUARD 67 /* elements */
#define ALIGNED_GUARD 64

static const enum tensor_id packed_inputs[3] = {TENSOR_Q, TENSOR_K, TENSOR_V};

static const enum tensor_id packed_outputs[3] = {TENSOR_DQ, TENSOR_DK, TENSOR_DV};

const bool trial_forward_outputs[TENSOR_COUNT] = {[TENSOR_OUT] = true, [TENSOR_LSE] = true};
const bool trial_backward_outputs[TENSOR_COUNT] = {
    [TENSOR_DQ] = true,
    [TENSOR_DK] = true,
    [TENSOR_DV] = true,
    [TENSOR_DBIAS] = true,
    [TENSOR_DSLOPES] = true,
    [TENSOR_DSINKS] = true,
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

/* What the problem points to. */
static void reserve_storage(struct trial *trial, struct trial_storage *storage, size_t size)
{
    struct trial_arena *arena = trial->arena;
    storage->size = size;
    storage->before = reserve(size);
    if (arena == NULL) {
        storage->bytes = reserve(size);
        return;
    }
    if (size > arena->size - arena->used) {
        fprintf(stderr, "trial: the arena has no %zu bytes left\n", size);
        abort();
    }
    storage->bytes = arena->bytes + arena->used;
    arena->used += (size + 63) / 64 * 64; /* arenas are whole pages */
}

/* -- layouts -------------------------------------------------------------------------------- */

static struct attn_view dense_view(const struct tensor *t)
{
    return (struct attn_view){.batch_stride = t->rows * t->heads * t->columns,
        .row_stride = t->heads * t->columns,
        .head_stride = t->columns,
        .column_stride = 1};
}

static struct attn_view view_of(
    const struct tensor *t, const struct trial_spec *spec, enum trial_layout layout)
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
        view.head_stride = t->columns + (spec->aligned ? 8 : 3);
        view.row_stride = t->heads * view.head_stride + (spec->aligned ? 16 : 5);
        view.batch_stride = t->rows * view.row_stride + (spec->aligned ? 24 : 7);
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
    case TRIAL_SHARED_COLUMNS:
        view.column_stride = 0;
        break;
    case TRIAL_COMPACT:
        break;
    }
    return view;
}

/* Where strides have a meaning of their own, or none. */
static void adjust_view(const struct attn_problem *problem, const struct trial_spec *spec,
    enum tensor_id id, struct attn_view *view)
{
    bool of_keys = id == TENSOR_K || id == TENSOR_V || id == TENSOR_DK || id == TENSOR_DV;
    const void *packed = of_keys ? problem->lengths.cu_seqlens_k : problem->lengths.cu_seqlens_q;
    if (id == TENSOR_BIAS || id == TENSOR_DBIAS) {
        view->batch_stride *= spec->bias_one[0] ? 0 : 1;
        view->head_stride *= spec->bias_one[1] ? 0 : 1;
        view->row_stride *= spec->bias_one[2] ? 0 : 1;
        view->column_stride *= spec->bias_one[3] ? 0 : 1;
    } else if (id == TENSOR_SLOPES || id == TENSOR_DSLOPES) {
        view->batch_stride *= spec->slopes_shared ? 0 : 1;
    } else if (packed != NULL && id != TENSOR_SINKS && id != TENSOR_DSINKS) {
        view->batch_stride = INT64_C(0x5a5a5a5a5a5a);
    }
}

static struct tensor tensor_to_be(
    const struct trial *trial, const struct trial_spec *spec, enum tensor_id id)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    if (id == TENSOR_SLOPES || id == TENSOR_DSLOPES) {
        tensor.batch = spec->slopes_shared ? 1 : spec->batch;
    }
    return tensor;
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

static int64_t guard_of(const struct trial_spec *spec)
{
    return spec->aligned ? ALIGNED_GUARD : GUARD;
}

static void place(struct trial *trial, const struct trial_spec *spec, enum tensor_id id)
{
    struct trial_storage *storage = &trial->storage[id];
    struct tensor tensor = tensor_to_be(trial, spec, id);
    struct attn_view view = view_of(&tensor, spec, spec->layout[id]);
    adjust_view(&trial->problem, spec, id, &view);
    int64_t low = 0;
    int64_t high = 1;
    widen(&low, &high, tensor.batch, view.batch_stride);
    widen(&low, &high, tensor.rows, view.row_stride);
    widen(&low, &high, tensor.heads, view.head_stride);
    widen(&low, &high, tensor.columns, view.column_stride);
    size_t element = dtype_bytes(tensor.dtype);
    reserve_storage(trial, storage, (size_t)(high - low + 2 * GUARD) * element);
    view.data = storage->bytes + (size_t)(guard_of(spec) - low) * element;
    *tensor_view(&trial->problem, id) = view;
    poison(storage, tensor.dtype, id >= TENSOR_OUT);
}

/* Three tensors whose heads lie side by side in each row; the first owns the memory. */
static void place_packed(
    struct trial *trial, const struct trial_spec *spec, const enum tensor_id ids[3])
{
    struct attn_problem *p = &trial->problem;
    struct trial_storage *storage = &trial->storage[ids[0]];
    int64_t row = 0;
    for (int i = 0; i < 3; i++) {
        struct tensor tensor = tensor_of(p, ids[i]);
        row += tensor.heads * tensor.columns;
    }
    struct tensor first = tensor_of(p, ids[0]);
    size_t element = dtype_bytes(p->dtype);
    reserve_storage(trial, storage, (size_t)(first.batch * first.rows * row + 2 * GUARD) * element);
    int64_t start = guard_of(spec);
    for (int i = 0; i < 3; i++) {
        struct tensor tensor = tensor_of(p, ids[i]);
        struct attn_view view = {
            storage->bytes + (size_t)start * element, tensor.rows * row, row, tensor.columns, 1};
        adjust_view(p, spec, ids[i], &view);
        *tensor_view(p, ids[i]) = view;
        start += tensor.heads * tensor.columns;
    }
    poison(storage, p->dtype, ids[0] >= TENSOR_OUT);
}

static bool is_there(const struct trial_spec *spec, enum tensor_id id)
{
    switch (id) {
    case TENSOR_BIAS:
        return spec->bias;
    case TENSOR_SLOPES:
        return spec->slopes;
    case TENSOR_SINKS:
        return spec->sinks;
    case TENSOR_DLSE:
        return spec->dlse;
    case TENSOR_DBIAS:
        return spec->bias && spec->dbias;
    case TENSOR_DSLOPES:
        return spec->slopes && spec->dslopes;
    case TENSOR_DSINKS:
        return spec->sinks && spec->dsinks;
    case TENSOR_Q:
    case TENSOR_K:
    case TENSOR_V:
    case TENSOR_DQ:
    case TENSOR_DK:
    case TENSOR_DV:
        return !spec->packed;
    case TENSOR_DOUT:
    case TENSOR_OUT:
    case TENSOR_LSE:
    case TENSOR_COUNT:
        break;
    }
    return true;
}

static void place_all(struct trial *trial, const struct trial_spec *spec)
{
    if (spec->packed) {
        place_packed(trial, spec, packed_inputs);
        place_packed(trial, spec, packed_outputs);
    }
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        if (is_there(spec, id)) {
            place(trial, spec, id);
        }
    }
}

static void place_lengths(struct trial *trial, const struct trial_spec *spec)
{
    struct attn_lengths *lengths = &trial->problem.lengths;
    int32_t *arrays[TRIAL_LENGTHS] = {NULL};
    for (enum trial_lengths i = 0; i < TRIAL_LENGTHS; i++) {
        size_t bytes = (size_t)trial_fill_count(spec, i) * sizeof(int32_t);
        if (bytes > 0) {
            reserve_storage(trial, &trial->lengths[i], bytes);
            arrays[i] = (int32_t *)(void *)trial->lengths[i].bytes;
        }
    }
    trial_fill_lengths(spec, arrays, &lengths->total_q, &lengths->total_k);
    lengths->cu_seqlens_q = arrays[TRIAL_CU_SEQLENS_Q];
    lengths->cu_seqlens_k = arrays[TRIAL_CU_SEQLENS_K];
    lengths->seqlens_k = arrays[TRIAL_SEQLENS_K];
}

/* -- snapshots ------------------------------------------------------------------------------ */

static void release(const struct trial *trial, struct trial_storage *storage)
{
    free(storage->before);
    if (trial->arena == NULL) {
        free(storage->bytes);
    }
}

static void remember(struct trial_storage *storage)
{
    if (storage->bytes != NULL) {
        memcpy(storage->before, storage->bytes, storage->size);
    }
}

static bool unchanged(const struct trial_storage *storage)
{
    return storage->bytes == NULL || memcmp(storage->before, storage->bytes, storage->size) == 0;
}

/* Copies the elements of a tensor into the snapshot. */
static void allow(struct trial *trial, enum tensor_id id)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    const struct trial_storage *storage = &trial->storage[id];
    if (storage->bytes == NULL) { /* part of a packed tensor, or not there */
        storage = &trial->storage[packed_outputs[0]];
    }
    int64_t count = tensor.view.data == NULL ? 0 : tensor_elements(&tensor);
    for (int64_t i = 0; i < count; i++) {
        unsigned char *element = tensor_at(&tensor, i);
        memcpy(storage->before + (element - storage->bytes), element, dtype_bytes(tensor.dtype));
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
        .softcap = spec->softcap,
        .dropout_threshold = spec->dropout_threshold,
        .dropout_offset = spec->dropout_offset,
        .dropout_seed = spec->dropout_seed,
        .deterministic = spec->deterministic,
        .bias_dtype = spec->bias && !spec->bias_fp32 ? spec->dtype : ATTN_FP32,
        .bias_broadcast = {spec->bias_one[0], spec->bias_one[1], spec->bias_one[2],
            spec->bias_one[3]},
    };
}

/* -- public --------------------------------------------------------------------------------- */

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
        .bias_size = 1,
    };
}

void trial_init_in(struct trial *trial, const struct trial_spec *spec, struct trial_arena *arena)
{
    *trial = (struct trial){.problem = problem_of(spec), .arena = arena};
    place_lengths(trial, spec);
    place_all(trial, spec);
    trial_refill(trial, spec);
}

void trial_refill(struct trial *trial, const struct trial_spec *spec)
{
    trial_fill_values(&trial->problem, spec);
    trial_snapshot(trial);
}

void trial_init(struct trial *trial, const struct trial_spec *spec)
{
    trial_init_in(trial, spec, NULL);
}

void trial_finish(struct trial *trial)
{
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        release(trial, &trial->storage[i]);
    }
    for (size_t i = 0; i < TRIAL_LENGTHS; i++) {
        release(trial, &trial->lengths[i]);
    }
}

void trial_spoil_padding(struct trial *trial)
{
    trial_fill_padding(&trial->problem, TENSOR_OUT);
    trial_fill_padding(&trial->problem, TENSOR_LSE);
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
        remember(&trial->storage[i]);
    }
    for (size_t i = 0; i < TRIAL_LENGTHS; i++) {
        remember(&trial->lengths[i]);
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
        intact = intact && unchanged(&trial->storage[i]);
    }
    for (size_t i = 0; i < TRIAL_LENGTHS; i++) {
        intact = intact && unchanged(&trial->lengths[i]);
    }
    return intact;
}

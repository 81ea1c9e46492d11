/*
 * The last sums of the backward pass, of numbers that other stages have left for each query or key:
 * dslopes, dsinks, and the gradient of a bias that is a vector. Each block adds in an order of its own,
 * in double precision.
 */
#include "sm80.h"

#include "backward_parts.cuh"

#define SUMS_THREADS BACKWARD_SUMS_THREADS
#define SUMS_PARTS (SUMS_THREADS / BACKWARD_ROWS) /* that share the heads of a vector's block */

/* All threads' sums, in thread 0. */
PTX_FUNCTION double sums_of_block(double sum)
{
    double *shared = (double *)ptx_shared_memory();
    int thread = (int)ptx_thread();

    shared[thread] = sum;
    for (int half = SUMS_THREADS / 2; half > 0; half /= 2) {
        ptx_barrier();
        if (thread < half) {
            shared[thread] += shared[thread + half];
        }
    }
    return shared[0];
}

/* What a head of a sequence has for each row of a side. */
struct sums_rows {
    int64_t at; /* of the first, in the part of the workspace */
    int32_t length;
};

PTX_FUNCTION struct sums_rows sums_rows_of(
    const struct device_item &item, enum lengths_side side, int32_t batch, int32_t head)
{
    const struct attn_problem *problem = &item.problem;
    struct lengths_sequence sequence = lengths_sequence_of(problem, item.workspace, side, batch);
    struct sums_rows rows;
    rows.at =
        backward_all_rows(problem, side) * head + backward_first_row(problem, side, &sequence);
    rows.length = sequence.length;
    return rows;
}

PTX_FUNCTION void sums_slopes(const struct device_item &item, int64_t tile)
{
    const struct attn_problem &problem = item.problem;
    const struct attn_view &view = problem.dslopes;
    const float *part = (const float *)(item.workspace + backward_layout_of(&problem).slopes);
    int32_t batch = (int32_t)(tile / problem.heads_q);
    int32_t head = (int32_t)(tile % problem.heads_q);
    int32_t end = backward_slope_batches(&problem) == 1 ? problem.batch : batch + 1;
    double sum = 0;

    for (int32_t b = batch; b < end; b++) {
        struct sums_rows rows = sums_rows_of(item, LENGTHS_QUERIES, b, head);
        for (int32_t i = (int32_t)ptx_thread(); i < rows.length; i += SUMS_THREADS) {
            sum -= (double)part[rows.at + i];
        }
    }
    sum = sums_of_block(sum);
    if (ptx_thread() == 0) {
        ((float *)view.data)[view.batch_stride * batch + view.head_stride * head] = (float)sum;
    }
}

/* The sink has a probability like a key's, and its value is 0. */
PTX_FUNCTION void sums_sinks(const struct device_item &item, int32_t head)
{
    const struct attn_problem &problem = item.problem;
    struct backward_layout layout = backward_layout_of(&problem);
    const float *lse = (const float *)(item.workspace + layout.lse);
    const float *delta = (const float *)(item.workspace + layout.delta);
    bool plain = score_kind_of(&problem) == SCORE_PLAIN;
    float sink = (plain ? SCORE_LOG2E : 1.0F) *
                 ((const float *)problem.sinks.data)[problem.sinks.head_stride * head];
    double sum = 0;

    for (int32_t b = 0; b < problem.batch; b++) {
        struct sums_rows rows = sums_rows_of(item, LENGTHS_QUERIES, b, head);
        for (int32_t i = (int32_t)ptx_thread(); i < rows.length; i += SUMS_THREADS) {
            float p = ptx_exp2((sink - lse[rows.at + i]) * (plain ? 1.0F : SCORE_LOG2E));
            sum -= p == 0 ? 0.0 : (double)p * (double)delta[rows.at + i]; /* p may be NaN */
        }
    }
    sum = sums_of_block(sum);
    if (ptx_thread() == 0) {
        ((float *)problem.dsinks.data)[problem.dsinks.head_stride * head] = (float)sum;
    }
}

/* Of a vector's gradient: the heads of [begin, end) over all batches that an element is a sum of, and
 * its position; -1: all positions. */
struct sums_vector {
    int32_t batch;
    int32_t end_batch;
    int32_t head;
    int32_t end_head;
    int64_t position;
};

PTX_FUNCTION struct sums_vector sums_vector_of(const struct attn_problem &problem, int64_t tile)
{
    int64_t blocks = backward_vector_blocks(&problem);
    int32_t heads = problem.bias_broadcast[1] ? 1 : problem.heads_q;
    bool collapsed = problem.bias_broadcast[2] && problem.bias_broadcast[3];
    struct sums_vector vector;
    vector.position = collapsed ? -1 : tile % blocks * BACKWARD_ROWS;
    vector.head = (int32_t)(tile / blocks % heads);
    vector.end_head = problem.bias_broadcast[1] ? problem.heads_q : vector.head + 1;
    vector.batch = (int32_t)(tile / blocks / heads);
    vector.end_batch = problem.bias_broadcast[0] ? problem.batch : vector.batch + 1;
    return vector;
}

/* A part's sum of an element: of every SUMS_PARTS-th head the number at a position, or, if that is -1,
 * what a thread of the part has of all numbers. */
PTX_FUNCTION double sums_add_vector(
    const struct device_item &item, const struct sums_vector &vector, int64_t position)
{
    const struct attn_problem &problem = item.problem;
    enum lengths_side side = backward_bias_side(&problem);
    const float *numbers = (const float *)(item.workspace + backward_layout_of(&problem).bias);
    int32_t heads = vector.end_head - vector.head;
    int64_t count = (int64_t)(vector.end_batch - vector.batch) * heads;
    double sum = 0;

    for (int64_t i = (int)ptx_thread() / BACKWARD_ROWS; i < count; i += SUMS_PARTS) {
        struct sums_rows rows = sums_rows_of(
            item, side, vector.batch + (int32_t)(i / heads), vector.head + (int32_t)(i % heads));
        int32_t row = position < 0 ? (int32_t)ptx_thread() % BACKWARD_ROWS : (int32_t)position;
        int32_t end = position < 0 || row >= rows.length ? rows.length : row + 1;
        for (; row < end; row += BACKWARD_ROWS) {
            sum += (double)numbers[rows.at + row];
        }
    }
    return sum;
}

template <bool Bf16>
PTX_FUNCTION void sums_bias(const struct device_item &item, int64_t tile)
{
    const struct attn_problem &problem = item.problem;
    const struct attn_view &view = problem.dbias;
    struct sums_vector vector = sums_vector_of(problem, tile);
    int64_t at = view.batch_stride * vector.batch + view.head_stride * vector.head;
    int thread = (int)ptx_thread();

    if (vector.position < 0) {
        double sum = sums_of_block(sums_add_vector(item, vector, -1));
        if (thread == 0) {
            backward_store<Bf16>(view, problem.bias_dtype, at, (float)sum);
        }
        return;
    }
    double *shared = (double *)ptx_shared_memory();
    int64_t position = vector.position + thread % BACKWARD_ROWS;
    shared[thread] = sums_add_vector(item, vector, position);
    ptx_barrier();
    bool keys = backward_bias_side(&problem) == LENGTHS_KEYS;
    if (thread < BACKWARD_ROWS && position < (keys ? problem.seqlen_k : problem.seqlen_q)) {
        double sum = 0;
        for (int i = 0; i < SUMS_PARTS; i++) {
            sum += shared[thread + i * BACKWARD_ROWS];
        }
        at += position * (keys ? view.column_stride : view.row_stride);
        backward_store<Bf16>(view, problem.bias_dtype, at, (float)sum);
    }
}

template <bool Bf16>
static __global__ void __launch_bounds__(SUMS_THREADS)
    backward_sums(const __grid_constant__ struct device_group group)
{
    struct device_place place = device_place_of(group, ptx_block());
    const struct device_item &item = *place.item;
    int64_t slopes = backward_slope_tiles(&item.problem);
    int64_t sinks = backward_sink_tiles(&item.problem);
    int64_t tile = (int64_t)place.tile;

    if (tile < slopes) {
        sums_slopes(item, tile);
    } else if (tile < slopes + sinks) {
        sums_sinks(item, (int32_t)(tile - slopes));
    } else {
        sums_bias<Bf16>(item, tile - slopes - sinks);
    }
}

extern "C" const struct sm80_kernel sm80_backward_sums[2] = {
    {(const void *)backward_sums<false>, SUMS_THREADS, SUMS_THREADS * 8, 0, 0},
    {(const void *)backward_sums<true>, SUMS_THREADS, SUMS_THREADS * 8, 0, 0},
};

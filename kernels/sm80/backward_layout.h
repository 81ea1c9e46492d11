/*
 * How the backward pass cuts its work, and what its stages leave for one another in the workspace.
 * Plain C that is CUDA as well; any thread.
 *
 * All parts are linear in the rows: per query what its probabilities come from (lse, delta), sums of ds
 * for slopes and for a bias that is a vector, and, unless dq has a stage of its own, the fp32 sums
 * that become dq.
 */
#pragma once

#include "device/args.h"
#include "device/lengths.h"

#if defined(__CUDACC__)
#define BACKWARD_FUNCTION static __host__ __device__ inline
#else
#define BACKWARD_FUNCTION static inline
#endif

#if defined(__cplusplus)
#define BACKWARD_CONSTANT static inline constexpr
#else
#define BACKWARD_CONSTANT static inline
#endif

/* -- tiles, by the head dim's tile and the kind --------------------------------------------------- */

#define BACKWARD_THREADS 256     /* where keys are owned */
#define BACKWARD_ROW_THREADS 128 /* where queries, or tiles of dbias, are owned: 16 rows a warp */
#define BACKWARD_ROWS 64         /* of the stages that own queries, and of dbias's tiles */
#define BACKWARD_SUMS_THREADS 256
#define BACKWARD_GROUP 16 /* rows that the sums of dq are kept in groups of */

/* Queries and keys of the stage that owns keys. What has more arithmetic has fewer registers left. */
BACKWARD_CONSTANT int backward_column_queries(int width, enum score_kind kind)
{
    return width <= 64 && kind == SCORE_PLAIN ? 128 : 64;
}

BACKWARD_CONSTANT int backward_column_keys(int width, enum score_kind kind)
{
    return width > 128 || kind == SCORE_GENERAL ? 64 : 128;
}

/* Keys that the stages that own queries walk over at a time. */
BACKWARD_CONSTANT int backward_row_keys(int width)
{
    return width > 192 ? 32 : 64;
}

/* The head dim's tile, as sm80_key_of() has it. */
BACKWARD_FUNCTION int backward_width(const struct attn_problem *problem)
{
    int width =
        problem->head_dim_qk > problem->head_dim_v ? problem->head_dim_qk : problem->head_dim_v;

    return width <= 128 ? (width + 31) / 32 * 32 : (width + 63) / 64 * 64;
}

/* -- who computes what ---------------------------------------------------------------------------- */

enum backward_dbias {
    BACKWARD_DBIAS_NONE,
    BACKWARD_DBIAS_MATRIX,  /* tiles walk over batches and heads that are summed over */
    BACKWARD_DBIAS_KEYS,    /* blocks that own keys leave sums of theirs */
    BACKWARD_DBIAS_QUERIES, /* the sum of a query's keys is its dlse, or a block's that owns it */
};

BACKWARD_FUNCTION enum backward_dbias backward_dbias_of(const struct attn_problem *problem)
{
    if (problem->dbias.data == NULL) {
        return BACKWARD_DBIAS_NONE;
    }
    if (problem->bias_broadcast[3]) {
        return BACKWARD_DBIAS_QUERIES;
    }
    return problem->bias_broadcast[2] ? BACKWARD_DBIAS_KEYS : BACKWARD_DBIAS_MATRIX;
}

/* Whether sums of ds by query are made of ds: a sink may have so much of a query that its lse does not
 * say what is left for the keys. */
BACKWARD_FUNCTION bool backward_sums_queries(const struct attn_problem *problem)
{
    return backward_dbias_of(problem) == BACKWARD_DBIAS_QUERIES && problem->sinks.data != NULL;
}

/* Sums of dq that any order may add to are not the same twice; dslopes, too, are summed by query. */
BACKWARD_FUNCTION bool backward_owns_queries(const struct attn_problem *problem)
{
    return problem->deterministic || problem->dslopes.data != NULL ||
           backward_sums_queries(problem);
}

/* Whether the blocks that own keys write the gradient of the bias, because each of its elements is one
 * element of ds as they round it, and they have all of them. */
BACKWARD_FUNCTION bool backward_dbias_direct(const struct attn_problem *problem)
{
    return backward_dbias_of(problem) == BACKWARD_DBIAS_MATRIX &&
           problem->bias_dtype == problem->dtype && problem->softcap == 0 &&
           problem->dropout_threshold == 0 && !lengths_packed(problem, LENGTHS_QUERIES) &&
           !lengths_packed(problem, LENGTHS_KEYS) &&
           (!problem->bias_broadcast[0] || problem->batch == 1) &&
           (!problem->bias_broadcast[1] || problem->heads_q == 1);
}

/* The side that a vector's gradient has elements for. */
BACKWARD_FUNCTION enum lengths_side backward_bias_side(const struct attn_problem *problem)
{
    return backward_dbias_of(problem) == BACKWARD_DBIAS_KEYS ? LENGTHS_KEYS : LENGTHS_QUERIES;
}

/* Tiles of the stage that owns the gradient of a matrix: it has elements for every query and key of the
 * longest sequences. */
BACKWARD_FUNCTION uint64_t backward_dbias_tiles(const struct attn_problem *problem)
{
    if (backward_dbias_of(problem) != BACKWARD_DBIAS_MATRIX || backward_dbias_direct(problem)) {
        return 0;
    }
    return (problem->bias_broadcast[0] ? 1 : (uint64_t)problem->batch) *
           (problem->bias_broadcast[1] ? 1 : (uint64_t)problem->heads_q) *
           (uint64_t)lengths_blocks_each(problem, LENGTHS_QUERIES, BACKWARD_ROWS) *
           (uint64_t)lengths_blocks_each(problem, LENGTHS_KEYS, BACKWARD_ROWS);
}

/* -- the last sums -------------------------------------------------------------------------------- */

/* 1: dslopes have one element for all batches; outputs have no other strides of 0. */
BACKWARD_FUNCTION int64_t backward_slope_batches(const struct attn_problem *problem)
{
    return problem->dslopes.batch_stride == 0 ? 1 : problem->batch;
}

BACKWARD_FUNCTION int64_t backward_slope_tiles(const struct attn_problem *problem)
{
    return problem->dslopes.data == NULL ? 0 : backward_slope_batches(problem) * problem->heads_q;
}

BACKWARD_FUNCTION int64_t backward_sink_tiles(const struct attn_problem *problem)
{
    return problem->dsinks.data == NULL ? 0 : problem->heads_q;
}

/* Of one batch and head of a vector's gradient. */
BACKWARD_FUNCTION int64_t backward_vector_blocks(const struct attn_problem *problem)
{
    enum lengths_side side = backward_bias_side(problem);
    bool collapsed = problem->bias_broadcast[2] && problem->bias_broadcast[3];

    return collapsed ? 1 : lengths_blocks_each(problem, side, BACKWARD_ROWS);
}

/* -- the workspace -------------------------------------------------------------------------------- */

/* Rows of a side's tensors, of all batches. */
BACKWARD_FUNCTION int64_t backward_all_rows(
    const struct attn_problem *problem, enum lengths_side side)
{
    return lengths_rows(problem, side) * (lengths_packed(problem, side) ? 1 : problem->batch);
}

/* Which of these a sequence begins with. */
BACKWARD_FUNCTION int64_t backward_first_row(const struct attn_problem *problem,
    enum lengths_side side, const struct lengths_sequence *sequence)
{
    return sequence->first + sequence->batch * lengths_longest(problem, side);
}

/* Groups of rows for the sums of dq, where each sequence begins with a group of its own. */
BACKWARD_FUNCTION int64_t backward_groups(const struct attn_problem *problem)
{
    int64_t rows = lengths_rows(problem, LENGTHS_QUERIES);

    return lengths_packed(problem, LENGTHS_QUERIES)
               ? rows / BACKWARD_GROUP + problem->batch
               : (rows + BACKWARD_GROUP - 1) / BACKWARD_GROUP * problem->batch;
}

BACKWARD_FUNCTION int64_t backward_first_group(
    const struct attn_problem *problem, const struct lengths_sequence *queries, int32_t batch)
{
    return lengths_packed(problem, LENGTHS_QUERIES)
               ? queries->first / BACKWARD_GROUP + batch
               : (problem->seqlen_q + BACKWARD_GROUP - 1) / BACKWARD_GROUP * batch;
}

/* Where parts begin, in bytes; each has its rows for head 0, for head 1, and so on. */
struct backward_layout {
    size_t lse;    /* as the kind's scores; +inf for queries that see nothing */
    size_t delta;  /* rowsum(dout * out) - dlse */
    size_t slopes; /* sum over a query's keys of ds * distance */
    size_t bias;   /* sum of ds, of a query or of a key */
    size_t dq;     /* head, group, then as backward_dq_index() says */
    size_t bytes;
};

/* Bytes of a part of some floats, a multiple of 64. */
BACKWARD_FUNCTION size_t backward_part(bool present, int64_t rows, int64_t heads, int64_t width)
{
    return present ? ((size_t)rows * (size_t)heads * (size_t)width * 4 + 63) / 64 * 64 : 0;
}

BACKWARD_FUNCTION struct backward_layout backward_layout_of(const struct attn_problem *problem)
{
    enum backward_dbias dbias = backward_dbias_of(problem);
    bool vector = dbias == BACKWARD_DBIAS_KEYS || dbias == BACKWARD_DBIAS_QUERIES;
    int64_t heads = problem->heads_q;
    int64_t rows = backward_all_rows(problem, LENGTHS_QUERIES);
    int64_t sums = backward_all_rows(problem, backward_bias_side(problem));
    int64_t groups = backward_groups(problem);
    struct backward_layout layout;

    layout.lse = lengths_bytes(problem);
    layout.delta = layout.lse + backward_part(true, rows, heads, 1);
    layout.slopes = layout.delta + backward_part(true, rows, heads, 1);
    layout.bias = layout.slopes + backward_part(problem->dslopes.data != NULL, rows, heads, 1);
    layout.dq = layout.bias + backward_part(vector, sums, heads, 1);
    layout.bytes = layout.dq + backward_part(!backward_owns_queries(problem),
                                   groups * BACKWARD_GROUP, heads, backward_width(problem));
    return layout;
}

/*
 * What scores of one head of one sequence are made with, and which keys its queries see.
 */
#pragma once

#include <float.h>
#include <ptx/sm80.cuh>

#include "args.h"
#include "philox.h"

/* One head of one sequence. */
struct score_head {
    float scale; /* of products; PLAIN's is times log2(e); with a softcap it is what tanh takes */
    float softcap;
    float slope;
    int32_t off; /* what the diagonal is shifted by */
    /* Query i sees the keys from i + low on and before i + high, as far as there are any. */
    int32_t low;
    int32_t high;
    int32_t queries;
    int32_t keys;
    const char *bias; /* of query 0 and key 0; NULL: none */
    int64_t bias_row; /* strides in elements */
    int64_t bias_column;
    enum attn_dtype bias_dtype;
    bool bias_pairs;    /* two elements can be read at once, at even columns */
    uint32_t threshold; /* of a draw's values, which are the upper half here; 0: no dropout */
    float kept_scale;
    struct philox_stream dropout;
};

/* Sums that are cut to what sequences have room for, so that sums with positions have room as well. */
PTX_FUNCTION int32_t score_reach(int64_t off, int64_t window)
{
    int64_t widest = 2 * (int64_t)DEVICE_LONGEST;
    int64_t sum = off + (window < -widest ? -widest : window > widest ? widest : window);
    int64_t most = DEVICE_LONGEST;
    return (int32_t)(sum < -most ? -most : sum > most ? most : sum);
}

/* Over a tiny softcap it is finite all the same: a product of 0 has to stay 0. */
PTX_FUNCTION float score_scale_of(const struct attn_problem &problem)
{
    if (problem.softcap > 0) {
        float scale = problem.scale / problem.softcap;
        return scale > FLT_MAX ? FLT_MAX : scale < -FLT_MAX ? -FLT_MAX : scale;
    }
    return score_kind_of(&problem) == SCORE_PLAIN ? problem.scale * SCORE_LOG2E : problem.scale;
}

PTX_FUNCTION struct score_head score_head_of(
    const struct attn_problem &problem, int32_t batch, int32_t head, int32_t queries, int32_t keys)
{
    struct score_head score;
    score.softcap = problem.softcap;
    score.scale = score_scale_of(problem);
    score.off = problem.alignment == ATTN_BOTTOM_RIGHT ? keys - queries : 0;
    score.low =
        problem.window_left < 0 ? -DEVICE_LONGEST : score_reach(score.off, -problem.window_left);
    score.high = problem.window_right < 0 ? DEVICE_LONGEST
                                          : score_reach(score.off + 1, problem.window_right);
    score.queries = queries;
    score.keys = keys;
    score.slope = 0.0F;
    if (problem.slopes.data != NULL) {
        const float *slopes = (const float *)problem.slopes.data;
        score.slope =
            slopes[problem.slopes.batch_stride * batch + problem.slopes.head_stride * head];
    }
    score.bias = NULL;
    score.bias_pairs = false; /* else what it was is kept for it in a register, from head to head */
    if (problem.bias.data != NULL) {
        const struct attn_view &bias = problem.bias;
        int64_t bytes = problem.bias_dtype == ATTN_FP32 ? 4 : 2;
        int64_t at = (problem.bias_broadcast[0] ? 0 : bias.batch_stride * batch) +
                     (problem.bias_broadcast[1] ? 0 : bias.head_stride * head);
        score.bias = (const char *)bias.data + at * bytes;
        score.bias_row = problem.bias_broadcast[2] ? 0 : bias.row_stride;
        score.bias_column = problem.bias_broadcast[3] ? 0 : bias.column_stride;
        score.bias_dtype = problem.bias_dtype;
        score.bias_pairs = score.bias_column == 1 && score.bias_row % 2 == 0 &&
                           (uintptr_t)score.bias % (2 * (uintptr_t)bytes) == 0;
    }
    score.threshold = problem.dropout_threshold << 16;
    score.kept_scale = 65536.0F / (65536.0F - (float)problem.dropout_threshold);
    score.dropout.seed = problem.dropout_seed;
    score.dropout.offset = problem.dropout_offset;
    score.dropout.head = (uint32_t)(batch * problem.heads_q + head);
    return score;
}

/* -- which keys a query sees --------------------------------------------------------------------- */

PTX_FUNCTION int32_t score_clamp(int32_t position, int32_t end)
{
    return position < 0 ? 0 : position > end ? end : position;
}

/* The first key that query i sees, and the one behind the last; none if the second is not greater. */
PTX_FUNCTION int32_t score_first_key(const struct score_head &score, int32_t i)
{
    return score_clamp(i + score.low, score.keys);
}

PTX_FUNCTION int32_t score_end_key(const struct score_head &score, int32_t i)
{
    return score_clamp(i + score.high, score.keys);
}

/* The same for the queries that key j is seen by. */
PTX_FUNCTION int32_t score_first_query(const struct score_head &score, int32_t j)
{
    return score_clamp(j - score.high + 1, score.queries);
}

PTX_FUNCTION int32_t score_end_query(const struct score_head &score, int32_t j)
{
    return score_clamp(j - score.low + 1, score.queries);
}

/* Whether all of rows x columns from (row, column) on exists and is visible: no mask is needed. */
PTX_FUNCTION bool score_sees_all(
    const struct score_head &score, int32_t row, int32_t rows, int32_t column, int32_t columns)
{
    return row + rows <= score.queries && column + columns <= score_end_key(score, row) &&
           column >= score_first_key(score, row + rows - 1);
}

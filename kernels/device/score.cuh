/*
 * How products become scores, for every CUDA family: scale, softcap, bias, ALiBi, mask, dropout, on
 * accumulators of m16n8 matrix instructions.
 *
 * Element e of fragment (m, n) of a thread is in row  row + 16 m + lane / 4 + 8 (e / 2)  and column
 * column + 8 n + lane % 4 * 2 + e % 2,  where (row, column) is the warp's first element; both are
 * counted in the sequence, column is a multiple of 16 and row of 16.
 *
 * What a problem does not use costs at most a branch that the whole warp takes alike.
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

/* -- scores -------------------------------------------------------------------------------------- */

template <bool Bf16>
PTX_FUNCTION float score_float_of(uint16_t x)
{
    return Bf16 ? ptx_float_of_bits((uint32_t)x << 16) : ptx_float_of_fp16(x);
}

template <bool Bf16>
PTX_FUNCTION float score_element(float x)
{
    return x;
}

template <bool Bf16>
PTX_FUNCTION float score_element(uint16_t x)
{
    return score_float_of<Bf16>(x);
}

/* Two neighbours in a row, read at once. */
struct alignas(8) score_pair {
    float low;
    float high;
};

/* Of a bias that has pairs. */
template <bool Bf16>
PTX_FUNCTION struct score_pair score_pair_of(const float *at)
{
    return *(const struct score_pair *)(const void *)at;
}

template <bool Bf16>
PTX_FUNCTION struct score_pair score_pair_of(const uint16_t *at)
{
    uint32_t word = *(const uint32_t *)(const void *)at;
    struct score_pair pair = {
        score_float_of<Bf16>((uint16_t)word), score_float_of<Bf16>((uint16_t)(word >> 16))};
    return pair;
}

/* Below it in size, the series of tanh is as exact as a float. */
#define SCORE_SERIES_END 0.25F

PTX_FUNCTION float score_tanh_series(float x)
{
    float y = x * x;
    float series = -17.0F / 315.0F + y * (62.0F / 2835.0F);
    return x + x * y * (-1.0F / 3.0F + y * (2.0F / 15.0F + y * series));
}

/* tanh, to a few units in the last place: 1 - 2 / (e^2x + 1) cancels where x is small. */
PTX_FUNCTION float score_tanh(float x)
{
    float ratio = 1.0F - 2.0F * ptx_reciprocal(ptx_exp2(2.0F * SCORE_LOG2E * x) + 1.0F);
    return fabsf(x) < SCORE_SERIES_END ? score_tanh_series(x) : ratio;
}

template <bool Small, int M, int N>
PTX_FUNCTION void score_tanh_all(float scale, float (&s)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float x = s[m][n][e] * scale;
                s[m][n][e] = Small ? score_tanh_series(x) : score_tanh(x);
            }
        }
    }
}

/* The cap's part of a score, without the cap as a factor. Most scores are much smaller than the cap, and
 * the series takes a quarter of the time. */
template <int M, int N>
PTX_FUNCTION void score_cap(const struct score_head &score, float (&s)[M][N][4])
{
    float most = 0.0F;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                most = ptx_maximum(most, fabsf(s[m][n][e]));
            }
        }
    }
    if (ptx_all(most * fabsf(score.scale) < SCORE_SERIES_END)) {
        score_tanh_all<true>(score.scale, s);
    } else {
        score_tanh_all<false>(score.scale, s);
    }
}

/* slope[] = d score / d product without scale, of what score_cap() left: 1 but for softcap. */
template <int M, int N>
PTX_FUNCTION void score_slope(bool capped, const float (&s)[M][N][4], float (&slope)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                slope[m][n][e] = capped ? 1.0F - s[m][n][e] * s[m][n][e] : 1.0F;
            }
        }
    }
}

template <enum score_kind Kind>
PTX_FUNCTION bool score_capped(const struct score_head &score)
{
    return Kind == SCORE_GENERAL && score.softcap > 0;
}

/* Makes scores of products, or of what score_cap() left of them. */
template <enum score_kind Kind>
PTX_FUNCTION float score_factor(const struct score_head &score)
{
    return score_capped<Kind>(score) ? score.softcap : score.scale;
}

template <int M, int N>
PTX_FUNCTION void score_multiply(float factor, float (&s)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[m][n][e] *= factor;
            }
        }
    }
}

/* Multiplies by a factor and adds a bias. What has none, of rows and columns that do not exist, is left
 * as it is. */
template <bool Bf16, typename Element, int M, int N>
PTX_FUNCTION void score_add_elements(
    const struct score_head &score, float factor, int32_t row, int32_t column, float (&s)[M][N][4])
{
    int lane = (int)ptx_thread() & 31;
    int32_t i = row + lane / 4;
    int32_t j = column + lane % 4 * 2;
    const Element *first = (const Element *)score.bias + i * score.bias_row + j;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int below = 16 * m + 8 * half;
            const Element *from = first + below * score.bias_row;
            int32_t columns = i + below < score.queries ? score.keys - j : 0;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (8 * n + e < columns) {
                        float &element = s[m][n][2 * half + e];
                        element = element * factor + score_element<Bf16>(from[8 * n + e]);
                    }
                }
            }
        }
    }
}

/* The same with a bias that all keys share. */
template <bool Bf16, typename Element, int M, int N>
PTX_FUNCTION void score_add_rows(
    const struct score_head &score, float factor, int32_t row, float (&s)[M][N][4])
{
    int32_t i = row + ((int)ptx_thread() & 31) / 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int32_t at = i + 16 * m + 8 * half;
            float bias = 0.0F;
            if (at < score.queries) {
                bias = score_element<Bf16>(((const Element *)score.bias)[at * score.bias_row]);
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = s[m][n][e] * factor + bias;
                }
            }
        }
    }
}

/* The same with a bias that has pairs and exists everywhere. */
template <bool Bf16, typename Element, int M, int N>
PTX_FUNCTION void score_add_pairs(
    const struct score_head &score, float factor, int32_t row, int32_t column, float (&s)[M][N][4])
{
    int lane = (int)ptx_thread() & 31;
    const Element *first = (const Element *)score.bias +
                           (int64_t)(row + lane / 4) * score.bias_row + column + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Element *from = first + (16 * m + 8 * half) * score.bias_row;
#pragma unroll
            for (int n = 0; n < N; n++) {
                struct score_pair pair = score_pair_of<Bf16>(from + 8 * n);
                float &low = s[m][n][2 * half];
                float &high = s[m][n][2 * half + 1];
                low = low * factor + pair.low;
                high = high * factor + pair.high;
            }
        }
    }
}

template <bool Bf16, typename Element, int M, int N>
PTX_FUNCTION void score_add_typed(const struct score_head &score, bool masked, float factor,
    int32_t row, int32_t column, float (&s)[M][N][4])
{
    if (score.bias_column == 0) {
        score_add_rows<Bf16, Element>(score, factor, row, s);
    } else if (masked || !score.bias_pairs) {
        score_add_elements<Bf16, Element>(score, factor, row, column, s);
    } else {
        score_add_pairs<Bf16, Element>(score, factor, row, column, s);
    }
}

/* Multiplies by score_factor() and adds the bias, if there is one, from global memory. */
template <enum score_kind Kind, bool Bf16, int M, int N>
PTX_FUNCTION void score_add_bias(
    const struct score_head &score, bool masked, int32_t row, int32_t column, float (&s)[M][N][4])
{
    float factor = score_factor<Kind>(score);
    if (score.bias == NULL) {
        score_multiply(factor, s);
    } else if (score.bias_dtype == ATTN_FP32) {
        score_add_typed<Bf16, float>(score, masked, factor, row, column, s);
    } else {
        score_add_typed<Bf16, uint16_t>(score, masked, factor, row, column, s);
    }
}

/* ALiBi. Distances that a float has no room for are off by less than its precision. */
template <int M, int N>
PTX_FUNCTION void score_add_distances(
    const struct score_head &score, int32_t row, int32_t column, float (&s)[M][N][4])
{
    int lane = (int)ptx_thread() & 31;
    float first = (float)(row + lane / 4 + score.off - (column + lane % 4 * 2));
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float distance = first + (float)(16 * m + 8 * (e / 2) - 8 * n - e % 2);
                s[m][n][e] -= score.slope * fabsf(distance);
            }
        }
    }
}

/* Products stay what they are, but those not visible become -inf. */
template <int M, int N>
PTX_FUNCTION void score_mask(
    const struct score_head &score, int32_t row, int32_t column, float (&s)[M][N][4])
{
    const float infinity = ptx_float_of_bits(0x7f800000U);
    int lane = (int)ptx_thread() & 31;
    int32_t from = column + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int32_t i = row + 16 * m + lane / 4 + 8 * half;
            int32_t first = score_first_key(score, i) - from;
            int32_t end = score_end_key(score, i) - from;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    bool visible = 8 * n + e >= first && 8 * n + e < end;
                    float &element = s[m][n][2 * half + e];
                    element = visible ? element : -infinity;
                }
            }
        }
    }
}

/* What follows the bias. masked: false only where score_sees_all(). */
template <int M, int N>
PTX_FUNCTION void score_finish(
    const struct score_head &score, bool masked, int32_t row, int32_t column, float (&s)[M][N][4])
{
    if (score.slope != 0.0F) {
        score_add_distances(score, row, column, s);
    }
    if (masked) {
        score_mask(score, row, column, s);
    }
}

/*
 * Products into scores, of all kinds but PLAIN; those not visible become -inf, and so do columns beyond
 * the lengths. Masked: false only where score_sees_all(). Slope: slope[] is score_slope()'s.
 */
template <enum score_kind Kind, bool Bf16, bool Masked, bool Slope, int M, int N>
PTX_FUNCTION void score_make(const struct score_head &score, int32_t row, int32_t column,
    float (&s)[M][N][4], float (&slope)[Slope ? M : 1][Slope ? N : 1][4])
{
    static_assert(Kind != SCORE_PLAIN, "its scores are products times scale");
    if (score_capped<Kind>(score)) {
        score_cap(score, s);
    }
    if constexpr (Slope) {
        score_slope(score_capped<Kind>(score), s, slope);
    }
    score_add_bias<Kind, Bf16>(score, Masked, row, column, s);
    score_finish(score, Masked, row, column, s);
}

/* e^(s - base), both as scores of the kind, but of PLAIN's s the product, which scale makes a score. The
 * others subtract first: log2(e) times one of them may be too much for a float. */
template <enum score_kind Kind>
PTX_FUNCTION float score_exponential(float scale, float s, float base)
{
    return ptx_exp2(Kind == SCORE_PLAIN ? s * scale - base : (s - base) * SCORE_LOG2E);
}

/* -- dropout ------------------------------------------------------------------------------------- */

/* What dropout does not keep becomes 0 or, if it is wanted whole (Marks), negative, also -0. What is kept
 * has yet to be scaled by kept_scale, which may be more than 16-bit elements have room for. */
template <bool Marks, int M, int N>
PTX_FUNCTION void score_drop(
    const struct score_head &score, int32_t row, int32_t column, float (&p)[M][N][4])
{
    static_assert(N % 2 == 0, "a draw is for two fragments");
    int lane = (int)ptx_thread() & 31;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            struct philox_values draw = philox_draw(score.dropout,
                philox_query(row + 16 * m + lane / 4), philox_key(column + 8 * n + lane % 4 * 2));
#pragma unroll
            for (int number = 0; number < 8; number++) {
                uint32_t value = draw.word[number / 2] << 16 * (1 - number % 2);
                float &element = p[m][n + number / 2 % 2][number / 4 * 2 + number % 2];
                uint32_t sign = value >= score.threshold ? 0U : 0x80000000U;
                float marked = ptx_float_of_bits(ptx_bits_of_float(element) | sign);
                float dropped = sign == 0 ? element : 0.0F;
                element = Marks ? marked : dropped;
            }
        }
    }
}

PTX_FUNCTION bool score_marked(float p)
{
    return (ptx_bits_of_float(p) & 0x80000000U) != 0;
}

PTX_FUNCTION float score_unmarked(float p)
{
    return ptx_float_of_bits(ptx_bits_of_float(p) & 0x7fffffffU);
}

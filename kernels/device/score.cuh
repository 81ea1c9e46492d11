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

#include "score_bias.cuh"
#include "score_head.cuh"

/* -- scores -------------------------------------------------------------------------------------- */

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

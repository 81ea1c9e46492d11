/*
 * A bias from global memory on scores in accumulators, which lie as score.cuh says.
 */
#pragma once

#include "score_head.cuh"

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

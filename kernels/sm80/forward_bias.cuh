/*
 * Bias of the forward kernel on its way through shared memory: a step's part of it comes in beside V and
 * lies there as accumulators do, so that a warp takes it with the loads of matrix instructions. Straight
 * from global memory each of those words would be a request of eight rows.
 *
 * A bias that is the same for all queries, a key vector, is a tile of one row, which all rows read.
 */
#pragma once

#include "device/score.cuh"
#include "device/tile.cuh"

/* A step's bias. Of a row, what is behind Keys columns is not read. */
template <int Rows, int Keys>
struct forward_bias {
    static const int columns = Keys <= 32 ? 32 : (Keys + 63) / 64 * 64;
    typedef struct tile<Rows, columns> place;
};

/* The bias of key 0 and the block's first query, if it can take this way; else NULL. */
PTX_FUNCTION const char *forward_bias_of(const struct score_head &score, int32_t row)
{
    if (score.bias == NULL || score.bias_dtype == ATTN_FP32 || score.bias_column != 1) {
        return NULL;
    }
    const char *first = score.bias + score.bias_row * row * 2;
    bool aligned = (((uintptr_t)first | (uintptr_t)score.bias_row * 2) & 15) == 0;
    return aligned || score.bias_row == 0 ? first : NULL;
}

/* Whole: all rows exist; else `rows` do, from the thread's first one on. */
template <int Rows, int Keys, int Threads, bool Whole>
PTX_FUNCTION void forward_bias_copy(
    uint32_t to, const char *from, int64_t stride, int32_t rows, uint32_t bytes)
{
    typedef typename forward_bias<Rows, Keys>::place place;
    static const int step = tile_share<Rows, forward_bias<Rows, Keys>::columns, Threads>::step;
    static_assert(Keys <= place::page_columns && Keys % 16 == 0, "rows of one page");
#pragma unroll
    for (int i = 0; i < Rows / step; i++) {
        ptx_copy_16(to + (uint32_t)(i * step * place::row_bytes), from,
            Whole || i * step < rows ? bytes : 0U);
        from += stride * (step * 2);
    }
}

/* Starts to copy the bias of the keys from `column` on, `first` as forward_bias_of() found it, row being
 * the block's first query. What does not exist becomes 0. All Threads of the block; it is complete where
 * copies begun by tile_load() are, aligned or not. */
template <int Rows, int Keys, int Threads>
PTX_FUNCTION void forward_bias_load(
    char *shared, const struct score_head &score, const char *first, int32_t row, int32_t column)
{
    typedef typename forward_bias<Rows, Keys>::place place;
    int thread = (int)ptx_thread();
    int below = thread / place::chunks;
    int chunk = thread % place::chunks * 8;
    int32_t keys = score.keys - column < Keys ? score.keys - column : Keys;
    int32_t left = keys - chunk;
    uint32_t bytes = left >= 8 ? 16U : left > 0 ? (uint32_t)left * 2 : 0U;
    const char *from = first + (below * score.bias_row + column + chunk) * 2;
    uint32_t to = ptx_shared_address(shared) + place::offset(below, chunk);
    int32_t rows = score.queries - row - below;
    if (score.bias_row != 0) {
        if (score.queries - row >= Rows) {
            forward_bias_copy<Rows, Keys, Threads, true>(to, from, score.bias_row, rows, bytes);
        } else {
            forward_bias_copy<Rows, Keys, Threads, false>(to, from, score.bias_row, rows, bytes);
        }
    } else if (((uintptr_t)first & 15) == 0) {
        if (below == 0) {
            ptx_copy_16(to, from, bytes);
        }
    } else if (thread < Keys) {
        *(uint16_t *)(void *)(shared + place::offset(0, thread)) =
            thread < keys ? ((const uint16_t *)(const void *)first)[column + thread] : (uint16_t)0;
    }
}

/* Multiplies by a factor and adds the bias of the warp's rows, which are warp_row and following of the
 * tile's. */
template <int Rows, int Keys, bool Bf16, int M, int N>
PTX_FUNCTION void forward_bias_add(uint32_t shared, const struct score_head &score, float factor,
    int32_t warp_row, float (&s)[M][N][4])
{
    typedef typename forward_bias<Rows, Keys>::place place;
    int lane = (int)ptx_thread() & 31;
    bool vector = score.bias_row == 0;
    uint32_t from = place::lane(shared, vector ? 0 : warp_row + (lane & 15), lane >> 4);
    uint32_t below = vector ? 0U : (uint32_t)(16 * place::row_bytes);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            struct ptx_words4 bias =
                ptx_load_matrices(place::from_lane(from + (uint32_t)m * below, 0, 8 * n));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float &low = s[m][n + i / 2][i % 2 * 2];
                float &high = s[m][n + i / 2][i % 2 * 2 + 1];
                low = low * factor + score_float_of<Bf16>((uint16_t)bias.word[i]);
                high = high * factor + score_float_of<Bf16>((uint16_t)(bias.word[i] >> 16));
            }
        }
    }
}

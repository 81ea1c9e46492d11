/*
 * The forward kernel of compute capability 8.0: a block has a tile of queries of one head, and goes
 * over the keys that they see from the last to the first.
 *
 * Warps have rows of their own and all keys, so that softmax takes no exchange between warps. A step
 * computes S = Q K^T while V comes in, then P = softmax(S) and O += P V while the next K comes in:
 * each operand has one place in shared memory, and two blocks of a multiprocessor hide each other's
 * waits. Scores stay in registers: an accumulator's layout is that of the next product's operand.
 */
#pragma once

#include "forward_block.cuh"
#include "sm80.h"

#include "device/score.cuh"
#include "device/tile.cuh"

template <bool Bf16>
PTX_FUNCTION void forward_multiply(float (&d)[4], struct ptx_words4 a, uint32_t b0, uint32_t b1)
{
    if constexpr (Bf16) {
        ptx_multiply_bf16(d, a, b0, b1);
    } else {
        ptx_multiply_fp16(d, a, b0, b1);
    }
}

template <bool Bf16>
PTX_FUNCTION uint32_t forward_pack(float low, float high)
{
    return Bf16 ? ptx_pack_bf16(low, high) : ptx_pack_fp16(low, high);
}

/* s = Q K^T, for the warp's rows. */
template <int Width, enum score_kind Kind, bool Bf16, int M, int N>
PTX_FUNCTION void forward_products(uint32_t queries, uint32_t keys, float (&s)[M][N][4])
{
    typedef struct forward_shape<Width, Kind> shape;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0F;
        }
    }
#pragma unroll
    for (int k = 0; k < Width; k += 16) {
        struct ptx_words4 a[M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m] = tile_a<shape::rows, Width>(queries, 16 * m, k);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            struct ptx_words4 b = tile_b<shape::keys, Width>(keys, 8 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                forward_multiply<Bf16>(s[m][n], a[m], b.word[0], b.word[1]);
                forward_multiply<Bf16>(s[m][n + 1], a[m], b.word[2], b.word[3]);
            }
        }
    }
}

/* What a thread knows of its rows: those lane / 4 and lane / 4 + 8 of each fragment. */
template <int M>
struct forward_rows {
    float highest[M][2]; /* score that the row's threads have seen */
    float sum[M][2];     /* of the thread's exponentials; forward_sum() says where it is */
};

/* A thread's part of a row's sum of exponentials: in shared memory where registers have no room, as each
 * step only needs it once. Only the thread itself reads and writes it. */
template <int Width, enum score_kind Kind, int M>
PTX_FUNCTION float &forward_sum(struct forward_rows<M> &rows, int m, int half)
{
    typedef struct forward_shape<Width, Kind> shape;
    if constexpr (shape::sums_bytes == 0) {
        return rows.sum[m][half];
    } else {
        float *sums = (float *)(void *)(ptx_shared_memory() + shape::sums);
        return sums[(2 * m + half) * shape::threads + (int)ptx_thread()];
    }
}

/* Scores into exponentials relative to their rows' greatest so far, which outputs and sums follow.
 * PLAIN's are products yet, of which `scale`, more than 0, makes scores. */
template <int Width, enum score_kind Kind, int M, int N, int D>
PTX_FUNCTION void forward_soften(
    float scale, float (&s)[M][N][4], float (&out)[M][D][4], struct forward_rows<M> &rows)
{
    const float infinity = ptx_float_of_bits(0x7f800000U);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = rows.highest[m][half];
#pragma unroll
            for (int n = 0; n < N; n++) {
                top = ptx_maximum(top, ptx_maximum(s[m][n][2 * half], s[m][n][2 * half + 1]));
            }
            top = ptx_maximum(top, ptx_shuffle_xor(top, 1));
            top = ptx_maximum(top, ptx_shuffle_xor(top, 2));
            /* Nothing seen yet: -inf - -inf would be no number. */
            float base = top == -infinity ? 0.0F : Kind == SCORE_PLAIN ? top * scale : top;
            float fade = score_exponential<Kind>(scale, rows.highest[m][half], base);
            float sum = forward_sum<Width, Kind>(rows, m, half) * fade;
            rows.highest[m][half] = top;
#pragma unroll
            for (int d = 0; d < D; d++) {
                out[m][d][2 * half] *= fade;
                out[m][d][2 * half + 1] *= fade;
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = score_exponential<Kind>(scale, s[m][n][e], base);
                    sum += s[m][n][e];
                }
            }
            forward_sum<Width, Kind>(rows, m, half) = sum;
        }
    }
}

/* out += P V */
template <int Width, enum score_kind Kind, bool Bf16, int M, int N, int D>
PTX_FUNCTION void forward_gather(uint32_t values, const float (&p)[M][N][4], float (&out)[M][D][4])
{
    typedef struct forward_shape<Width, Kind> shape;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        struct ptx_words4 a[M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m].word[0] = forward_pack<Bf16>(p[m][n][0], p[m][n][1]);
            a[m].word[1] = forward_pack<Bf16>(p[m][n][2], p[m][n][3]);
            a[m].word[2] = forward_pack<Bf16>(p[m][n + 1][0], p[m][n + 1][1]);
            a[m].word[3] = forward_pack<Bf16>(p[m][n + 1][2], p[m][n + 1][3]);
        }
#pragma unroll
        for (int d = 0; d < D; d += 2) {
            struct ptx_words4 b = tile_b_transposed<shape::keys, Width>(values, 8 * d, 8 * n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                forward_multiply<Bf16>(out[m][d], a[m], b.word[0], b.word[1]);
                forward_multiply<Bf16>(out[m][d + 1], a[m], b.word[2], b.word[3]);
            }
        }
    }
}

/* Products into scores that forward_soften() takes. */
template <int Width, enum score_kind Kind, bool Bf16, int M, int N>
PTX_FUNCTION void forward_score(
    const struct forward_block &block, int32_t warp_row, int32_t column, float (&s)[M][N][4])
{
    typedef struct forward_shape<Width, Kind> shape;
    const struct score_head &score = block.score;
    bool all = score_sees_all(score, block.row, shape::rows, column, shape::keys);
    int32_t row = block.row + warp_row;
    if constexpr (Kind == SCORE_PLAIN) {
        if (!all) {
            score_mask(score, row, column, s);
        }
    } else {
        if (score_capped<Kind>(score)) {
            score_cap(score, s);
        }
        if (block.bias != NULL) {
            forward_bias_add<shape::rows, shape::keys, Bf16>(
                ptx_shared_address(ptx_shared_memory() + shape::bias), score,
                score_factor<Kind>(score), warp_row, s);
        } else {
            score_add_bias<Kind, Bf16>(score, !all, row, column, s);
        }
        score_finish(score, !all, row, column, s);
    }
}

/* The keys' steps, from the last to the first; none leaves all at 0 and -inf. */
template <int Width, enum score_kind Kind, bool Bf16, int M, int D>
PTX_FUNCTION void forward_steps(
    const struct forward_block &block, float (&out)[M][D][4], struct forward_rows<M> &rows)
{
    typedef struct forward_shape<Width, Kind> shape;
    char *queries = ptx_shared_memory();
    char *keys = queries + shape::queries::bytes;
    char *values = keys + shape::places::bytes;
    int32_t step = block.last_step;
    if (step < block.first_step) {
        return;
    }
    tile_load<shape::rows, Width, shape::threads>(queries, block.q);
    tile_load<shape::keys, Width, shape::threads>(
        keys, tile_rows_from(block.k, step * shape::keys));
    ptx_copy_commit();
#pragma unroll 1
    for (; step >= block.first_step; step--) {
        float s[M][shape::n][4];
        int32_t column = step * shape::keys;
        struct tile_cursor next =
            tile_cursor_of<shape::keys, Width, shape::threads>(tile_rows_from(block.v, column));
        ptx_copy_wait<0>();
        ptx_barrier(); /* K is there, and nobody reads the last V any more */
        tile_load<shape::keys, Width, shape::threads>(values, next, block.v, column);
        if constexpr (Kind != SCORE_PLAIN) {
            if (block.bias != NULL) {
                forward_bias_load<shape::rows, shape::keys, shape::threads>(
                    queries + shape::bias, block.score, block.bias, block.row, column);
            }
        }
        ptx_copy_commit();
        /* Anew in each step: it would take the register that products of 128 columns lack. */
        int32_t warp_row = (int32_t)(ptx_opaque(ptx_thread()) / 32) * 16 * M;
        forward_products<Width, Kind, Bf16>(
            ptx_shared_address(queries) + (uint32_t)(warp_row * shape::queries::row_bytes),
            ptx_shared_address(keys), s);
        next = tile_cursor_of<shape::keys, Width, shape::threads>(
            tile_rows_from(block.k, column - shape::keys));
        ptx_copy_wait<0>();
        ptx_barrier(); /* V is there, and nobody reads K any more */
        if (step > block.first_step) {
            tile_load<shape::keys, Width, shape::threads>(
                keys, next, block.k, column - shape::keys);
            ptx_copy_commit();
        }
        forward_score<Width, Kind, Bf16>(block, warp_row, column, s);
        forward_soften<Width, Kind>(block.score.scale, s, out, rows);
        if (Kind == SCORE_GENERAL && block.score.threshold > 0) {
            score_drop<false>(block.score, block.row + warp_row, column, s);
        }
        forward_gather<Width, Kind, Bf16>(ptx_shared_address(values), s, out);
    }
}

/* Rows' sums over the lanes that share them; outputs divided by them, sinks counted, lse written. */
template <int Width, enum score_kind Kind, int M, int D>
PTX_FUNCTION void forward_divide(const struct forward_block &block, int32_t warp_row,
    float (&out)[M][D][4], struct forward_rows<M> &rows)
{
    const float unit = Kind == SCORE_PLAIN ? SCORE_LOG2E : 1.0F; /* of scores */
    float scale = Kind == SCORE_PLAIN ? block.score.scale : 1.0F;
    float kept_scale = Kind == SCORE_GENERAL ? block.score.kept_scale : 1.0F;
    const float infinity = ptx_float_of_bits(0x7f800000U);
    const struct attn_problem &problem = *block.problem;
    float sink = -infinity;
    if (problem.sinks.data != NULL) {
        sink = unit * ((const float *)problem.sinks.data)[problem.sinks.head_stride * block.head];
    }
    const struct attn_view &lse = problem.lse;
    float *lse_row = (float *)lse.data;
    if (lse_row != NULL) {
        lse_row += lse.batch_stride * block.queries.batch + lse.head_stride * block.head +
                   lse.row_stride * (block.queries.first + block.row);
    }
    int lane = (int)ptx_thread() & 31;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = forward_sum<Width, Kind>(rows, m, half);
            sum += ptx_shuffle_xor(sum, 1);
            sum += ptx_shuffle_xor(sum, 2);
            float top = rows.highest[m][half] * scale;
            float most = ptx_maximum(top, sink);
            float base = most == -infinity ? 0.0F : most;
            float fade = score_exponential<Kind>(1.0F, top, base);
            sum = sum * fade + score_exponential<Kind>(1.0F, sink, base);
            /* Not `sum > 0`: where the sum is NaN, so are the results. */
            float share = sum == 0 ? 0.0F : fade * kept_scale / sum;
#pragma unroll
            for (int d = 0; d < D; d++) {
                out[m][d][2 * half] *= share;
                out[m][d][2 * half + 1] *= share;
            }
            int32_t row = warp_row + 16 * m + lane / 4 + 8 * half;
            if (lse_row != NULL && lane % 4 == 0 && block.row + row < block.queries.length) {
                float all = Kind == SCORE_PLAIN ? (base + ptx_log2(sum)) * SCORE_LN2
                                                : base + ptx_log2(sum) * SCORE_LN2;
                lse_row[lse.row_stride * row] = sum == 0 ? -infinity : all;
            }
        }
    }
}

/* Through shared memory, where Q was, for whole rows in global memory. */
template <int Width, enum score_kind Kind, bool Bf16, int M, int D>
PTX_FUNCTION void forward_store(
    const struct forward_block &block, int32_t warp_row, const float (&out)[M][D][4])
{
    typedef struct forward_shape<Width, Kind> shape;
    const struct attn_problem &problem = *block.problem;
    char *shared = ptx_shared_memory();
    int lane = (int)ptx_thread() & 31;
    ptx_barrier(); /* nobody reads Q any more */
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int d = 0; d < D; d++) {
            int row = warp_row + 16 * m + lane / 4;
            int column = 8 * d + lane % 4 * 2;
            tile_put(shared + shape::queries::offset(row, column),
                forward_pack<Bf16>(out[m][d][0], out[m][d][1]));
            tile_put(shared + shape::queries::offset(row + 8, column),
                forward_pack<Bf16>(out[m][d][2], out[m][d][3]));
        }
    }
    ptx_barrier(); /* all rows are there */
    tile_store<shape::rows, Width, shape::threads>(
        shared, tile_rows_of(problem.out, block.queries.batch, block.queries.first + block.row,
                    block.head, block.queries.length - block.row, problem.head_dim_v));
}

template <int Width, enum score_kind Kind, bool Bf16>
static __global__ void __launch_bounds__(
    forward_shape<Width, Kind>::threads, forward_shape<Width, Kind>::blocks)
    forward_run(const __grid_constant__ struct device_group group)
{
    typedef struct forward_shape<Width, Kind> shape;
    static_assert(
        shape::blocks * (shape::shared_bytes + 1024) <= 164 << 10, "an A100 has that much");
    struct forward_block &block =
        *(struct forward_block *)(void *)(ptx_shared_memory() + shape::block);
    if (ptx_thread() == 0) {
        forward_block_init(block, device_place_of(group, ptx_block()), shape::rows, shape::keys);
    }
    ptx_barrier(); /* the block's part is there */
    if (block.row < 0) {
        return;
    }
    struct forward_rows<shape::m> rows;
    float out[shape::m][shape::d][4];
#pragma unroll
    for (int m = 0; m < shape::m; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.highest[m][half] = ptx_float_of_bits(0xff800000U);
            forward_sum<Width, Kind>(rows, m, half) = 0.0F;
        }
#pragma unroll
        for (int d = 0; d < shape::d; d++) {
            out[m][d][0] = out[m][d][1] = out[m][d][2] = out[m][d][3] = 0.0F;
        }
    }
    forward_steps<Width, Kind, Bf16>(block, out, rows);
    int32_t warp_row = (int32_t)(ptx_thread() / 32) * 16 * shape::m;
    forward_divide<Width, Kind>(block, warp_row, out, rows);
    forward_store<Width, Kind, Bf16>(block, warp_row, out);
}

#define FORWARD_KERNEL(width, kind, bf16)                                                  \
    {                                                                                      \
        (const void *)forward_run<width, kind, bf16>, forward_shape<width, kind>::threads, \
            forward_shape<width, kind>::shared_bytes, forward_shape<width, kind>::rows,    \
            forward_shape<width, kind>::keys                                               \
    }

#define FORWARD_KERNELS(width)                                                                     \
    {                                                                                              \
        {                                                                                          \
            {FORWARD_KERNEL(width, SCORE_PLAIN, false), FORWARD_KERNEL(width, SCORE_BIAS, false),  \
                FORWARD_KERNEL(width, SCORE_GENERAL, false)},                                      \
            {                                                                                      \
                FORWARD_KERNEL(width, SCORE_PLAIN, true), FORWARD_KERNEL(width, SCORE_BIAS, true), \
                    FORWARD_KERNEL(width, SCORE_GENERAL, true)                                     \
            }                                                                                      \
        }                                                                                          \
    }

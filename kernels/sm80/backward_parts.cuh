/*
 * What several stages of the backward pass do: find rows, multiply tiles, and make probabilities and
 * ds of products, on accumulators as score.cuh has them.
 */
#pragma once

#include <ptx/sm80.cuh>

#include "device/group.cuh"
#include "device/score.cuh"
#include "device/tile.cuh"

#include "backward_layout.h"

/* -- places --------------------------------------------------------------------------------------- */

/* Rows of a tensor from one of a sequence's on, as many as are before `end`. */
PTX_FUNCTION struct tile_rows backward_rows(const struct attn_view &view,
    const struct lengths_sequence &sequence, int32_t head, int32_t row, int32_t end, int columns)
{
    return tile_rows_of(view, sequence.batch, sequence.first + row, head, end - row, columns);
}

/* What a stage that owns queries has of them, and where in the workspace their numbers are. */
struct backward_place {
    int32_t batch; /* -1: none */
    int32_t head;
    int32_t row;
    struct lengths_sequence queries;
    int64_t at; /* of the first row, in parts that have a number for each query */
};

PTX_FUNCTION struct backward_place backward_place_of(const struct device_item &item, uint64_t tile)
{
    const struct attn_problem *problem = &item.problem;
    int64_t blocks = lengths_blocks(problem, LENGTHS_QUERIES, BACKWARD_ROWS);
    struct lengths_place found = lengths_place_of(
        problem, item.workspace, LENGTHS_QUERIES, BACKWARD_ROWS, (int64_t)tile % blocks);
    struct backward_place place;
    place.batch = found.batch;
    place.row = found.row;
    place.head = (int32_t)((int64_t)tile / blocks);
    if (found.batch >= 0) {
        place.queries = lengths_sequence_of(problem, item.workspace, LENGTHS_QUERIES, found.batch);
        place.at = backward_all_rows(problem, LENGTHS_QUERIES) * place.head +
                   backward_first_row(problem, LENGTHS_QUERIES, &place.queries) + found.row;
    }
    return place;
}

/* The sums of dq that belong to a head and a sequence, from its first query on. */
PTX_FUNCTION float *backward_dq_sums(const struct device_item &item,
    const struct lengths_sequence &queries, int32_t batch, int32_t head)
{
    const struct attn_problem *problem = &item.problem;
    int64_t group =
        backward_groups(problem) * head + backward_first_group(problem, &queries, batch);
    return (float *)(item.workspace + backward_layout_of(problem).dq) +
           group * BACKWARD_GROUP * backward_width(problem);
}

/* lse and delta of the rows that a thread has elements of. */
template <int M>
struct backward_stats {
    float lse[M][2];
    float delta[M][2];
};

/* row: the warp's first; of queries that do not exist it is `missing`. */
template <int M>
PTX_FUNCTION void backward_load_stat(
    float (&stat)[M][2], const float *from, int32_t row, int32_t queries, float missing)
{
    int lane = (int)ptx_thread() & 31;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int32_t i = row + 16 * m + lane / 4 + 8 * half;
            stat[m][half] = i < queries ? from[i] : missing;
        }
    }
}

/* Queries that do not exist have probability 0, as those that see nothing. */
template <int M>
PTX_FUNCTION void backward_load_lse(
    struct backward_stats<M> &stats, const float *lse, int32_t row, int32_t queries)
{
    backward_load_stat(stats.lse, lse, row, queries, ptx_float_of_bits(0x7f800000U));
}

template <int M>
PTX_FUNCTION void backward_load_delta(
    struct backward_stats<M> &stats, const float *delta, int32_t row, int32_t queries)
{
    backward_load_stat(stats.delta, delta, row, queries, 0.0F);
}

/* -- products ------------------------------------------------------------------------------------- */

/*
 * Operands in tiles of Rows x Width, as they lie there or transposed: tile.cuh's, but lane() has all
 * that is not the same for all threads, once for a product, and load() goes on from there.
 */
template <int Rows, int Width>
struct backward_a {
    typedef struct tile<Rows, Width> place;

    PTX_FUNCTION uint32_t lane(uint32_t shared, int lane, int m)
    {
        return place::from_lane(place::lane(shared, lane & 15, lane >> 4), m, 0);
    }

    PTX_FUNCTION struct ptx_words4 load(uint32_t lane, int m, int k)
    {
        return ptx_load_matrices(place::from_lane(lane, m, k));
    }
};

/* m and how much is loaded from there on are such that no sum carries into a page's number. */
template <int Rows, int Width>
struct backward_a_transposed {
    typedef struct tile<Rows, Width> place;

    PTX_FUNCTION uint32_t lane(uint32_t shared, int lane, int m)
    {
        return place::from_lane(
            place::lane(shared, (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1), 0, m);
    }

    PTX_FUNCTION struct ptx_words4 load(uint32_t lane, int m, int k)
    {
        return ptx_load_matrices_transposed(place::from_lane(lane, k, m));
    }
};

template <int Rows, int Width>
struct backward_b {
    typedef struct tile<Rows, Width> place;

    PTX_FUNCTION uint32_t lane(uint32_t shared, int lane, int n)
    {
        return place::from_lane(
            place::lane(shared, (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1), n, 0);
    }

    PTX_FUNCTION struct ptx_words4 load(uint32_t lane, int, int n, int k)
    {
        return ptx_load_matrices(place::from_lane(lane, n, k));
    }
};

/* Columns: what is loaded of them. */
template <int Rows, int Width, int Columns>
struct backward_b_transposed {
    typedef struct tile<Rows, Width> place;
    static const bool simple = place::page_columns % Columns == 0; /* as of a_transposed */

    PTX_FUNCTION uint32_t lane(uint32_t shared, int lane, int n)
    {
        return place::from_lane(place::lane(shared, lane & 15, lane >> 4), 0, simple ? n : 0);
    }

    PTX_FUNCTION struct ptx_words4 load(uint32_t lane, int first, int n, int k)
    {
        return ptx_load_matrices_transposed(place::from_lane(lane, k, simple ? n : first + n));
    }
};

template <bool Bf16>
PTX_FUNCTION void backward_multiply_step(
    float (&sum)[4], struct ptx_words4 a, uint32_t b0, uint32_t b1)
{
    if constexpr (Bf16) {
        ptx_multiply_bf16(sum, a, b0, b1);
    } else {
        ptx_multiply_fp16(sum, a, b0, b1);
    }
}

template <bool Bf16>
PTX_FUNCTION uint32_t backward_pack(float low, float high)
{
    return Bf16 ? ptx_pack_bf16(low, high) : ptx_pack_fp16(low, high);
}

template <int M, int N>
PTX_FUNCTION void backward_clear(float (&sum)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sum[m][n][e] = 0.0F;
            }
        }
    }
}

/* sum += A B over Depth, from row m of A and column n of B on. */
template <bool Bf16, class A, class B, int Depth, int M, int N>
PTX_FUNCTION void backward_multiply(
    float (&sum)[M][N][4], uint32_t a_shared, int row, uint32_t b_shared, int column)
{
    static_assert(N % 2 == 0, "one load of B is for two fragments");
    /* Opaque: else addresses of all products would outlive the loop that they are in. */
    int thread = (int)(ptx_opaque(ptx_thread()) & 31);
    uint32_t a_lane = A::lane(a_shared, thread, row);
    uint32_t b_lane = B::lane(b_shared, thread, column);
#pragma unroll
    for (int k = 0; k < Depth; k += 16) {
        struct ptx_words4 a[M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m] = A::load(a_lane, 16 * m, k);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            struct ptx_words4 b = B::load(b_lane, column, 8 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                backward_multiply_step<Bf16>(sum[m][n], a[m], b.word[0], b.word[1]);
                backward_multiply_step<Bf16>(sum[m][n + 1], a[m], b.word[2], b.word[3]);
            }
        }
    }
}

/* Rounds accumulators, times a factor, into a tile of Rows x Width, from (row, column) on; column is a
 * multiple of 8 N. */
template <bool Bf16, int Rows, int Width, int M, int N>
PTX_FUNCTION void backward_put(
    char *shared, int row, int column, const float (&sum)[M][N][4], float factor)
{
    typedef struct tile<Rows, Width> place;
    /* Then fragments are in one page, and only bits of their number tell them apart. */
    static const bool simple = (N & (N - 1)) == 0 && 8 * N <= place::page_columns;
    int lane = (int)ptx_thread() & 31;
    uint32_t first = ptx_opaque(place::offset(row + lane / 4, column + lane % 4 * 2));
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                int below = 16 * m + 8 * half;
                uint32_t at =
                    simple ? place::from_lane(first, below, 8 * n)
                           : place::offset(row + lane / 4 + below, column + 8 * n + lane % 4 * 2);
                tile_put(shared + at, backward_pack<Bf16>(sum[m][n][2 * half] * factor,
                                          sum[m][n][2 * half + 1] * factor));
            }
        }
    }
}

/* -- probabilities and ds ------------------------------------------------------------------------- */

/*
 * With dropout all of ds is divided by kept_scale, and what becomes of ds is multiplied by it: the
 * factor may be more than 16-bit elements have room for.
 */

/* Products into probabilities, negative where dropout drops; cap[] as score_make()'s slope[]. */
template <enum score_kind Kind, bool Bf16, bool Capped, int M, int N>
PTX_FUNCTION void backward_probabilities(const struct score_head &score, int32_t row,
    int32_t column, const struct backward_stats<M> &stats, float (&s)[M][N][4],
    float (&cap)[Capped ? M : 1][Capped ? N : 1][4])
{
    bool sees_all = score_sees_all(score, row, 16 * M, column, 8 * N);
    float scale = score.scale;
    if constexpr (Kind == SCORE_PLAIN) {
        if (!sees_all) {
            score_mask(score, row, column, s);
        }
    } else if (sees_all) {
        score_make<Kind, Bf16, false, Capped>(score, row, column, s, cap);
    } else {
        score_make<Kind, Bf16, true, Capped>(score, row, column, s, cap);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[m][n][e] = score_exponential<Kind>(scale, s[m][n][e], stats.lse[m][e / 2]);
            }
        }
    }
    if (Kind == SCORE_GENERAL && score.threshold != 0) {
        score_drop<true>(score, row, column, s);
    }
}

/* dp, the products of dout and v, into ds = p * (drop(dp) - delta) / kept_scale. */
template <enum score_kind Kind, int M, int N>
PTX_FUNCTION void backward_ds(const struct score_head &score, const struct backward_stats<M> &stats,
    const float (&p)[M][N][4], float (&dp)[M][N][4])
{
    bool drops = Kind == SCORE_GENERAL && score.threshold != 0;
    float unscale = drops ? 1.0F / score.kept_scale : 1.0F;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float x = dp[m][n][e];
                float probability = p[m][n][e];
                if (drops) {
                    x = score_marked(probability) ? 0.0F : x;
                    probability = score_unmarked(probability);
                }
                dp[m][n][e] = probability * (x - stats.delta[m][e / 2] * unscale);
            }
        }
    }
}

/* Where nothing is seen ds is 0 and not 0 times something. p is used up. */
template <int M, int N>
PTX_FUNCTION void backward_hide(const struct score_head &score, int32_t row, int32_t column,
    float (&p)[M][N][4], float (&ds)[M][N][4])
{
    if (score_sees_all(score, row, 16 * M, column, 8 * N)) {
        return;
    }
    backward_clear(p);
    score_mask(score, row, column, p);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                ds[m][n][e] = p[m][n][e] == 0 ? ds[m][n][e] : 0.0F;
            }
        }
    }
}

/* What dropout drops is 0 from here on. */
template <enum score_kind Kind, int M, int N>
PTX_FUNCTION void backward_drop(const struct score_head &score, float (&p)[M][N][4])
{
    if (Kind != SCORE_GENERAL || score.threshold == 0) {
        return;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                p[m][n][e] = score_marked(p[m][n][e]) ? 0.0F : p[m][n][e];
            }
        }
    }
}

/* The softcap's derivative. */
template <int M, int N>
PTX_FUNCTION void backward_uncap(
    const struct score_head &score, const float (&cap)[M][N][4], float (&ds)[M][N][4])
{
    if (!(score.softcap > 0)) {
        return;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                ds[m][n][e] *= cap[m][n][e];
            }
        }
    }
}

/* What results are multiplied by that dropout has an effect on. */
PTX_FUNCTION float backward_kept_scale(const struct attn_problem &problem)
{
    return 65536.0F / (65536.0F - (float)problem.dropout_threshold);
}

/* -- elements ------------------------------------------------------------------------------------- */

/* Element `at` of a tensor of fp32, or of bf16 or fp16 as Bf16 says. */
template <bool Bf16>
PTX_FUNCTION void backward_store(
    const struct attn_view &view, enum attn_dtype dtype, int64_t at, float value)
{
    if (dtype == ATTN_FP32) {
        ((float *)view.data)[at] = value;
    } else {
        ((uint16_t *)view.data)[at] = (uint16_t)backward_pack<Bf16>(value, 0.0F);
    }
}

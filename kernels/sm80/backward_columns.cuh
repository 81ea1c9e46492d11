/*
 * The stage of the backward pass that owns keys: a block has some keys of one kv head, walks over the
 * queries of all heads of its group, and keeps dk and dv in registers. dq goes to fp32 sums that other
 * blocks add to as well, unless a stage of its own makes it. Of a bias that is a vector of keys it leaves
 * each head's sums of ds, which backward_sums.cu adds.
 */
#pragma once

#include "backward_columns_dbias.cuh"
#include "backward_columns_walk.cuh"
#include "backward_parts.cuh"

template <int Width, class Shape>
PTX_FUNCTION void columns_load_keys(
    const struct attn_problem &problem, const struct columns_walk &walk, char *shared)
{
    tile_load<Shape::keys, Width, Shape::threads>(
        shared + Shape::k, backward_rows(problem.k, walk.keys, walk.kv_head, walk.key,
                               walk.keys.length, problem.head_dim_qk));
    tile_load<Shape::keys, Width, Shape::threads>(
        shared + Shape::v, backward_rows(problem.v, walk.keys, walk.kv_head, walk.key,
                               walk.keys.length, problem.head_dim_v));
}

/* q, and dout, of one step: a group of copies each. */
template <int Width, class Shape>
PTX_FUNCTION void columns_load_q(
    const struct columns_walk &walk, struct columns_step step, char *shared)
{
    struct tile_rows rows = tile_rows_from(walk.q, step.row);
    rows.first += walk.q_head * step.head * 2;
    tile_load<Shape::queries, Width, Shape::threads>(shared, rows, walk.seen.first - step.row);
    ptx_copy_commit();
}

template <int Width, class Shape>
PTX_FUNCTION void columns_load_dout(
    const struct columns_walk &walk, struct columns_step step, char *shared)
{
    struct tile_rows rows = tile_rows_from(walk.dout, step.row);
    rows.first += walk.dout_head * step.head * 2;
    tile_load<Shape::queries, Width, Shape::threads>(
        shared + Shape::query_bytes, rows, walk.seen.first - step.row);
    ptx_copy_commit();
}

/* Probabilities and ds of a step's queries, from `first` on, into their tiles, and ds to the sums. Uses
 * them up. */
template <enum score_kind Kind, bool Bf16, class Shape, int M, int N>
PTX_FUNCTION void columns_put_scores(const struct columns_walk &walk, int32_t first,
    float (&p)[Shape::score_m][Shape::score_n][4], float (&ds)[Shape::score_m][Shape::score_n][4],
    const float (&cap)[M][N][4], char *shared)
{
    int warp = columns_warp();
    int row = warp % Shape::score_warps * (16 * Shape::score_m);
    int column = warp / Shape::score_warps * (8 * Shape::score_n);

    if constexpr (Kind == SCORE_GENERAL) {
        backward_drop<Kind>(walk.score, p);
    }
    backward_put<Bf16, Shape::queries, Shape::keys>(shared + Shape::p, row, column, p, 1.0F);
    if constexpr (Shape::sums_keys) {
        backward_hide(walk.score, first + row, walk.key + column, p, ds);
        columns_add_sums<Shape>(ds, shared);
    }
    if constexpr (Kind == SCORE_GENERAL) {
        backward_uncap(walk.score, cap, ds);
    }
    backward_put<Bf16, Shape::queries, Shape::keys>(shared + Shape::ds, row, column, ds, 1.0F);
}

/* Probabilities and ds of the block's keys and one step's queries, into their tiles. */
template <int Width, enum score_kind Kind, bool Bf16, class Shape>
PTX_FUNCTION void columns_scores(
    const struct columns_walk &walk, struct columns_step step, char *shared, uint32_t q)
{
    static const bool capped = Kind == SCORE_GENERAL;
    typedef backward_a<Shape::queries, Width> of_queries;
    typedef backward_b<Shape::keys, Width> of_keys;
    int warp = columns_warp();
    int row = warp % Shape::score_warps * (16 * Shape::score_m);
    int column = warp / Shape::score_warps * (8 * Shape::score_n);
    uint32_t keys = ptx_shared_address(shared);
    int64_t head = walk.stats_head * step.head;
    struct backward_stats<Shape::score_m> stats;
    backward_load_lse(stats, walk.lse + head, step.row + row, walk.queries.length);
    backward_load_delta(stats, walk.delta + head, step.row + row, walk.queries.length);
    float p[Shape::score_m][Shape::score_n][4];
    float ds[Shape::score_m][Shape::score_n][4];
    float cap[capped ? Shape::score_m : 1][capped ? Shape::score_n : 1][4];

    backward_clear(p);
    backward_multiply<Bf16, of_queries, of_keys, Width>(p, q, row, keys + Shape::k, column);
    backward_probabilities<Kind, Bf16, capped>(
        walk.score, step.row + row, walk.key + column, stats, p, cap);
    if (Shape::stages == 1) {
        ptx_copy_wait<0>();
        ptx_barrier(); /* dout is there, too */
    }
    backward_clear(ds);
    backward_multiply<Bf16, of_queries, of_keys, Width>(
        ds, q + Shape::query_bytes, row, keys + Shape::v, column);
    backward_ds<Kind>(walk.score, stats, p, ds);
    columns_put_scores<Kind, Bf16, Shape>(walk, step.row, p, ds, cap, shared);
}

/* Adds the transpose of a tile of scores times a tile of the step's rows. */
template <int Width, bool Bf16, class Shape>
PTX_FUNCTION void columns_multiply(
    float (&sum)[Shape::key_m][Shape::key_n][4], uint32_t scores, uint32_t rows)
{
    int warp = columns_warp();
    backward_multiply<Bf16, backward_a_transposed<Shape::queries, Shape::keys>,
        backward_b_transposed<Shape::queries, Width, 8 * Shape::key_n>, Shape::queries>(sum, scores,
        warp % Shape::key_warps * (16 * Shape::key_m), rows,
        warp / Shape::key_warps * (8 * Shape::key_n));
}

/* Adds ds k to the sums of dq: element e of lane l of a fragment is number 32 e + l, so that a warp
 * adds to neighbours. */
template <int Width, bool Bf16, class Shape>
PTX_FUNCTION void columns_add_dq(
    const struct columns_walk &walk, struct columns_step step, uint32_t shared)
{
    int warp = columns_warp();
    int row = warp % Shape::query_warps * (16 * Shape::query_m);
    int column = warp / Shape::query_warps * (8 * Shape::query_n);
    float sum[Shape::query_m][Shape::query_n][4];

    backward_clear(sum);
    backward_multiply<Bf16, backward_a<Shape::queries, Shape::keys>,
        backward_b_transposed<Shape::keys, Width, 8 * Shape::query_n>, Shape::keys>(
        sum, shared + Shape::ds, row, shared + Shape::k, column);
#pragma unroll
    for (int m = 0; m < Shape::query_m; m++) {
        int32_t first = step.row + row + 16 * m;
        if (first >= walk.queries.length) {
            break;
        }
        float *to = walk.dq + walk.dq_head * step.head + (int64_t)first * Width + column * 16 +
                    (int)(ptx_opaque(ptx_thread()) & 31);
#pragma unroll
        for (int n = 0; n < Shape::query_n; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                ptx_add(to + n * 128 + e * 32, sum[m][n][e]);
            }
        }
    }
}

/* Rows of a gradient from `exist` on are 0 and not the sum of 0 times something. */
template <class Shape>
PTX_FUNCTION void columns_cut(float (&sum)[Shape::key_m][Shape::key_n][4], int exist)
{
    int row =
        columns_warp() % Shape::key_warps * (16 * Shape::key_m) + (int)(ptx_thread() & 31) / 4;
#pragma unroll
    for (int m = 0; m < Shape::key_m; m++) {
#pragma unroll
        for (int n = 0; n < Shape::key_n; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sum[m][n][e] = row + 16 * m + 8 * (e / 2) < exist ? sum[m][n][e] : 0.0F;
            }
        }
    }
}

/* The block's rows of a gradient, through a tile of shared memory. */
template <int Width, bool Bf16, class Shape>
PTX_FUNCTION void columns_store(const struct columns_walk &walk, const struct attn_view &view,
    int columns, float factor, float (&sum)[Shape::key_m][Shape::key_n][4], char *shared)
{
    int warp = columns_warp();

    columns_cut<Shape>(sum, walk.keys.length - walk.key);
    ptx_barrier(); /* before: others may still read what lies there */
    backward_put<Bf16, Shape::keys, Width>(shared, warp % Shape::key_warps * (16 * Shape::key_m),
        warp / Shape::key_warps * (8 * Shape::key_n), sum, factor);
    ptx_barrier();
    tile_store<Shape::keys, Width, Shape::threads>(
        shared, backward_rows(view, walk.keys, walk.kv_head, walk.key, walk.keys.extent, columns));
}

PTX_FUNCTION const struct attn_problem &columns_problem(const struct device_group &group)
{
    return device_place_of(group, ptx_block()).item->problem;
}

template <int Width, enum score_kind Kind, bool Bf16, bool Sums>
static __global__ void __launch_bounds__(BACKWARD_THREADS, columns_shape<Width, Kind, Sums>::blocks)
    backward_columns(const __grid_constant__ struct device_group group)
{
    typedef struct columns_shape<Width, Kind, Sums> shape;
    char *shared = ptx_shared_memory();
    struct columns_walk &walk = *(struct columns_walk *)(shared + shape::walk);
    if (ptx_thread() == 0) {
        columns_begin<shape>(walk, device_place_of(group, ptx_block()));
    }
    ptx_barrier(); /* the walk is there */
    if (walk.batch < 0) {
        return;
    }
    uint32_t address = ptx_shared_address(shared);
    float dk[shape::key_m][shape::key_n][4];
    float dv[shape::key_m][shape::key_n][4];
    backward_clear(dk);
    backward_clear(dv);

    if constexpr (Sums) {
        columns_begin_sums<shape>(walk, shared);
    }
    struct columns_step step = {0, walk.row};
    if (!columns_end(walk, step)) {
        columns_load_keys<Width, shape>(columns_problem(group), walk, shared);
        columns_load_q<Width, shape>(walk, step, shared + shape::q);
        columns_load_dout<Width, shape>(walk, step, shared + shape::q);
    }
    int place = shape::q; /* of the step's rows */
    while (!columns_end(walk, step)) {
        struct columns_step next = columns_next<shape>(walk, step);
        bool more = !columns_end(walk, next);
        uint32_t q = address + (uint32_t)place;
        ptx_copy_wait<shape::stages == 1 ? 1 : 0>();
        ptx_barrier(); /* q is there, and nobody reads the last step's rows, p and ds */
        if (shape::stages == 2 && more) {
            char *other = shared + (shape::q + shape::other_q - place);
            columns_load_q<Width, shape>(walk, next, other);
            columns_load_dout<Width, shape>(walk, next, other);
        }
        columns_scores<Width, Kind, Bf16, shape>(walk, step, shared, q);
        ptx_barrier(); /* p, ds and sums are there, and nobody reads this head's score */
        if (next.head != step.head && more && ptx_thread() == 0) {
            columns_next_score(walk, columns_problem(group), next.head);
        }
        columns_multiply<Width, Bf16, shape>(dk, address + shape::ds, q);
        if (shape::stages == 1 && more) {
            ptx_barrier(); /* nobody reads q */
            columns_load_q<Width, shape>(walk, next, shared + shape::q);
        }
        if (Kind != SCORE_PLAIN && !Sums && walk.dbias != NULL) {
            columns_store_dbias<shape>(walk, step, shared + shape::ds);
        }
        if (Sums && (!more || next.head != step.head)) {
            columns_store_sums<shape>(walk, step.head, shared);
        }
        columns_multiply<Width, Bf16, shape>(dv, address + shape::p, q + shape::query_bytes);
        if (shape::stages == 1 && more) {
            ptx_barrier(); /* nobody reads dout */
            columns_load_dout<Width, shape>(walk, next, shared + shape::q);
        }
        if (walk.dq != NULL) {
            columns_add_dq<Width, Bf16, shape>(walk, step, address);
        }
        place = shape::q + shape::other_q - place;
        step = next;
    }
    if (Kind != SCORE_PLAIN && !Sums && walk.dbias != NULL) {
        columns_clear_dbias<shape>(walk);
    }
    const struct attn_problem &problem = columns_problem(group);
    float kept = backward_kept_scale(problem);
    columns_store<Width, Bf16, shape>(
        walk, problem.dk, problem.head_dim_qk, problem.scale * kept, dk, shared + shape::k);
    columns_store<Width, Bf16, shape>(
        walk, problem.dv, problem.head_dim_v, kept, dv, shared + shape::v);
}

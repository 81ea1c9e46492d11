/*
 * The stage of the backward pass that owns keys: a block has some keys of one kv head, walks over the
 * queries of all heads of its group, and keeps dk and dv in registers. dq goes to fp32 sums that other
 * blocks add to as well, unless a stage of its own makes it.
 */
#pragma once

#include "backward_parts.cuh"
#include "backward_seen.cuh"

/* What a block owns and walks over: in shared memory, because registers are short. Thread 0 writes. */
struct columns_walk {
    int32_t batch; /* -1: there is nothing to do */
    int32_t kv_head;
    int32_t key;   /* the first */
    int32_t heads; /* of the group */
    int32_t row;   /* the first query of each head that sees any of the keys */
    int32_t end;   /* behind the last one */
    struct backward_seen seen;
    struct lengths_sequence queries;
    struct lengths_sequence keys;
    struct tile_rows q; /* of the group's first head, from the sequence's first query to seen.end */
    struct tile_rows dout;
    int64_t q_head; /* from one head's to the next one's, in elements */
    int64_t dout_head;
    const float *lse;
    const float *delta;
    int64_t stats_head;
    float *dq; /* NULL: others make dq */
    int64_t dq_head;
    char *dbias; /* of the group's first head, from the sequence's first query on; NULL: others' */
    int64_t dbias_head;
    int64_t dbias_row;
    struct score_head score; /* of the step's head */
};

/* Eight warps: how they share out each of the products. */
template <int Width, enum score_kind Kind>
struct columns_shape {
    static const int threads = BACKWARD_THREADS;
    static const int queries = backward_column_queries(Width, Kind);
    static const int keys = backward_column_keys(Width, Kind);
    static const int stages = Width > 192 ? 1 : 2; /* what 163 KiB have room for */
    static const int blocks =
        Kind == SCORE_GENERAL && Width <= 64 ? 2 : 1; /* on a multiprocessor */

    static const int score_warps = keys == 64       ? 4
                                   : queries == 128 ? 4
                                                    : 2; /* along the queries */
    static const int score_m = queries / 16 / score_warps;
    static const int score_n = keys / 8 / (8 / score_warps);
    static const int key_warps = Width > 128 ? 2 : 4; /* along the keys */
    static const int key_m = keys / 16 / key_warps;
    static const int key_n = Width / 8 / (8 / key_warps);
    static const int query_warps = Width > 128 || (Width == 128 && keys == 128) ? 2 : 4;
    static const int query_m = queries / 16 / query_warps;
    static const int query_n = Width / 8 / (8 / query_warps);

    static const int query_bytes = queries * Width * 2;
    static const int key_bytes = keys * Width * 2;
    static const int score_bytes = queries * keys * 2;

    /* Where things are in shared memory. */
    static const int k = 0;
    static const int v = k + key_bytes;
    static const int p = v + key_bytes;
    static const int ds = p + score_bytes;
    static const int q = ds + score_bytes; /* then dout, then the next stage's */
    static const int other_q = q + (stages - 1) * 2 * query_bytes;
    static const int walk = other_q + 2 * query_bytes;
    static const int bytes = walk + (int)sizeof(struct columns_walk);
};

/* Opaque: else what each product makes of it would be kept in registers meanwhile. */
PTX_FUNCTION int columns_warp(void)
{
    return (int)(ptx_opaque(ptx_thread()) / 32);
}

/* Where in its walk a block is. */
struct columns_step {
    int32_t head; /* of the group */
    int32_t row;
};

PTX_FUNCTION bool columns_end(const struct columns_walk &walk, struct columns_step step)
{
    return step.head >= walk.heads || walk.row >= walk.end;
}

template <class Shape>
PTX_FUNCTION struct columns_step columns_next(
    const struct columns_walk &walk, struct columns_step step)
{
    step.row += Shape::queries;
    if (step.row >= walk.end) {
        step.row = walk.row;
        step.head++;
    }
    return step;
}

PTX_FUNCTION struct score_head columns_score_of(
    const struct columns_walk &walk, const struct attn_problem &problem, int32_t head)
{
    return score_head_of(problem, walk.batch, walk.kv_head * walk.heads + head, walk.queries.length,
        walk.keys.length);
}

/* Of another head of the group: what it does not share with the others, since there are no registers
 * for more. */
PTX_FUNCTION void columns_next_score(
    struct columns_walk &walk, const struct attn_problem &problem, int32_t head)
{
    struct score_head score = columns_score_of(walk, problem, head);
    walk.score.slope = score.slope;
    walk.score.bias = score.bias;
    walk.score.bias_pairs = score.bias_pairs;
    walk.score.dropout.head = score.dropout.head;
}

/* All of the group's heads: they are aligned alike, or not treated as such. */
PTX_FUNCTION struct tile_rows columns_rows(
    const struct attn_view &view, const struct columns_walk &walk, int columns)
{
    struct tile_rows rows =
        backward_rows(view, walk.queries, walk.kv_head * walk.heads, 0, walk.seen.end, columns);
    rows.aligned = rows.aligned && (walk.heads == 1 || view.head_stride % 8 == 0);
    return rows;
}

/* Where the numbers of the group's first head are, and how far the next one's. */
PTX_FUNCTION void columns_find(struct columns_walk &walk, const struct device_item &item)
{
    const struct attn_problem *problem = &item.problem;
    struct backward_layout layout = backward_layout_of(problem);
    int64_t head = walk.kv_head * walk.heads;
    walk.q = columns_rows(problem->q, walk, problem->head_dim_qk);
    walk.dout = columns_rows(problem->dout, walk, problem->head_dim_v);
    walk.q_head = problem->q.head_stride;
    walk.dout_head = problem->dout.head_stride;
    walk.stats_head = backward_all_rows(problem, LENGTHS_QUERIES);
    int64_t first =
        walk.stats_head * head + backward_first_row(problem, LENGTHS_QUERIES, &walk.queries);
    walk.lse = (const float *)(item.workspace + layout.lse) + first;
    walk.delta = (const float *)(item.workspace + layout.delta) + first;
    walk.dq_head = backward_groups(problem) * BACKWARD_GROUP * backward_width(problem);
    walk.dq = backward_owns_queries(problem)
                  ? NULL
                  : backward_dq_sums(item, walk.queries, walk.batch, (int32_t)head);
}

PTX_FUNCTION void columns_find_dbias(struct columns_walk &walk, const struct attn_problem &problem)
{
    const struct attn_view &view = problem.dbias;
    int64_t head = walk.kv_head * walk.heads;
    walk.dbias = NULL;
    walk.dbias_head = view.head_stride;
    walk.dbias_row = view.row_stride;
    if (backward_dbias_direct(&problem)) {
        walk.dbias = (char *)view.data +
                     (view.batch_stride * walk.batch + view.head_stride * head + walk.key) * 2;
    }
}

template <class Shape>
PTX_FUNCTION void columns_begin(struct columns_walk &walk, const struct device_place &place)
{
    const struct device_item &item = *place.item;
    const struct attn_problem *problem = &item.problem;
    int64_t blocks = lengths_blocks(problem, LENGTHS_KEYS, Shape::keys);
    struct lengths_place found = lengths_place_of(
        problem, item.workspace, LENGTHS_KEYS, Shape::keys, (int64_t)place.tile % blocks);
    walk.batch = found.batch;
    if (found.batch < 0) {
        return;
    }
    walk.key = found.row;
    walk.heads = problem->heads_q / problem->heads_kv;
    walk.kv_head = (int32_t)((int64_t)place.tile / blocks);
    walk.queries = lengths_sequence_of(problem, item.workspace, LENGTHS_QUERIES, found.batch);
    walk.keys = lengths_sequence_of(problem, item.workspace, LENGTHS_KEYS, found.batch);
    walk.row = 0;
    walk.end = 0;
    if (walk.heads == 0) { /* and slopes without an element to read */
        walk.dbias = NULL;
        return;
    }

    walk.score = columns_score_of(walk, *problem, 0);
    walk.seen = backward_seen_of(walk.score);
    columns_find(walk, item);
    columns_find_dbias(walk, *problem);
    int32_t last =
        walk.key + Shape::keys < walk.keys.length ? walk.key + Shape::keys : walk.keys.length;
    walk.row = score_first_query(walk.score, walk.key) / Shape::queries * Shape::queries;
    walk.end = walk.key < walk.keys.length ? score_end_query(walk.score, (int64_t)last - 1) : 0;
}

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
    if constexpr (capped) {
        backward_uncap(walk.score, cap, ds);
        backward_drop<Kind>(walk.score, p);
    }
    backward_put<Bf16, Shape::queries, Shape::keys>(shared + Shape::p, row, column, p, 1.0F);
    backward_put<Bf16, Shape::queries, Shape::keys>(shared + Shape::ds, row, column, ds, 1.0F);
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
                    ((int)ptx_thread() & 31);
#pragma unroll
        for (int n = 0; n < Shape::query_n; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                ptx_add(to + n * 128 + e * 32, sum[m][n][e]);
            }
        }
    }
}

/* The block's columns of a head's dbias, from a query on; as many as there are keys. */
PTX_FUNCTION struct tile_rows columns_dbias_rows(
    const struct columns_walk &walk, int32_t head, int32_t row)
{
    struct tile_rows rows;
    rows.first = walk.dbias + (walk.dbias_head * head + walk.dbias_row * row) * 2;
    rows.stride = walk.dbias_row;
    rows.rows = walk.queries.extent - row;
    rows.columns = walk.keys.length - walk.key;
    rows.aligned = (uintptr_t)rows.first % 16 == 0 && walk.dbias_row % 8 == 0;
    return rows;
}

/* A step's ds, without many registers: they are all taken. */
template <class Shape>
PTX_FUNCTION void columns_store_dbias(
    const struct columns_walk &walk, struct columns_step step, const char *shared)
{
    typedef struct tile<Shape::queries, Shape::keys> place;
    struct tile_rows to = columns_dbias_rows(walk, step.head, step.row);
#pragma unroll 1
    for (int i = (int)ptx_thread(); i < Shape::queries * Shape::keys / 8; i += Shape::threads) {
        int row = i / (Shape::keys / 8);
        int column = i % (Shape::keys / 8) * 8;
        const char *from = shared + place::offset(row, column);
        char *target = to.first + (row * to.stride + column) * 2;
        if (row < to.rows && to.aligned && column + 8 <= to.columns) {
            ptx_store_16(target, ptx_load_16(from));
            continue;
        }
#pragma unroll 1
        for (int c = 0; c < 8 && row < to.rows && column + c < to.columns; c++) {
            ((uint16_t *)target)[c] = ((const uint16_t *)from)[c];
        }
    }
}

/* Sets what no step writes to 0: rows before and behind the walk, and columns beyond the length. */
template <class Shape>
PTX_FUNCTION void columns_clear_dbias(const struct columns_walk &walk)
{
    int column = (int)ptx_thread() % Shape::keys;
    bool walked = walk.row < walk.end && column < walk.keys.length - walk.key;
    int32_t first = walked ? walk.row : 0;
    int32_t end =
        walked ? first + (walk.end - first + Shape::queries - 1) / Shape::queries * Shape::queries
               : 0;
    for (int32_t head = 0; head < walk.heads; head++) {
        struct tile_rows rows = columns_dbias_rows(walk, head, 0);
        int32_t columns = walk.keys.extent - walk.key;
        int32_t row = (int)ptx_thread() / Shape::keys;
        for (; row < rows.rows && column < columns; row += Shape::threads / Shape::keys) {
            row = row >= first && row < end ? end + (row - first) % (Shape::threads / Shape::keys)
                                            : row;
            if (row < rows.rows) {
                ((uint16_t *)rows.first)[row * rows.stride + column] = 0;
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

template <int Width, enum score_kind Kind, bool Bf16>
static __global__ void __launch_bounds__(BACKWARD_THREADS, columns_shape<Width, Kind>::blocks)
    backward_columns(const __grid_constant__ struct device_group group)
{
    typedef struct columns_shape<Width, Kind> shape;
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
        ptx_barrier(); /* p and ds are there, and nobody reads this head's score */
        if (next.head != step.head && more && ptx_thread() == 0) {
            columns_next_score(walk, columns_problem(group), next.head);
        }
        columns_multiply<Width, Bf16, shape>(dk, address + shape::ds, q);
        if (shape::stages == 1 && more) {
            ptx_barrier(); /* nobody reads q */
            columns_load_q<Width, shape>(walk, next, shared + shape::q);
        }
        if (Kind != SCORE_PLAIN && walk.dbias != NULL) {
            columns_store_dbias<shape>(walk, step, shared + shape::ds);
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
    if (Kind != SCORE_PLAIN && walk.dbias != NULL) {
        columns_clear_dbias<shape>(walk);
    }
    const struct attn_problem &problem = columns_problem(group);
    float kept = backward_kept_scale(problem);
    columns_store<Width, Bf16, shape>(
        walk, problem.dk, problem.head_dim_qk, problem.scale * kept, dk, shared + shape::k);
    columns_store<Width, Bf16, shape>(
        walk, problem.dv, problem.head_dim_v, kept, dv, shared + shape::v);
}

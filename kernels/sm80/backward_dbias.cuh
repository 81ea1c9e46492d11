/*
 * The stage of the backward pass that owns tiles of a bias's gradient: a block walks in order over what
 * its elements are sums of, and computes ds once more. Each warp has 16 queries. Where the gradient is
 * a vector, this leaves a sum for every query or key of every head, and backward_sums.cu adds these.
 */
#pragma once

#include "backward_parts.cuh"

template <int Width>
struct dbias_shape {
    static const int threads = BACKWARD_ROW_THREADS;
    static const int queries = BACKWARD_ROWS;
    static const int keys = BACKWARD_ROWS;
    static const int score_n = keys / 8;

    /* Where things are in shared memory. */
    static const int tile_bytes = queries * Width * 2;
    static const int q = 0;
    static const int dout = q + tile_bytes;
    static const int k = dout + tile_bytes;
    static const int v = k + tile_bytes;
    static const int bytes = v + tile_bytes;
};

/* What a block owns: batches and heads that it walks over, and the first query and key; of a vector
 * the other one's is unused. */
struct dbias_part {
    enum backward_dbias kind;
    int32_t batch;
    int32_t end_batch;
    int32_t head;
    int32_t end_head;
    int32_t query;
    int32_t key;
};

PTX_FUNCTION struct dbias_part dbias_part_of(const struct attn_problem &problem, int64_t tile)
{
    struct dbias_part part;
    part.kind = backward_dbias_of(&problem);
    bool matrix = part.kind == BACKWARD_DBIAS_MATRIX;
    bool all_batches = matrix && problem.bias_broadcast[0];
    bool all_heads = matrix && problem.bias_broadcast[1];
    int64_t queries = backward_dbias_blocks(&problem, LENGTHS_QUERIES);
    int64_t keys = backward_dbias_blocks(&problem, LENGTHS_KEYS);
    int64_t rest = tile / keys / queries;
    int32_t heads = all_heads ? 1 : problem.heads_q;
    part.key = (int32_t)(tile % keys) * BACKWARD_ROWS;
    part.query = (int32_t)(tile / keys % queries) * BACKWARD_ROWS;
    part.head = (int32_t)(rest % heads);
    part.end_head = all_heads ? problem.heads_q : part.head + 1;
    part.batch = (int32_t)(rest / heads);
    part.end_batch = all_batches ? problem.batch : part.batch + 1;
    return part;
}

/* One head of one sequence, as a block walks over it. */
struct dbias_head {
    struct lengths_sequence queries;
    struct lengths_sequence keys;
    int32_t head;
    int32_t kv_head;
    const float *lse; /* of the sequence's first query */
    const float *delta;
    struct score_head score;
};

PTX_FUNCTION struct dbias_head dbias_head_of(
    const struct device_item &item, int32_t batch, int32_t head)
{
    const struct attn_problem &problem = item.problem;
    struct backward_layout layout = backward_layout_of(&problem);
    struct dbias_head found;
    found.queries = lengths_sequence_of(&problem, item.workspace, LENGTHS_QUERIES, batch);
    found.keys = lengths_sequence_of(&problem, item.workspace, LENGTHS_KEYS, batch);
    found.head = head;
    found.kv_head = head / (problem.heads_q / problem.heads_kv);
    int64_t at = backward_all_rows(&problem, LENGTHS_QUERIES) * head +
                 backward_first_row(&problem, LENGTHS_QUERIES, &found.queries);
    found.lse = (const float *)(item.workspace + layout.lse) + at;
    found.delta = (const float *)(item.workspace + layout.delta) + at;
    found.score = score_head_of(problem, batch, head, found.queries.length, found.keys.length);
    return found;
}

/* Whether any of a tile's queries sees any of its keys. */
PTX_FUNCTION bool dbias_visible(const struct dbias_head &head, int32_t query, int32_t key)
{
    int32_t last =
        query + BACKWARD_ROWS < head.queries.length ? query + BACKWARD_ROWS : head.queries.length;
    return query < head.queries.length && key < score_end_key(head.score, (int64_t)last - 1) &&
           key + BACKWARD_ROWS > score_first_key(head.score, query);
}

template <int Width>
PTX_FUNCTION void dbias_load(const struct attn_problem &problem, const struct dbias_head &head,
    int32_t query, int32_t key, char *shared)
{
    typedef struct dbias_shape<Width> shape;
    tile_load<shape::queries, Width, shape::threads>(
        shared + shape::q, backward_rows(problem.q, head.queries, head.head, query,
                               head.queries.length, problem.head_dim_qk));
    tile_load<shape::keys, Width, shape::threads>(
        shared + shape::k, backward_rows(problem.k, head.keys, head.kv_head, key, head.keys.length,
                               problem.head_dim_qk));
    tile_load<shape::queries, Width, shape::threads>(
        shared + shape::dout, backward_rows(problem.dout, head.queries, head.head, query,
                                  head.queries.length, problem.head_dim_v));
    tile_load<shape::keys, Width, shape::threads>(
        shared + shape::v, backward_rows(problem.v, head.keys, head.kv_head, key, head.keys.length,
                               problem.head_dim_v));
    ptx_copy_commit();
}

/* Adds the ds of one tile of one head. */
template <int Width, bool Bf16, int N>
PTX_FUNCTION void dbias_add(const struct attn_problem &problem, const struct dbias_head &head,
    int32_t query, int32_t key, char *shared, float (&sum)[1][N][4])
{
    typedef struct dbias_shape<Width> shape;
    typedef backward_a<shape::queries, Width> of_queries;
    typedef backward_b<shape::keys, Width> of_keys;
    uint32_t address = ptx_shared_address(shared);
    int first = (int)(ptx_thread() / 32) * 16;
    struct backward_stats<1> stats =
        backward_stats_of<1>(head.lse, head.delta, query + first, head.queries.length);
    float p[1][N][4];
    float ds[1][N][4];
    float cap[1][1][4];

    ptx_barrier(); /* nobody reads the last tile's rows */
    dbias_load<Width>(problem, head, query, key, shared);
    ptx_copy_wait<0>();
    ptx_barrier();
    backward_clear(p);
    backward_multiply<Bf16, of_queries, of_keys, Width>(
        p, address + shape::q, first, address + shape::k, 0);
    backward_probabilities<SCORE_GENERAL, Bf16, false>(
        head.score, query + first, key, stats, p, cap);
    backward_clear(ds);
    backward_multiply<Bf16, of_queries, of_keys, Width>(
        ds, address + shape::dout, first, address + shape::v, 0);
    backward_ds<SCORE_GENERAL>(head.score, stats, p, ds);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum[0][n][e] += ds[0][n][e];
        }
    }
}

/* Walks over the tiles of one head. */
template <int Width, bool Bf16, int N>
PTX_FUNCTION void dbias_walk(const struct attn_problem &problem, const struct dbias_part &part,
    const struct dbias_head &head, char *shared, float (&sum)[1][N][4])
{
    int32_t query = part.query;
    int32_t end_query = query + 1;
    int32_t key = part.key;
    int32_t end_key = key + 1;
    if (part.kind == BACKWARD_DBIAS_KEYS) {
        query = score_first_query(head.score, key) / BACKWARD_ROWS * BACKWARD_ROWS;
        end_query = head.queries.length;
    }
    if (part.kind == BACKWARD_DBIAS_QUERIES) {
        key = score_first_key(head.score, query) / BACKWARD_ROWS * BACKWARD_ROWS;
        end_key = head.keys.length;
    }
    for (; query < end_query; query += BACKWARD_ROWS) {
        for (int32_t at = key; at < end_key; at += BACKWARD_ROWS) {
            if (dbias_visible(head, query, at)) {
                dbias_add<Width, Bf16>(problem, head, query, at, shared, sum);
            }
        }
    }
}

template <bool Bf16, int N>
PTX_FUNCTION void dbias_store_matrix(
    const struct attn_problem &problem, const struct dbias_part &part, const float (&sum)[1][N][4])
{
    const struct attn_view &view = problem.dbias;
    int64_t start = view.batch_stride * part.batch + view.head_stride * part.head;
    int lane = (int)ptx_thread() & 31;
    int64_t row = part.query + (int)(ptx_thread() / 32) * 16 + lane / 4;
    int64_t column = part.key + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int64_t i = row + 8 * (e / 2);
            int64_t j = column + 8 * n + e % 2;
            if (i >= problem.seqlen_q || j >= problem.seqlen_k) {
                continue;
            }
            backward_store<Bf16>(view, problem.bias_dtype,
                start + view.row_stride * i + view.column_stride * j, sum[0][n][e]);
        }
    }
}

/* Sums over the tile's keys. */
template <int N>
PTX_FUNCTION void dbias_store_queries(
    float *to, int32_t queries, const struct dbias_part &part, const float (&sum)[1][N][4])
{
    int lane = (int)ptx_thread() & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float all = 0.0F;
#pragma unroll
        for (int n = 0; n < N; n++) {
            all += sum[0][n][2 * half] + sum[0][n][2 * half + 1];
        }
        all += ptx_shuffle_xor(all, 1);
        all += ptx_shuffle_xor(all, 2);
        int32_t i = part.query + (int)(ptx_thread() / 32) * 16 + lane / 4 + 8 * half;
        if (lane % 4 == 0 && i < queries) {
            to[i] = all;
        }
    }
}

/* Sums over the tile's queries, through shared memory: [warp][key]. */
template <int N>
PTX_FUNCTION void dbias_store_keys(float *to, int32_t keys, const struct dbias_part &part,
    const float (&sum)[1][N][4], float *shared)
{
    int thread = (int)ptx_thread();

    ptx_barrier(); /* nobody reads the last tile's rows */
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float all = sum[0][n][e] + sum[0][n][e + 2];
            all += ptx_shuffle_xor(all, 4);
            all += ptx_shuffle_xor(all, 8);
            all += ptx_shuffle_xor(all, 16);
            if (thread % 32 < 4) {
                shared[thread / 32 * BACKWARD_ROWS + 8 * n + thread % 4 * 2 + e] = all;
            }
        }
    }
    ptx_barrier();
    if (thread < BACKWARD_ROWS && part.key + thread < keys) {
        float all = 0.0F;
        for (int warp = 0; warp < BACKWARD_ROW_THREADS / 32; warp++) {
            all += shared[warp * BACKWARD_ROWS + thread];
        }
        to[part.key + thread] = all;
    }
}

template <int Width, bool Bf16>
static __global__ void __launch_bounds__(BACKWARD_ROW_THREADS)
    backward_dbias_own(const __grid_constant__ struct device_group group)
{
    typedef struct dbias_shape<Width> shape;
    struct device_place tile = device_place_of(group, ptx_block());
    const struct device_item &item = *tile.item;
    const struct attn_problem &problem = item.problem;
    struct dbias_part part = dbias_part_of(problem, (int64_t)tile.tile);
    char *shared = ptx_shared_memory();
    float sum[1][shape::score_n][4];
    backward_clear(sum);

    for (int32_t batch = part.batch; batch < part.end_batch; batch++) {
        for (int32_t head = part.head; head < part.end_head; head++) {
            struct dbias_head found = dbias_head_of(item, batch, head);
            dbias_walk<Width, Bf16>(problem, part, found, shared, sum);
        }
    }
    float kept = backward_kept_scale(problem);
#pragma unroll
    for (int n = 0; n < shape::score_n; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum[0][n][e] *= kept;
        }
    }
    if (part.kind == BACKWARD_DBIAS_MATRIX) {
        dbias_store_matrix<Bf16>(problem, part, sum);
        return;
    }
    enum lengths_side side = backward_bias_side(&problem);
    struct lengths_sequence sequence =
        lengths_sequence_of(&problem, item.workspace, side, part.batch);
    float *to = (float *)(item.workspace + backward_layout_of(&problem).bias) +
                backward_all_rows(&problem, side) * part.head +
                backward_first_row(&problem, side, &sequence);
    if (part.kind == BACKWARD_DBIAS_QUERIES) {
        dbias_store_queries(to, sequence.length, part, sum);
    } else {
        dbias_store_keys(to, sequence.length, part, sum, (float *)shared);
    }
}

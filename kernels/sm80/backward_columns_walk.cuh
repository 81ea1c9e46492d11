/*
 * How a block of the stage that owns keys goes over the queries, how its warps share the work, and where
 * all of that lies in shared memory.
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
    float *sums; /* of ds, of the group's first head, from the block's first key on; if Sums */
    int64_t sums_head;
    struct score_head score; /* of the step's head */
};

/* Eight warps: how they share out each of the products. Sums: those of ds by key are asked for; kernels
 * for these are others, since the rest has no registers for them. */
template <int Width, enum score_kind Kind, bool Sums>
struct columns_shape {
    static const bool sums_keys = Sums; static const int threads = BACKWARD_THREADS;
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
    static const int sums = walk + (int)sizeof(struct columns_walk); /* a thread's one */
    static const int bytes = sums + (Sums ? threads * 4 : 0);
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

PTX_FUNCTION void columns_find_sums(struct columns_walk &walk, const struct device_item &item)
{
    const struct attn_problem *problem = &item.problem;
    walk.sums_head = backward_all_rows(problem, LENGTHS_KEYS);
    walk.sums = (float *)(item.workspace + backward_layout_of(problem).bias) +
                walk.sums_head * (walk.kv_head * walk.heads) +
                backward_first_row(problem, LENGTHS_KEYS, &walk.keys) + walk.key;
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
    if (Shape::sums_keys) {
        columns_find_sums(walk, item);
    }
    int32_t last =
        walk.key + Shape::keys < walk.keys.length ? walk.key + Shape::keys : walk.keys.length;
    walk.row = score_first_query(walk.score, walk.key) / Shape::queries * Shape::queries;
    walk.end = walk.key < walk.keys.length ? score_end_query(walk.score, (int64_t)last - 1) : 0;
}

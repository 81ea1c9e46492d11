/*
 * The stage of the backward pass that owns tiles of the gradient of a bias that is a matrix: a block
 * walks in order over the batches and heads that its elements are sums of, and computes ds once more.
 * Each warp has 16 queries.
 */
#pragma once

#include "backward_parts.cuh"

/* What a block owns: batches and heads that it walks over, and the first query and key. */
struct dbias_part {
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
    bool all_batches = problem.bias_broadcast[0];
    bool all_heads = problem.bias_broadcast[1];
    int64_t queries = lengths_blocks_each(&problem, LENGTHS_QUERIES, BACKWARD_ROWS);
    int64_t keys = lengths_blocks_each(&problem, LENGTHS_KEYS, BACKWARD_ROWS);
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

/* A tile of one head of one sequence: in shared memory, because registers are short. Thread 0 finds
 * the next one, while others still read this one and perhaps the last one. */
#define DBIAS_STEPS 3

struct dbias_step {
    bool exists; /* else the walk has ended */
    int32_t batch;
    int32_t head;
    int32_t kv_head;
    int32_t query;
    int32_t key;
    struct lengths_sequence queries;
    struct lengths_sequence keys;
    const float *lse; /* of the sequence's first query */
    const float *delta;
    struct score_head score;
};

template <int Width>
struct dbias_shape {
    static const int threads = BACKWARD_ROW_THREADS;
    static const int queries = BACKWARD_ROWS;
    static const int keys = BACKWARD_ROWS;
    static const int score_n = keys / 8;
    static const int stages = Width > 128 ? 1 : 2; /* what 163 KiB have room for */

    /* Where things are in shared memory, or in a stage of it. */
    static const int tile_bytes = queries * Width * 2;
    static const int q = 0;
    static const int dout = q + tile_bytes;
    static const int k = dout + tile_bytes;
    static const int v = k + tile_bytes;
    static const int stage_bytes = v + tile_bytes;
    static const int steps = stages * stage_bytes;
    static const int bytes = steps + DBIAS_STEPS * (int)sizeof(struct dbias_step);
};

/* The last row of a tile that exists. */
PTX_FUNCTION int32_t dbias_last(int32_t first, int32_t length)
{
    return (first + BACKWARD_ROWS < length ? first + BACKWARD_ROWS : length) - 1;
}

/* The first tile of a head. */
PTX_FUNCTION void dbias_enter(
    struct dbias_step &step, const struct device_item &item, const struct dbias_part &part)
{
    const struct attn_problem &problem = item.problem;
    struct backward_layout layout = backward_layout_of(&problem);
    step.queries = lengths_sequence_of(&problem, item.workspace, LENGTHS_QUERIES, step.batch);
    step.keys = lengths_sequence_of(&problem, item.workspace, LENGTHS_KEYS, step.batch);
    step.kv_head = step.head / (problem.heads_q / problem.heads_kv);
    int64_t at = backward_all_rows(&problem, LENGTHS_QUERIES) * step.head +
                 backward_first_row(&problem, LENGTHS_QUERIES, &step.queries);
    step.lse = (const float *)(item.workspace + layout.lse) + at;
    step.delta = (const float *)(item.workspace + layout.delta) + at;
    step.score =
        score_head_of(problem, step.batch, step.head, step.queries.length, step.keys.length);
    step.query = part.query;
    step.key = part.key;
}

/* Whether any of a tile's queries sees any of its keys. */
PTX_FUNCTION bool dbias_visible(const struct dbias_step &step)
{
    return step.query < step.queries.length &&
           step.key < score_end_key(step.score, dbias_last(step.query, step.queries.length)) &&
           step.key + BACKWARD_ROWS > score_first_key(step.score, step.query);
}

PTX_FUNCTION void dbias_advance(
    struct dbias_step &step, const struct device_item &item, const struct dbias_part &part)
{
    step.head++;
    if (step.head == part.end_head) {
        step.head = part.head;
        step.batch++;
    }
    step.exists = step.batch < part.end_batch;
    if (step.exists) {
        dbias_enter(step, item, part);
    }
}

/* Goes on to a tile that has something to see. */
PTX_FUNCTION void dbias_settle(
    struct dbias_step &step, const struct device_item &item, const struct dbias_part &part)
{
    while (step.exists && !dbias_visible(step)) {
        dbias_advance(step, item, part);
    }
}

PTX_FUNCTION void dbias_begin(
    struct dbias_step &step, const struct device_item &item, const struct dbias_part &part)
{
    step.batch = part.batch;
    step.head = part.head;
    step.exists = part.batch < part.end_batch && part.head < part.end_head;
    if (step.exists) {
        dbias_enter(step, item, part);
        dbias_settle(step, item, part);
    }
}

template <int Width>
PTX_FUNCTION void dbias_load(
    const struct attn_problem &problem, const struct dbias_step &step, char *shared)
{
    typedef struct dbias_shape<Width> shape;
    tile_load<shape::queries, Width, shape::threads>(
        shared + shape::q, backward_rows(problem.q, step.queries, step.head, step.query,
                               step.queries.length, problem.head_dim_qk));
    tile_load<shape::keys, Width, shape::threads>(
        shared + shape::k, backward_rows(problem.k, step.keys, step.kv_head, step.key,
                               step.keys.length, problem.head_dim_qk));
    tile_load<shape::queries, Width, shape::threads>(
        shared + shape::dout, backward_rows(problem.dout, step.queries, step.head, step.query,
                                  step.queries.length, problem.head_dim_v));
    tile_load<shape::keys, Width, shape::threads>(
        shared + shape::v, backward_rows(problem.v, step.keys, step.kv_head, step.key,
                               step.keys.length, problem.head_dim_v));
    ptx_copy_commit();
}

/* Adds the ds of a tile. */
template <int Width, enum score_kind Kind, bool Bf16, int N>
PTX_FUNCTION void dbias_add(const struct dbias_step &step, uint32_t stage, float (&sum)[1][N][4])
{
    typedef struct dbias_shape<Width> shape;
    typedef backward_a<shape::queries, Width> of_queries;
    typedef backward_b<shape::keys, Width> of_keys;
    int first = (int)(ptx_thread() / 32) * 16;
    struct backward_stats<1> stats;
    backward_load_lse(stats, step.lse, step.query + first, step.queries.length);
    backward_load_delta(stats, step.delta, step.query + first, step.queries.length);
    float p[1][N][4];
    float ds[1][N][4];
    float cap[1][1][4];

    backward_clear(p);
    backward_multiply<Bf16, of_queries, of_keys, Width>(
        p, stage + shape::q, first, stage + shape::k, 0);
    backward_probabilities<Kind, Bf16, false>(
        step.score, step.query + first, step.key, stats, p, cap);
    backward_clear(ds);
    backward_multiply<Bf16, of_queries, of_keys, Width>(
        ds, stage + shape::dout, first, stage + shape::v, 0);
    backward_ds<Kind>(step.score, stats, p, ds);
    backward_hide(step.score, step.query + first, step.key, p, ds);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum[0][n][e] += ds[0][n][e];
        }
    }
}

/* Adds all tiles of a walk. */
template <int Width, enum score_kind Kind, bool Bf16, int N>
PTX_FUNCTION void dbias_walk(const struct device_item &item, const struct dbias_part &part,
    char *shared, float (&sum)[1][N][4])
{
    typedef struct dbias_shape<Width> shape;
    struct dbias_step *steps = (struct dbias_step *)(shared + shape::steps);
    uint32_t address = ptx_shared_address(shared);
    int turn = 0;
    int stage = 0;

    if (ptx_thread() == 0) {
        dbias_begin(steps[0], item, part);
    }
    ptx_barrier(); /* the first step is known */
    if (steps[0].exists) {
        dbias_load<Width>(item.problem, steps[0], shared);
    }
    while (steps[turn].exists) {
        int next = turn == DBIAS_STEPS - 1 ? 0 : turn + 1;
        int other = shape::stages == 2 ? shape::stage_bytes - stage : 0;
        if (ptx_thread() == 0) {
            steps[next] = steps[turn];
            dbias_advance(steps[next], item, part);
            dbias_settle(steps[next], item, part);
        }
        ptx_copy_wait<0>();
        ptx_barrier(); /* this step's rows are there, the next step is known */
        if (shape::stages == 2 && steps[next].exists) {
            dbias_load<Width>(item.problem, steps[next], shared + other);
        }
        dbias_add<Width, Kind, Bf16>(steps[turn], address + (uint32_t)stage, sum);
        if (shape::stages == 1 && steps[next].exists) {
            ptx_barrier(); /* nobody reads this step's rows */
            dbias_load<Width>(item.problem, steps[next], shared);
        }
        turn = next;
        stage = other;
    }
}

/* Two neighbours of a row, of which the second may not exist. */
template <bool Bf16>
PTX_FUNCTION void dbias_store_pair(
    const struct attn_problem &problem, int64_t at, bool both, float first, float second)
{
    const struct attn_view &view = problem.dbias;
    uint16_t *element = (uint16_t *)view.data + at;

    if (both && problem.bias_dtype != ATTN_FP32 && (uintptr_t)element % 4 == 0) {
        *(uint32_t *)element = backward_pack<Bf16>(first, second);
        return;
    }
    backward_store<Bf16>(view, problem.bias_dtype, at, first);
    if (both) {
        backward_store<Bf16>(view, problem.bias_dtype, at + 1, second);
    }
}

template <bool Bf16, int N>
PTX_FUNCTION void dbias_store(
    const struct attn_problem &problem, const struct dbias_part &part, const float (&sum)[1][N][4])
{
    const struct attn_view &view = problem.dbias;
    int64_t start = view.batch_stride * part.batch + view.head_stride * part.head;
    int lane = (int)ptx_thread() & 31;
    int64_t row = part.query + (int)(ptx_thread() / 32) * 16 + lane / 4;
    int64_t column = part.key + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t i = row + 8 * half;
#pragma unroll
        for (int n = 0; n < N; n++) {
            int64_t j = column + 8 * n; /* keys of a matrix lie side by side, if there are two */
            if (i < problem.seqlen_q && j < problem.seqlen_k) {
                dbias_store_pair<Bf16>(problem, start + view.row_stride * i + j,
                    j + 1 < problem.seqlen_k, sum[0][n][2 * half], sum[0][n][2 * half + 1]);
            }
        }
    }
}

template <int Width, enum score_kind Kind, bool Bf16>
static __global__ void __launch_bounds__(BACKWARD_ROW_THREADS, 2)
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
    dbias_walk<Width, Kind, Bf16>(item, part, shared, sum);
    float kept = backward_kept_scale(problem);
#pragma unroll
    for (int n = 0; n < shape::score_n; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum[0][n][e] *= kept;
        }
    }
    dbias_store<Bf16>(problem, part, sum);
}

/*
 * The stage of the backward pass that owns queries, for a dq of the same bits every time and for sums by
 * query: a block has some queries of one head and walks over the keys. Each warp has 16 queries.
 */
#pragma once

#include "backward_parts.cuh"
#include "backward_seen.cuh"

template <int Width>
struct rows_shape {
    static const int threads = BACKWARD_ROW_THREADS;
    static const int queries = BACKWARD_ROWS;
    static const int keys = backward_row_keys(Width);
    static const int score_n = keys / 8;
    static const int query_bytes = queries * Width * 2;
    static const int key_bytes = keys * Width * 2;

    /* Where things are in shared memory. */
    static const int q = 0;
    static const int dout = q + query_bytes;
    static const int k = dout + query_bytes; /* then v, then the next keys */
    static const int bytes = k + 2 * 2 * key_bytes;
};

struct rows_walk {
    struct lengths_sequence keys;
    int32_t head; /* of the kv heads */
    int32_t key;
    int32_t end;
};

template <int Width>
PTX_FUNCTION struct rows_walk rows_walk_of(const struct device_item &item,
    const struct backward_place &place, const struct score_head &score)
{
    const struct attn_problem &problem = item.problem;
    int32_t last = place.row + BACKWARD_ROWS < place.queries.length ? place.row + BACKWARD_ROWS
                                                                    : place.queries.length;
    struct rows_walk walk;
    walk.keys = lengths_sequence_of(&problem, item.workspace, LENGTHS_KEYS, place.batch);
    walk.head = place.head / (problem.heads_q / problem.heads_kv);
    walk.key =
        score_first_key(score, place.row) / rows_shape<Width>::keys * rows_shape<Width>::keys;
    walk.end = score_end_key(score, (int64_t)last - 1);
    return walk;
}

/* Which of the block's queries see a key, counted from its first one. */
PTX_FUNCTION struct backward_seen rows_seen_of(const struct score_head &score, int32_t row)
{
    struct backward_seen seen = backward_seen_of(score);
    seen.first -= row;
    seen.end -= row;
    return seen;
}

/* k and v from a key on. */
template <int Width>
PTX_FUNCTION void rows_load_keys(
    const struct attn_problem &problem, const struct rows_walk &walk, int32_t key, char *shared)
{
    typedef struct rows_shape<Width> shape;
    tile_load<shape::keys, Width, shape::threads>(shared,
        backward_rows(problem.k, walk.keys, walk.head, key, walk.keys.length, problem.head_dim_qk));
    tile_load<shape::keys, Width, shape::threads>(shared + shape::key_bytes,
        backward_rows(problem.v, walk.keys, walk.head, key, walk.keys.length, problem.head_dim_v));
    ptx_copy_commit();
}

template <int Width>
PTX_FUNCTION void rows_load_queries(const struct attn_problem &problem,
    const struct backward_place &place, const struct backward_seen &seen, char *shared)
{
    typedef struct rows_shape<Width> shape;
    tile_load<shape::queries, Width, shape::threads>(shared + shape::q,
        backward_rows(problem.q, place.queries, place.head, place.row, place.row + seen.end,
            problem.head_dim_qk),
        seen.first);
    tile_load<shape::queries, Width, shape::threads>(shared + shape::dout,
        backward_rows(problem.dout, place.queries, place.head, place.row, place.row + seen.end,
            problem.head_dim_v),
        seen.first);
}

/* Where there are sinks, delta of queries that see no key may be anything. row: the warp's first. */
PTX_FUNCTION void rows_load_delta(struct backward_stats<1> &stats, const float *delta, int32_t row,
    const struct backward_seen &seen)
{
    int lane = (int)ptx_thread() & 31;
    backward_load_delta(stats, delta, row, seen.end);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool sees = row + lane / 4 + 8 * half >= seen.first;
        stats.delta[0][half] = sees ? stats.delta[0][half] : 0.0F;
    }
}

/* Over a thread's keys, of its two rows. */
struct rows_sums {
    float distances[2]; /* ds * distance */
    float ds[2];
};

template <int N>
PTX_FUNCTION void rows_add_distances(const struct score_head &score, int32_t row, int32_t column,
    const float (&ds)[1][N][4], float (&sum)[2])
{
    int lane = (int)ptx_thread() & 31;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int64_t distance =
                row + lane / 4 + 8 * (e / 2) + score.off - (column + 8 * n + lane % 4 * 2 + e % 2);
            sum[e / 2] += ds[0][n][e] * (float)(distance < 0 ? -distance : distance);
        }
    }
}

template <int N>
PTX_FUNCTION void rows_add(const float (&ds)[1][N][4], float (&sum)[2])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum[e / 2] += ds[0][n][e];
        }
    }
}

/* dq += ds k, ds being accumulators: two of their fragments are an operand as they are. */
template <int Width, bool Bf16, int N>
PTX_FUNCTION void rows_add_dq(
    const float (&ds)[1][N][4], uint32_t keys, float (&dq)[1][Width / 8][4])
{
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        struct ptx_words4 a = {{backward_pack<Bf16>(ds[0][n][0], ds[0][n][1]),
            backward_pack<Bf16>(ds[0][n][2], ds[0][n][3]),
            backward_pack<Bf16>(ds[0][n + 1][0], ds[0][n + 1][1]),
            backward_pack<Bf16>(ds[0][n + 1][2], ds[0][n + 1][3])}};
#pragma unroll
        for (int column = 0; column < Width / 8; column += 2) {
            struct ptx_words4 b = tile_b_transposed<N * 8, Width>(keys, column * 8, n * 8);
            backward_multiply_step<Bf16>(dq[0][column], a, b.word[0], b.word[1]);
            backward_multiply_step<Bf16>(dq[0][column + 1], a, b.word[2], b.word[3]);
        }
    }
}

/* One block of keys: adds to dq, and to the sums that are wanted. */
template <int Width, enum score_kind Kind, bool Bf16>
PTX_FUNCTION void rows_step(const struct attn_problem &problem, const struct score_head &score,
    const struct backward_stats<1> &stats, int32_t row, int32_t key, uint32_t shared, uint32_t keys,
    struct rows_sums &sums, float (&dq)[1][Width / 8][4])
{
    typedef struct rows_shape<Width> shape;
    typedef backward_a<shape::queries, Width> of_queries;
    typedef backward_b<shape::keys, Width> of_keys;
    static const bool capped = Kind == SCORE_GENERAL;
    int first = (int)(ptx_thread() / 32) * 16;
    float p[1][shape::score_n][4];
    float ds[1][shape::score_n][4];
    float cap[1][capped ? shape::score_n : 1][4];

    backward_clear(p);
    backward_multiply<Bf16, of_queries, of_keys, Width>(p, shared + shape::q, first, keys, 0);
    backward_probabilities<Kind, Bf16, capped>(score, row, key, stats, p, cap);
    backward_clear(ds);
    backward_multiply<Bf16, of_queries, of_keys, Width>(
        ds, shared + shape::dout, first, keys + shape::key_bytes, 0);
    backward_ds<Kind>(score, stats, p, ds);
    if constexpr (capped) {
        if (problem.dslopes.data != NULL) {
            rows_add_distances(score, row, key, ds, sums.distances);
        }
        if (backward_sums_queries(&problem)) {
            backward_hide(score, row, key, p, ds);
            rows_add(ds, sums.ds);
        }
        backward_uncap(score, cap, ds);
    }
    rows_add_dq<Width, Bf16>(ds, keys, dq);
}

/* Sums over the lanes that share a row, to the place's first row and the following. */
PTX_FUNCTION void rows_store_sums(
    const struct backward_place &place, float factor, const float (&sums)[2], float *to)
{
    int lane = (int)ptx_thread() & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = sums[half];
        sum += ptx_shuffle_xor(sum, 1);
        sum += ptx_shuffle_xor(sum, 2);
        int row = (int)(ptx_thread() / 32) * 16 + lane / 4 + 8 * half;
        if (lane % 4 == 0 && place.row + row < place.queries.length) {
            to[row] = sum * factor;
        }
    }
}

template <int Width, bool Bf16>
PTX_FUNCTION void rows_store(const struct device_item &item, const struct backward_place &place,
    const float (&dq)[1][Width / 8][4], const struct rows_sums &sums, char *shared)
{
    typedef struct rows_shape<Width> shape;
    const struct attn_problem &problem = item.problem;
    int warp = (int)(ptx_thread() / 32);

    ptx_barrier(); /* before: others may still read what lies there */
    float kept = backward_kept_scale(problem);
    backward_put<Bf16, shape::queries, Width>(shared, warp * 16, 0, dq, problem.scale * kept);
    ptx_barrier();
    tile_store<shape::queries, Width, shape::threads>(
        shared, backward_rows(problem.dq, place.queries, place.head, place.row,
                    place.queries.extent, problem.head_dim_qk));
    struct backward_layout layout = backward_layout_of(&problem);
    if (problem.dslopes.data != NULL) {
        rows_store_sums(
            place, kept, sums.distances, (float *)(item.workspace + layout.slopes) + place.at);
    }
    if (backward_sums_queries(&problem)) {
        rows_store_sums(place, kept, sums.ds, (float *)(item.workspace + layout.bias) + place.at);
    }
}

template <int Width, enum score_kind Kind, bool Bf16>
static __global__ void __launch_bounds__(BACKWARD_ROW_THREADS)
    backward_rows_own(const __grid_constant__ struct device_group group)
{
    typedef struct rows_shape<Width> shape;
    struct device_place tile = device_place_of(group, ptx_block());
    const struct device_item &item = *tile.item;
    const struct attn_problem &problem = item.problem;
    struct backward_place place = backward_place_of(item, tile.tile);
    if (place.batch < 0) {
        return;
    }
    struct lengths_sequence keys =
        lengths_sequence_of(&problem, item.workspace, LENGTHS_KEYS, place.batch);
    struct score_head score =
        score_head_of(problem, place.batch, place.head, place.queries.length, keys.length);
    struct rows_walk walk = rows_walk_of<Width>(item, place, score);
    struct backward_seen seen = rows_seen_of(score, place.row);
    struct backward_layout layout = backward_layout_of(&problem);
    int first = (int)(ptx_thread() / 32) * 16;
    struct backward_stats<1> stats;
    backward_load_lse(stats, (const float *)(item.workspace + layout.lse) + place.at, first,
        place.queries.length - place.row);
    rows_load_delta(stats, (const float *)(item.workspace + layout.delta) + place.at, first, seen);
    char *shared = ptx_shared_memory();
    uint32_t address = ptx_shared_address(shared);
    float dq[1][Width / 8][4];
    struct rows_sums sums = {{0.0F, 0.0F}, {0.0F, 0.0F}};
    backward_clear(dq);

    if (walk.key < walk.end) {
        rows_load_queries<Width>(problem, place, seen, shared);
        rows_load_keys<Width>(problem, walk, walk.key, shared + shape::k);
    }
    int stage = 0;
    for (int32_t key = walk.key; key < walk.end; key += shape::keys) {
        ptx_copy_wait<0>();
        ptx_barrier(); /* these keys are there, and nobody reads the last ones */
        if (key + shape::keys < walk.end) {
            rows_load_keys<Width>(problem, walk, key + shape::keys,
                shared + shape::k + (1 - stage) * (2 * shape::key_bytes));
        }
        rows_step<Width, Kind, Bf16>(problem, score, stats, place.row + first, key, address,
            address + shape::k + stage * (2 * shape::key_bytes), sums, dq);
        stage = 1 - stage;
    }
    rows_store<Width, Bf16>(item, place, dq, sums, shared);
}

#include "backward.h"

#include <math.h>
#include <string.h>

/* lse and delta of a head's queries, in the workspace. */
struct stats {
    float *lse;
    float *delta;
};

static struct stats stats_of(const struct tile_work *work, const struct tile_place *place)
{
    const struct attn_problem *problem = work->problem;
    int64_t heads = problem->heads_q;
    int64_t head = place->batch * heads + place->head;
    float *lse = (float *)work->workspace + head * problem->seqlen_q;

    return (struct stats){
        .lse = lse,
        .delta = lse + problem->batch * heads * problem->seqlen_q,
    };
}

/* Probabilities and ds of the packed block against one panel, into the scratch. */
static void panel_gradients(const struct tile_work *work, const struct simd_scores *scores,
    const struct simd_stats *stats, size_t lane)
{
    const struct simd *simd = work->simd;
    struct tile_scratch *scratch = work->scratch;
    size_t width_qk = simd_pad((size_t)work->problem->head_dim_qk);
    size_t width_v = simd_pad((size_t)work->problem->head_dim_v);
    size_t rows = simd_pad(scores->rows);

    simd->multiply(scratch->products, scratch->walk_a + scores->first * width_qk,
        scratch->lanes_a + lane * width_qk, rows, width_qk);
    simd->multiply(scratch->gradients, scratch->walk_b + scores->first * width_v,
        scratch->lanes_b + lane * width_v, rows, width_v);
    simd->gradient(scores, stats, scratch->products, scratch->gradients);
}

/* Packs what a tile owns and what it walks over: of queries q and dout, of keys k and v. */
static void load_lanes(const struct tile_work *work, const struct attn_view *a,
    const struct attn_view *b, const struct tile_place *lanes)
{
    const struct attn_problem *problem = work->problem;
    struct simd_matrix from_a = tile_matrix(problem, a, lanes, (size_t)problem->head_dim_qk);
    struct simd_matrix from_b = tile_matrix(problem, b, lanes, (size_t)problem->head_dim_v);

    work->simd->load_panels(work->scratch->lanes_a, &from_a);
    work->simd->load_panels(work->scratch->lanes_b, &from_b);
}

static void load_walk(const struct tile_work *work, const struct attn_view *a,
    const struct attn_view *b, const struct tile_place *block)
{
    const struct attn_problem *problem = work->problem;
    struct simd_matrix from_a = tile_matrix(problem, a, block, (size_t)problem->head_dim_qk);
    struct simd_matrix from_b = tile_matrix(problem, b, block, (size_t)problem->head_dim_v);

    work->simd->load_block(work->scratch->walk_a, &from_a);
    work->simd->load_block(work->scratch->walk_b, &from_b);
}

static void clear(float *sums, const struct tile_place *lanes, int32_t head_dim)
{
    size_t panels = (lanes->rows + SIMD_PANEL - 1) / SIMD_PANEL;

    memset(sums, 0, panels * SIMD_PANEL * simd_pad((size_t)head_dim) * sizeof(float));
}

static void store(const struct tile_work *work, const struct attn_view *view,
    const struct tile_place *lanes, const float *sums, float factor)
{
    const struct attn_problem *problem = work->problem;
    int32_t width = view == &problem->dv ? problem->head_dim_v : problem->head_dim_qk;
    struct simd_matrix to = tile_matrix(problem, view, lanes, (size_t)width);

    for (size_t lane = 0; lane < lanes->rows; lane++) {
        work->scratch->factor[lane] = factor;
    }
    work->simd->store_panels(&to, sums, work->scratch->factor);
}

/* Lanes are keys, rows queries: sums_a gathers dk / scale, sums_b dv. */
static void keys_walk_head(
    const struct tile_work *work, const struct tile_place *keys, int32_t head)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_band band = tile_band_of_keys(problem);
    struct tile_span span = tile_walk(band, keys, problem->seqlen_q);
    struct tile_place queries = {.batch = keys->batch, .head = head};
    struct stats known = stats_of(work, &queries);
    size_t width_qk = simd_pad((size_t)problem->head_dim_qk);
    size_t width_v = simd_pad((size_t)problem->head_dim_v);
    struct simd_scores scores;

    for (int64_t query = span.begin; query < span.end; query += TILE_WALK_MAX) {
        struct simd_stats stats = {
            .lse = known.lse + query, .delta = known.delta + query, .of_rows = true};
        queries = tile_block(queries, query, span.end);
        load_walk(work, &problem->q, &problem->dout, &queries);
        for (size_t lane = 0; lane < keys->rows; lane += SIMD_PANEL) {
            if (!tile_scores(
                    band, keys->first + (int64_t)lane, &queries, problem->scale, &scores)) {
                continue;
            }
            panel_gradients(work, &scores, &stats, lane);
            work->simd->accumulate(scratch->sums_a + lane * width_qk, NULL,
                scratch->walk_a + scores.first * width_qk, scratch->gradients, scores.rows,
                width_qk);
            work->simd->accumulate(scratch->sums_b + lane * width_v, NULL,
                scratch->walk_b + scores.first * width_v, scratch->products, scores.rows, width_v);
        }
    }
}

/* Lanes are queries, rows keys: sums_a gathers dq / scale. */
static void queries_walk(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_band band = tile_band_of_queries(problem);
    struct tile_span span = tile_walk(band, queries, problem->seqlen_k);
    int32_t group = problem->heads_q / problem->heads_kv;
    struct tile_place keys = {.batch = queries->batch, .head = queries->head / group};
    size_t width = simd_pad((size_t)problem->head_dim_qk);
    struct simd_scores scores;

    for (int64_t key = span.begin; key < span.end; key += TILE_WALK_MAX) {
        keys = tile_block(keys, key, span.end);
        load_walk(work, &problem->k, &problem->v, &keys);
        for (size_t lane = 0; lane < queries->rows; lane += SIMD_PANEL) {
            struct simd_stats stats = {
                .lse = scratch->lse + lane, .delta = scratch->delta + lane, .of_rows = false};
            if (!tile_scores(
                    band, queries->first + (int64_t)lane, &keys, problem->scale, &scores)) {
                continue;
            }
            panel_gradients(work, &scores, &stats, lane);
            work->simd->accumulate(scratch->sums_a + lane * width, NULL,
                scratch->walk_a + scores.first * width, scratch->gradients, scores.rows, width);
        }
    }
}

/* Completes delta, and keeps both for the other phases. */
static void store_stats(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct stats stats = stats_of(work, queries);

    for (size_t lane = 0; lane < queries->rows; lane++) {
        int64_t row = queries->first + (int64_t)lane;
        float lse = *tile_scalar(&problem->lse, queries, (int64_t)lane);
        float dlse =
            problem->dlse.data == NULL ? 0 : *tile_scalar(&problem->dlse, queries, (int64_t)lane);
        stats.delta[row] = work->scratch->delta[lane] - dlse;
        /* Makes every probability of a query that sees nothing 0 and not e^(s + inf). */
        stats.lse[row] = lse == -INFINITY ? INFINITY : lse;
    }
}

/* Unused lanes get probability 0. */
static void load_stats(const struct tile_work *work, const struct tile_place *queries)
{
    struct tile_scratch *scratch = work->scratch;
    struct stats stats = stats_of(work, queries);

    for (size_t lane = 0; lane < TILE_LANES_MAX; lane++) {
        bool used = lane < queries->rows;
        scratch->lse[lane] = used ? stats.lse[queries->first + (int64_t)lane] : INFINITY;
        scratch->delta[lane] = used ? stats.delta[queries->first + (int64_t)lane] : 0;
    }
}

size_t backward_workspace_bytes(const struct attn_problem *problem)
{
    size_t heads = (size_t)problem->batch * (size_t)problem->heads_q;
    size_t bytes;

    if (__builtin_mul_overflow(heads, (size_t)problem->seqlen_q, &bytes) ||
        __builtin_mul_overflow(bytes, 2 * sizeof(float), &bytes)) {
        return SIZE_MAX;
    }
    return bytes;
}

uint64_t backward_stats_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, problem->heads_q, problem->seqlen_q);
}

void backward_stats_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_place queries =
        tile_place(tile, problem->heads_q, problem->seqlen_q, TILE_LAST_FIRST);
    struct simd_matrix out =
        tile_matrix(problem, &problem->out, &queries, (size_t)problem->head_dim_v);
    struct simd_matrix dout =
        tile_matrix(problem, &problem->dout, &queries, (size_t)problem->head_dim_v);
    size_t width = simd_pad(out.width);

    work->simd->load_panels(scratch->lanes_a, &out);
    work->simd->load_panels(scratch->lanes_b, &dout);
    for (size_t lane = 0; lane < queries.rows; lane += SIMD_PANEL) {
        work->simd->lane_dots(scratch->delta + lane, scratch->lanes_a + lane * width,
            scratch->lanes_b + lane * width, width);
    }
    store_stats(work, &queries);
}

uint64_t backward_keys_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, problem->heads_kv, problem->seqlen_k);
}

void backward_keys_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_place keys =
        tile_place(tile, problem->heads_kv, problem->seqlen_k, TILE_FIRST_FIRST);
    int32_t group = problem->heads_q / problem->heads_kv;
    int32_t first = (int32_t)keys.head * group;

    load_lanes(work, &problem->k, &problem->v, &keys);
    clear(scratch->sums_a, &keys, problem->head_dim_qk);
    clear(scratch->sums_b, &keys, problem->head_dim_v);
    for (int32_t head = first; head < first + group; head++) {
        keys_walk_head(work, &keys, head);
    }
    store(work, &problem->dk, &keys, scratch->sums_a, problem->scale);
    store(work, &problem->dv, &keys, scratch->sums_b, 1);
}

uint64_t backward_queries_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, problem->heads_q, problem->seqlen_q);
}

void backward_queries_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct tile_place queries =
        tile_place(tile, problem->heads_q, problem->seqlen_q, TILE_LAST_FIRST);

    load_lanes(work, &problem->q, &problem->dout, &queries);
    load_stats(work, &queries);
    clear(work->scratch->sums_a, &queries, problem->head_dim_qk);
    queries_walk(work, &queries);
    store(work, &problem->dq, &queries, work->scratch->sums_a, problem->scale);
}

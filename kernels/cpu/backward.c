#include "backward.h"

#include "dbias.h"
#include "gradient.h"
#include "lengths.h"
#include "score.h"
#include "workspace.h"

#include <math.h>
#include <string.h>

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

/* -- queries' statistics ---------------------------------------------------------------------- */

/* Completes delta, and keeps both for the other phases. */
static void store_stats(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    float *lse = workspace_rows(work, WORKSPACE_LSE, queries);
    float *delta = workspace_rows(work, WORKSPACE_DELTA, queries);

    for (size_t lane = 0; lane < queries->rows; lane++) {
        float known = *tile_scalar(&problem->lse, queries, (int64_t)lane);
        float dlse =
            problem->dlse.data == NULL ? 0 : *tile_scalar(&problem->dlse, queries, (int64_t)lane);
        delta[lane] = work->scratch->delta[lane] - dlse;
        /* Makes every probability of a query that sees nothing 0 and not e^(s + inf). */
        lse[lane] = known == -INFINITY ? INFINITY : known;
    }
}

uint64_t backward_stats_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, TILE_QUERIES, problem->heads_q);
}

void backward_stats_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_place queries = tile_place(work, TILE_QUERIES, problem->heads_q, tile);
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

/* -- dk and dv -------------------------------------------------------------------------------- */

/* Sums over the queries of one head. */
static void begin_key_sums(const struct tile_work *work)
{
    if (workspace_dbias(work->problem) == DBIAS_KEYS) {
        memset(work->scratch->bias_sums, 0, sizeof(work->scratch->bias_sums));
    }
}

static void end_key_sums(const struct tile_work *work, const struct tile_place *keys, int64_t head)
{
    if (workspace_dbias(work->problem) == DBIAS_KEYS) {
        struct tile_place place = *keys;
        place.head = head;
        memcpy(workspace_rows(work, WORKSPACE_BIAS, &place), work->scratch->bias_sums,
            keys->rows * sizeof(float));
    }
}

/* Lanes are keys, rows queries: sums_a gathers dk / scale, sums_b dv. */
static void keys_walk_panel(const struct score_head *score, const struct tile_place *keys,
    size_t lane, const struct tile_place *queries)
{
    const struct tile_work *work = score->work;
    struct tile_scratch *scratch = work->scratch;
    size_t width_qk = simd_pad((size_t)work->problem->head_dim_qk);
    size_t width_v = simd_pad((size_t)work->problem->head_dim_v);
    const struct simd_stats stats = {
        .lse = workspace_rows(work, WORKSPACE_LSE, queries),
        .delta = workspace_rows(work, WORKSPACE_DELTA, queries),
        .of_rows = true,
    };
    struct simd_scores scores;

    if (!score_panel(
            score, keys->first + (int64_t)lane, tile_panel_lanes(keys, lane), queries, &scores)) {
        return;
    }
    gradient_panel(work, &scores, &stats, lane);
    if (workspace_dbias(work->problem) == DBIAS_KEYS) {
        work->simd->sum_rows(scratch->bias_sums + lane, scratch->gradients, scores.rows);
    }
    gradient_uncap(work, &scores);
    work->simd->accumulate(scratch->sums_a + lane * width_qk, NULL,
        scratch->walk_a + scores.first * width_qk, scratch->gradients, scores.rows, width_qk);
    work->simd->accumulate(scratch->sums_b + lane * width_v, NULL,
        scratch->walk_b + scores.first * width_v, scratch->products, scores.rows, width_v);
}

static void keys_walk_head(
    const struct tile_work *work, const struct tile_place *keys, int64_t head)
{
    const struct attn_problem *problem = work->problem;
    struct tile_place queries = {
        .batch = keys->batch,
        .head = head,
        .sequence = lengths_sequence(work, TILE_QUERIES, keys->batch),
    };
    struct score_head score =
        score_head(work, TILE_KEYS, keys->batch, head, &queries.sequence, &keys->sequence);
    struct tile_span span = tile_walk(score.band, keys, queries.sequence.length);

    begin_key_sums(work);
    for (int64_t query = span.begin; query < span.end; query += TILE_WALK_MAX) {
        queries = tile_block(queries, query, span.end);
        gradient_load_walk(work, &problem->q, &problem->dout, &queries, span.end);
        for (size_t lane = 0; lane < keys->rows; lane += SIMD_PANEL) {
            keys_walk_panel(&score, keys, lane, &queries);
        }
    }
    end_key_sums(work, keys, head);
}

uint64_t backward_keys_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, TILE_KEYS, problem->heads_kv);
}

void backward_keys_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_place keys = tile_place(work, TILE_KEYS, problem->heads_kv, tile);
    int32_t group = problem->heads_q / problem->heads_kv;

    if (keys.rows > 0) {
        gradient_load_lanes(work, &problem->k, &problem->v, &keys);
        gradient_clear(scratch->sums_a, &keys, problem->head_dim_qk);
        gradient_clear(scratch->sums_b, &keys, problem->head_dim_v);
        for (int32_t i = 0; i < group; i++) {
            keys_walk_head(work, &keys, keys.head * group + i);
        }
        store(work, &problem->dk, &keys, scratch->sums_a, problem->scale);
        store(work, &problem->dv, &keys, scratch->sums_b, score_kept_scale(problem));
    }
    tile_clear(work, &problem->dk, &keys, problem->head_dim_qk);
    tile_clear(work, &problem->dv, &keys, problem->head_dim_v);
}

/* -- dq, and what else queries own ------------------------------------------------------------ */

static void begin_query_sums(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;

    memset(scratch->bias_sums, 0, sizeof(scratch->bias_sums));
    memset(scratch->slope_sums, 0, sizeof(scratch->slope_sums));
    if (workspace_dbias(problem) == DBIAS_DIRECT) {
        dbias_clear(work, queries);
    }
}

static void add_query_sums(const struct tile_work *work, const struct tile_place *queries,
    size_t lane, const struct simd_scores *scores, int64_t key)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    enum workspace_dbias dbias = workspace_dbias(problem);

    if (problem->dslopes.data != NULL) {
        work->simd->sum_distances(scratch->slope_sums + lane, scores, scratch->gradients);
    }
    if (dbias == DBIAS_QUERIES) {
        work->simd->sum_rows(scratch->bias_sums + lane, scratch->gradients, scores->rows);
    }
    if (dbias == DBIAS_DIRECT) {
        dbias_write(work, queries, lane, scores, key);
    }
}

static void end_query_sums(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    size_t bytes = queries->rows * sizeof(float);

    if (problem->dslopes.data != NULL) {
        memcpy(workspace_rows(work, WORKSPACE_SLOPES, queries), scratch->slope_sums, bytes);
    }
    if (workspace_dbias(problem) == DBIAS_QUERIES) {
        memcpy(workspace_rows(work, WORKSPACE_BIAS, queries), scratch->bias_sums, bytes);
    }
}

/* Lanes are queries, rows keys: sums_a gathers dq / scale. */
static void queries_walk_panel(const struct score_head *score, const struct tile_place *queries,
    size_t lane, const struct tile_place *keys)
{
    const struct tile_work *work = score->work;
    struct tile_scratch *scratch = work->scratch;
    size_t width = simd_pad((size_t)work->problem->head_dim_qk);
    const struct simd_stats stats = {
        .lse = scratch->lse + lane, .delta = scratch->delta + lane, .of_rows = false};
    struct simd_scores scores;

    if (!score_panel(score, queries->first + (int64_t)lane, tile_panel_lanes(queries, lane), keys,
            &scores)) {
        return;
    }
    gradient_panel(work, &scores, &stats, lane);
    add_query_sums(work, queries, lane, &scores, keys->first + (int64_t)scores.first);
    gradient_uncap(work, &scores);
    work->simd->accumulate(scratch->sums_a + lane * width, NULL,
        scratch->walk_a + scores.first * width, scratch->gradients, scores.rows, width);
}

static void queries_walk(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_place keys = {
        .batch = queries->batch,
        .head = queries->head / (problem->heads_q / problem->heads_kv),
        .sequence = lengths_sequence(work, TILE_KEYS, queries->batch),
    };
    struct score_head score = score_head(
        work, TILE_QUERIES, queries->batch, queries->head, &queries->sequence, &keys.sequence);
    struct tile_span span = tile_walk(score.band, queries, keys.sequence.length);

    for (int64_t key = span.begin; key < span.end; key += TILE_WALK_MAX) {
        keys = tile_block(keys, key, span.end);
        gradient_load_walk(work, &problem->k, &problem->v, &keys, span.end);
        for (size_t lane = 0; lane < queries->rows; lane += SIMD_PANEL) {
            queries_walk_panel(&score, queries, lane, &keys);
        }
    }
}

uint64_t backward_queries_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, TILE_QUERIES, problem->heads_q);
}

void backward_queries_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct tile_place queries = tile_place(work, TILE_QUERIES, problem->heads_q, tile);

    if (queries.rows > 0) {
        gradient_load_lanes(work, &problem->q, &problem->dout, &queries);
        gradient_load_stats(work, &queries);
        gradient_clear(work->scratch->sums_a, &queries, problem->head_dim_qk);
        begin_query_sums(work, &queries);
        queries_walk(work, &queries);
        end_query_sums(work, &queries);
        store(work, &problem->dq, &queries, work->scratch->sums_a, problem->scale);
    }
    tile_clear(work, &problem->dq, &queries, problem->head_dim_qk);
}

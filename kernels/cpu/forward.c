#include "forward.h"

#include "lengths.h"
#include "score.h"

#include <math.h>
#include <string.h>

/* Takes the keys of one packed block into the sums of all panels. */
static void walk_block(
    const struct score_head *score, const struct tile_place *queries, const struct tile_place *keys)
{
    const struct tile_work *work = score->work;
    const struct simd *simd = work->simd;
    struct tile_scratch *scratch = work->scratch;
    size_t width_qk = simd_pad((size_t)work->problem->head_dim_qk);
    size_t width_v = simd_pad((size_t)work->problem->head_dim_v);
    struct simd_scores scores;

    for (size_t lane = 0; lane < queries->rows; lane += SIMD_PANEL) {
        struct simd_softmax *softmax = &scratch->softmax[lane / SIMD_PANEL];
        if (!score_panel(score, queries->first + (int64_t)lane, tile_panel_lanes(queries, lane),
                keys, &scores)) {
            continue;
        }
        simd->multiply(scratch->products, scratch->walk_a + scores.first * width_qk,
            scratch->lanes_a + lane * width_qk, simd_pad(scores.rows), width_qk);
        simd->softmax(&scores, scratch->products, softmax);
        simd->accumulate(scratch->sums_a + lane * width_v, softmax->factor,
            scratch->walk_b + scores.first * width_v, scratch->products, scores.rows, width_v);
    }
}

static void walk_keys(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
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
        tile_load_block(work, scratch->walk_a, &problem->k, &keys, problem->head_dim_qk, span.end);
        tile_load_block(work, scratch->walk_b, &problem->v, &keys, problem->head_dim_v, span.end);
        walk_block(&score, queries, &keys);
    }
}

/* A sink is like a key that every query has seen, without a value. */
static void begin_softmax(const struct tile_work *work, int64_t head, struct simd_softmax *softmax)
{
    const struct attn_view *sinks = &work->problem->sinks;
    float sink =
        sinks->data == NULL ? -INFINITY : ((const float *)sinks->data)[head * sinks->head_stride];

    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        softmax->top[lane] = sink;
        softmax->sum[lane] = sink == -INFINITY ? 0 : 1;
    }
}

static void begin_tile(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    size_t width_v = simd_pad((size_t)problem->head_dim_v);
    struct simd_matrix q = tile_matrix(problem, &problem->q, queries, (size_t)problem->head_dim_qk);

    work->simd->load_panels(scratch->lanes_a, &q);
    for (size_t panel = 0; panel * SIMD_PANEL < queries->rows; panel++) {
        begin_softmax(work, queries->head, &scratch->softmax[panel]);
        memset(scratch->sums_a + panel * SIMD_PANEL * width_v, 0,
            SIMD_PANEL * width_v * sizeof(float));
    }
}

/* A query that saw nothing has sum 0: output 0 and lse = -inf + ln 0 = -inf. */
static void end_tile(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    float kept_scale = score_kept_scale(problem);
    struct simd_matrix out =
        tile_matrix(problem, &problem->out, queries, (size_t)problem->head_dim_v);

    for (size_t row = 0; row < queries->rows; row++) {
        const struct simd_softmax *softmax = &scratch->softmax[row / SIMD_PANEL];
        float sum = softmax->sum[row % SIMD_PANEL];
        scratch->factor[row] = sum == 0 ? 0 : kept_scale / sum;
        if (problem->lse.data != NULL) {
            *tile_scalar(&problem->lse, queries, (int64_t)row) =
                softmax->top[row % SIMD_PANEL] + logf(sum);
        }
    }
    work->simd->store_panels(&out, scratch->sums_a, scratch->factor);
}

static void clear_padding(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_view *lse = &work->problem->lse;

    tile_clear(work, &work->problem->out, queries, work->problem->head_dim_v);
    for (size_t row = 0; lse->data != NULL && row < queries->padding; row++) {
        *tile_scalar(lse, queries, (int64_t)(queries->rows + row)) = -INFINITY;
    }
}

uint64_t forward_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, TILE_QUERIES, problem->heads_q);
}

void forward_run(const struct tile_work *work, uint64_t tile)
{
    struct tile_place queries = tile_place(work, TILE_QUERIES, work->problem->heads_q, tile);

    if (queries.rows > 0) {
        begin_tile(work, &queries);
        walk_keys(work, &queries);
        end_tile(work, &queries);
    }
    clear_padding(work, &queries);
}

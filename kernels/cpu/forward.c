#include "forward.h"

#include <math.h>
#include <string.h>

/* Takes the keys of one packed block into the sums of all panels. */
static void walk_block(const struct tile_work *work, const struct tile_place *queries,
    const struct tile_place *keys, struct tile_band band)
{
    const struct simd *simd = work->simd;
    struct tile_scratch *scratch = work->scratch;
    size_t width_qk = simd_pad((size_t)work->problem->head_dim_qk);
    size_t width_v = simd_pad((size_t)work->problem->head_dim_v);
    struct simd_scores scores;

    for (size_t lane = 0; lane < queries->rows; lane += SIMD_PANEL) {
        struct simd_softmax *softmax = &scratch->softmax[lane / SIMD_PANEL];
        if (!tile_scores(
                band, queries->first + (int64_t)lane, keys, work->problem->scale, &scores)) {
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
    struct tile_band band = tile_band_of_queries(problem);
    struct tile_span span = tile_walk(band, queries, problem->seqlen_k);
    struct tile_place keys = {
        .batch = queries->batch,
        .head = queries->head / (problem->heads_q / problem->heads_kv),
    };

    for (int64_t key = span.begin; key < span.end; key += TILE_WALK_MAX) {
        keys = tile_block(keys, key, span.end);
        struct simd_matrix k =
            tile_matrix(problem, &problem->k, &keys, (size_t)problem->head_dim_qk);
        struct simd_matrix v =
            tile_matrix(problem, &problem->v, &keys, (size_t)problem->head_dim_v);
        work->simd->load_block(scratch->walk_a, &k);
        work->simd->load_block(scratch->walk_b, &v);
        walk_block(work, queries, &keys, band);
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
        struct simd_softmax *softmax = &scratch->softmax[panel];
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            softmax->top[lane] = -INFINITY;
            softmax->sum[lane] = 0;
        }
        memset(scratch->sums_a + panel * SIMD_PANEL * width_v, 0,
            SIMD_PANEL * width_v * sizeof(float));
    }
}

/* A query that saw nothing has sum 0: output 0 and lse = -inf + ln 0 = -inf. */
static void end_tile(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct simd_matrix out =
        tile_matrix(problem, &problem->out, queries, (size_t)problem->head_dim_v);

    for (size_t row = 0; row < queries->rows; row++) {
        const struct simd_softmax *softmax = &scratch->softmax[row / SIMD_PANEL];
        float sum = softmax->sum[row % SIMD_PANEL];
        scratch->factor[row] = sum == 0 ? 0 : 1 / sum;
        if (problem->lse.data != NULL) {
            *tile_scalar(&problem->lse, queries, (int64_t)row) =
                softmax->top[row % SIMD_PANEL] + logf(sum);
        }
    }
    work->simd->store_panels(&out, scratch->sums_a, scratch->factor);
}

uint64_t forward_tiles(const struct attn_problem *problem)
{
    return tile_count(problem, problem->heads_q, problem->seqlen_q);
}

void forward_run(const struct tile_work *work, uint64_t tile)
{
    struct tile_place queries =
        tile_place(tile, work->problem->heads_q, work->problem->seqlen_q, TILE_LAST_FIRST);

    begin_tile(work, &queries);
    walk_keys(work, &queries);
    end_tile(work, &queries);
}

#include "gradient.h"

#include "workspace.h"

#include <math.h>
#include <string.h>

void gradient_panel(const struct tile_work *work, struct simd_scores *scores,
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
    scores->caps = scores->softcap != 0 ? scratch->caps : NULL;
    simd->gradient(scores, stats, scratch->products, scratch->gradients);
}

void gradient_uncap(const struct tile_work *work, const struct simd_scores *scores)
{
    if (scores->caps != NULL) {
        work->simd->uncap(scores, work->scratch->gradients);
    }
}

void gradient_load_lanes(const struct tile_work *work, const struct attn_view *a,
    const struct attn_view *b, const struct tile_place *lanes)
{
    const struct attn_problem *problem = work->problem;
    struct simd_matrix from_a = tile_matrix(problem, a, lanes, (size_t)problem->head_dim_qk);
    struct simd_matrix from_b = tile_matrix(problem, b, lanes, (size_t)problem->head_dim_v);

    work->simd->load_panels(work->scratch->lanes_a, &from_a);
    work->simd->load_panels(work->scratch->lanes_b, &from_b);
}

void gradient_load_walk(const struct tile_work *work, const struct attn_view *a,
    const struct attn_view *b, const struct tile_place *block, int64_t end)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;

    tile_load_block(work, scratch->walk_a, a, block, problem->head_dim_qk, end);
    tile_load_block(work, scratch->walk_b, b, block, problem->head_dim_v, end);
}

void gradient_clear(float *sums, const struct tile_place *lanes, int32_t width)
{
    size_t panels = (lanes->rows + SIMD_PANEL - 1) / SIMD_PANEL;

    memset(sums, 0, panels * SIMD_PANEL * simd_pad((size_t)width) * sizeof(float));
}

void gradient_load_stats(const struct tile_work *work, const struct tile_place *queries)
{
    struct tile_scratch *scratch = work->scratch;
    const float *lse = workspace_rows(work, WORKSPACE_LSE, queries);
    const float *delta = workspace_rows(work, WORKSPACE_DELTA, queries);

    for (size_t lane = 0; lane < TILE_LANES_MAX; lane++) {
        bool used = lane < queries->rows;
        scratch->lse[lane] = used ? lse[lane] : INFINITY;
        scratch->delta[lane] = used ? delta[lane] : 0;
    }
}

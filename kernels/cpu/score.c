#include "score.h"

/* The stride of a dimension, 0 if nothing depends on it. */
static int64_t stride_of(bool broadcast, int64_t extent, int64_t stride)
{
    return broadcast || extent <= 1 ? 0 : stride;
}

static int64_t bias_bytes(const struct attn_problem *problem)
{
    return problem->bias_dtype == ATTN_FP32 ? 4 : 2;
}

static void find_bias(struct score_head *score, int64_t batch, int64_t head)
{
    const struct attn_problem *problem = score->work->problem;
    const struct attn_view *view = &problem->bias;
    const bool *broadcast = problem->bias_broadcast;
    int64_t of_queries = stride_of(broadcast[2], problem->seqlen_q, view->row_stride);
    int64_t of_keys = stride_of(broadcast[3], problem->seqlen_k, view->column_stride);
    int64_t start = stride_of(broadcast[0], problem->batch, view->batch_stride) * batch +
                    stride_of(broadcast[1], problem->heads_q, view->head_stride) * head;

    score->bias = (const char *)view->data + start * bias_bytes(problem);
    score->lane_stride = score->lanes == TILE_QUERIES ? of_queries : of_keys;
    score->row_stride = score->lanes == TILE_QUERIES ? of_keys : of_queries;
}

/* A bias that does not depend on both sides is a vector; of a matrix the keys lie side by side. */
static void load_bias(const struct score_head *score, int64_t lane, size_t lanes, int64_t row,
    struct simd_scores *scores)
{
    const struct tile_work *work = score->work;
    float *bias = work->scratch->bias;
    bool queries = score->lanes == TILE_QUERIES;
    int64_t offset = lane * score->lane_stride + row * score->row_stride;
    struct simd_matrix from = {
        .data = (void *)(uintptr_t)(score->bias + offset * bias_bytes(work->problem)),
        .dtype = work->problem->bias_dtype,
        .width = 1,
    };

    scores->lane_bias = score->lane_stride != 0 ? bias : NULL;
    scores->row_bias = score->lane_stride != 0 ? NULL : bias;
    if (score->lane_stride == 0 || score->row_stride == 0) {
        from.stride = score->lane_stride != 0 ? score->lane_stride : score->row_stride;
        from.rows = score->lane_stride != 0 ? lanes : scores->rows;
        work->simd->load_column(bias, &from);
        return;
    }
    scores->lane_bias_step = SIMD_PANEL;
    from.stride = queries ? score->lane_stride : score->row_stride;
    from.rows = queries ? lanes : scores->rows;
    from.width = queries ? scores->rows : lanes;
    if (queries) {
        work->simd->load_panels(bias, &from);
    } else {
        work->simd->load_tile(bias, &from);
    }
    /* What the panel needs of the next block: rows lie so far apart that no processor guesses it. */
    offset = (int64_t)scores->rows * score->row_stride * bias_bytes(work->problem);
    from.data = (void *)((uintptr_t)from.data + (uintptr_t)offset);
    tile_prefetch(&from);
}

static void draw_keep(
    const struct score_head *score, int64_t lane, int64_t row, struct simd_scores *scores)
{
    const struct tile_work *work = score->work;
    const struct simd_dropout dropout = {
        .stream = score->dropout,
        .threshold = work->problem->dropout_threshold,
        .row = row,
        .lane = lane,
        .lanes_are_keys = score->lanes == TILE_KEYS,
    };

    work->simd->draw_keep(work->scratch->keep, &dropout, scores->rows);
    scores->keep = work->scratch->keep;
    scores->kept_scale = score_kept_scale(work->problem);
}

struct score_head score_head(const struct tile_work *work, enum tile_side lanes, int64_t batch,
    int64_t head, const struct tile_sequence *queries, const struct tile_sequence *keys)
{
    const struct attn_problem *problem = work->problem;
    bool bottom_right = problem->alignment == ATTN_BOTTOM_RIGHT;
    int64_t offset = bottom_right ? keys->length - queries->length : 0;
    struct score_head score = {
        .work = work,
        .lanes = lanes,
        .band = tile_band(problem, lanes, queries->length, keys->length),
        .distance = lanes == TILE_QUERIES ? offset : -offset,
        .shaped =
            problem->softcap != 0 || problem->bias.data != NULL || problem->slopes.data != NULL,
        .dropout =
            {
                .seed = problem->dropout_seed,
                .offset = problem->dropout_offset,
                .head = (uint32_t)(batch * problem->heads_q + head),
            },
    };

    if (problem->bias.data != NULL) {
        find_bias(&score, batch, head);
    }
    if (problem->slopes.data != NULL) {
        const struct attn_view *view = &problem->slopes;
        score.slope =
            ((const float *)view->data)[view->batch_stride * batch + view->head_stride * head];
    }
    return score;
}

bool score_panel(const struct score_head *score, int64_t lane, size_t lanes,
    const struct tile_place *block, struct simd_scores *scores)
{
    const struct attn_problem *problem = score->work->problem;

    if (!tile_scores(score->band, lane, block, problem->scale, scores)) {
        return false;
    }
    int64_t row = block->first + (int64_t)scores->first;
    if (score->shaped) {
        scores->shaped = true;
        scores->softcap = problem->softcap;
        scores->slope = score->slope;
        scores->distance = lane - row + score->distance;
        if (score->bias != NULL) {
            load_bias(score, lane, lanes, row, scores);
        }
    }
    if (problem->dropout_threshold != 0) {
        draw_keep(score, lane, row, scores);
    }
    return true;
}

float score_kept_scale(const struct attn_problem *problem)
{
    return 65536.0F / (65536.0F - (float)problem->dropout_threshold);
}

#include "dbias.h"

#include "gradient.h"
#include "lengths.h"
#include "score.h"
#include "workspace.h"

#include <string.h>

/* Elements of dbias from a query and a key on; where it is summed over, batch and head are 0. */
static struct simd_matrix matrix_at(
    const struct attn_problem *problem, int64_t batch, int64_t head, int64_t query, int64_t key)
{
    const struct attn_view *view = &problem->dbias;
    int64_t offset = view->batch_stride * batch + view->head_stride * head +
                     view->row_stride * query + view->column_stride * key;

    return (struct simd_matrix){
        .data = (char *)view->data + offset * (problem->bias_dtype == ATTN_FP32 ? 4 : 2),
        .dtype = problem->bias_dtype,
        .stride = view->row_stride,
    };
}

static void set_factors(const struct tile_work *work)
{
    for (size_t lane = 0; lane < TILE_LANES_MAX; lane++) {
        work->scratch->factor[lane] = 1;
    }
}

/* What a tile owns of it: queries of a block of TILE_LANES_MAX, keys of one of TILE_WALK_MAX. */
struct part {
    int64_t batch; /* the first of those that it sums over */
    int64_t head;
    int64_t query;
    int64_t key;
};

static int64_t key_blocks(const struct attn_problem *problem)
{
    return problem->seqlen_k / TILE_WALK_MAX + (problem->seqlen_k % TILE_WALK_MAX != 0);
}

static struct part part_at(const struct attn_problem *problem, uint64_t index)
{
    int64_t heads = problem->bias_broadcast[1] ? 1 : problem->heads_q;
    int64_t queries = tile_blocks(problem->seqlen_q);
    int64_t keys = key_blocks(problem);
    int64_t rest = (int64_t)index / keys;

    return (struct part){
        .batch = rest / queries / heads,
        .head = rest / queries % heads,
        .query = rest % queries * TILE_LANES_MAX,
        .key = (int64_t)index % keys * TILE_WALK_MAX,
    };
}

/* The part of a tile that lies in a sequence. */
static struct tile_place cut(
    const struct tile_work *work, enum tile_side side, int64_t batch, int64_t first, int64_t most)
{
    struct tile_sequence sequence = lengths_sequence(work, side, batch);
    int64_t rest = sequence.length > first ? sequence.length - first : 0;

    return (struct tile_place){
        .batch = batch,
        .sequence = sequence,
        .first = first,
        .rows = (size_t)(rest < most ? rest : most),
    };
}

/* Adds one head's ds to sums_a: tiles of the panels, keys in rows. */
static void add_head(
    const struct tile_work *work, const struct part *part, int64_t batch, int64_t head)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    struct tile_place queries = cut(work, TILE_QUERIES, batch, part->query, TILE_LANES_MAX);
    struct tile_place keys = cut(work, TILE_KEYS, batch, part->key, TILE_WALK_MAX);
    struct simd_scores scores;

    queries.head = head;
    keys.head = head / (problem->heads_q / problem->heads_kv);
    struct score_head score =
        score_head(work, TILE_QUERIES, batch, head, &queries.sequence, &keys.sequence);
    struct tile_span span = tile_walk(score.band, &queries, keys.sequence.length);
    if (queries.rows == 0 || keys.rows == 0 || span.end <= keys.first ||
        span.begin >= keys.first + (int64_t)keys.rows) {
        return;
    }
    gradient_load_lanes(work, &problem->q, &problem->dout, &queries);
    gradient_load_walk(work, &problem->k, &problem->v, &keys, 0);
    gradient_load_stats(work, &queries);
    for (size_t lane = 0; lane < queries.rows; lane += SIMD_PANEL) {
        const struct simd_stats stats = {
            .lse = scratch->lse + lane, .delta = scratch->delta + lane, .of_rows = false};
        size_t lanes = tile_panel_lanes(&queries, lane);
        float *sums = scratch->sums_a + lane * TILE_WALK_MAX;
        if (score_panel(&score, queries.first + (int64_t)lane, lanes, &keys, &scores)) {
            gradient_panel(work, &scores, &stats, lane);
            work->simd->add_tile(
                sums + scores.first * SIMD_PANEL, scratch->gradients, scores.rows, lanes);
        }
    }
}

static void store_part(const struct tile_work *work, const struct part *part)
{
    const struct attn_problem *problem = work->problem;
    struct tile_scratch *scratch = work->scratch;
    int64_t keys = problem->seqlen_k - part->key;
    int64_t queries = problem->seqlen_q - part->query;

    set_factors(work);
    for (int64_t lane = 0; lane < TILE_LANES_MAX && lane < queries; lane += SIMD_PANEL) {
        struct simd_matrix to =
            matrix_at(problem, part->batch, part->head, part->query + lane, part->key);
        to.rows = (size_t)(queries - lane < SIMD_PANEL ? queries - lane : SIMD_PANEL);
        to.width = (size_t)(keys < TILE_WALK_MAX ? keys : TILE_WALK_MAX);
        work->simd->store_panels(&to, scratch->sums_a + lane * TILE_WALK_MAX, scratch->factor);
    }
}

void dbias_clear(const struct tile_work *work, const struct tile_place *queries)
{
    const struct attn_problem *problem = work->problem;
    size_t bytes = (size_t)problem->seqlen_k * (problem->bias_dtype == ATTN_FP32 ? 4 : 2);

    set_factors(work);
    for (size_t lane = 0; lane < queries->rows; lane++) {
        int64_t query = queries->first + (int64_t)lane;
        memset(matrix_at(problem, queries->batch, queries->head, query, 0).data, 0, bytes);
    }
}

void dbias_write(const struct tile_work *work, const struct tile_place *queries, size_t lane,
    const struct simd_scores *scores, int64_t key)
{
    struct simd_matrix to = matrix_at(
        work->problem, queries->batch, queries->head, queries->first + (int64_t)lane, key);

    to.rows = tile_panel_lanes(queries, lane);
    to.width = scores->rows;
    work->simd->store_panels(&to, work->scratch->gradients, work->scratch->factor);
}

uint64_t dbias_tiles(const struct attn_problem *problem)
{
    uint64_t batches = problem->bias_broadcast[0] ? 1 : (uint64_t)problem->batch;
    uint64_t heads = problem->bias_broadcast[1] ? 1 : (uint64_t)problem->heads_q;

    if (workspace_dbias(problem) != DBIAS_TILES) {
        return 0;
    }
    return batches * heads * (uint64_t)tile_blocks(problem->seqlen_q) *
           (uint64_t)key_blocks(problem);
}

void dbias_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct part part = part_at(problem, tile);
    int64_t end_batch = problem->bias_broadcast[0] ? problem->batch : part.batch + 1;
    int64_t end_head = problem->bias_broadcast[1] ? problem->heads_q : part.head + 1;
    const struct tile_place all = {.rows = TILE_LANES_MAX};

    gradient_clear(work->scratch->sums_a, &all, TILE_WALK_MAX);
    for (int64_t batch = part.batch; batch < end_batch; batch++) {
        for (int64_t head = part.head; head < end_head; head++) {
            add_head(work, &part, batch, head);
        }
    }
    store_part(work, &part);
}

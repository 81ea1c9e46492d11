#include "sums.h"

#include "lengths.h"
#include "workspace.h"

#include <math.h>

/* All of a head's positions. */
static struct tile_place whole_head(
    const struct tile_work *work, enum tile_side side, int64_t batch, int64_t head)
{
    return (struct tile_place){
        .batch = batch,
        .head = head,
        .sequence = lengths_sequence(work, side, batch),
    };
}

/* -- dbias, of one element per query or key or of one in all ---------------------------------- */

/* The extents of such a dbias. */
struct shape {
    int64_t batches;
    int64_t heads;
    int64_t positions;
    int64_t blocks;
    enum tile_side side; /* of the sums, and of the positions */
    bool collapsed;      /* all positions are one */
};

static struct shape shape_of(const struct attn_problem *problem)
{
    const bool *broadcast = problem->bias_broadcast;
    bool of_keys = workspace_dbias(problem) == DBIAS_KEYS;
    bool collapsed = broadcast[2] && broadcast[3];
    int64_t positions = collapsed ? 1 : of_keys ? problem->seqlen_k : problem->seqlen_q;

    return (struct shape){
        .batches = broadcast[0] ? 1 : problem->batch,
        .heads = broadcast[1] ? 1 : problem->heads_q,
        .positions = positions,
        .blocks = tile_blocks(positions),
        .side = of_keys ? TILE_KEYS : TILE_QUERIES,
        .collapsed = collapsed,
    };
}

static void add_head(const struct tile_work *work, const struct shape *shape,
    const struct tile_place *place, int64_t first, double *sums)
{
    const float *rows = workspace_rows(work, WORKSPACE_BIAS, place);
    int64_t end = shape->collapsed ? place->sequence.length : first + TILE_LANES_MAX;

    end = end < place->sequence.length ? end : place->sequence.length;
    for (int64_t row = first; row < end; row++) {
        sums[shape->collapsed ? 0 : row - first] += rows[row];
    }
}

static void store_block(const struct tile_work *work, const struct shape *shape, int64_t batch,
    int64_t head, int64_t first, const double *sums)
{
    const struct attn_problem *problem = work->problem;
    const struct attn_view *view = &problem->dbias;
    int64_t stride = shape->side == TILE_KEYS ? view->column_stride : view->row_stride;
    int64_t rest = shape->positions - first;
    int64_t offset = view->batch_stride * batch + view->head_stride * head + stride * first;
    const struct simd_matrix to = {
        .data = (char *)view->data + offset * (problem->bias_dtype == ATTN_FP32 ? 4 : 2),
        .dtype = problem->bias_dtype,
        .stride = stride,
        .rows = (size_t)(rest < TILE_LANES_MAX ? rest : TILE_LANES_MAX),
        .width = 1,
    };

    for (size_t row = 0; row < to.rows; row++) {
        work->scratch->bias_sums[row] = (float)sums[row];
    }
    work->simd->store_column(&to, work->scratch->bias_sums);
}

uint64_t sums_dbias_tiles(const struct attn_problem *problem)
{
    enum workspace_dbias dbias = workspace_dbias(problem);
    struct shape shape = shape_of(problem);

    if (dbias != DBIAS_QUERIES && dbias != DBIAS_KEYS) {
        return 0;
    }
    return (uint64_t)shape.batches * (uint64_t)shape.heads * (uint64_t)shape.blocks;
}

void sums_dbias_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct shape shape = shape_of(problem);
    int64_t first = (int64_t)tile % shape.blocks * TILE_LANES_MAX;
    int64_t head = (int64_t)tile / shape.blocks % shape.heads;
    int64_t batch = (int64_t)tile / shape.blocks / shape.heads;
    int64_t end_batch = problem->bias_broadcast[0] ? problem->batch : batch + 1;
    int64_t end_head = problem->bias_broadcast[1] ? problem->heads_q : head + 1;
    double sums[TILE_LANES_MAX] = {0};

    for (int64_t b = batch; b < end_batch; b++) {
        for (int64_t h = head; h < end_head; h++) {
            struct tile_place place = whole_head(work, shape.side, b, h);
            add_head(work, &shape, &place, first, sums);
        }
    }
    store_block(work, &shape, batch, head, first, sums);
}

/* -- dslopes and dsinks ------------------------------------------------------------------------ */

/* What slopes of one element for all batches are: outputs have no other strides of 0. */
static bool is_summed(const struct attn_problem *problem)
{
    return problem->batch == 1 || problem->dslopes.batch_stride == 0;
}

uint64_t sums_dslopes_tiles(const struct attn_problem *problem)
{
    uint64_t batches = is_summed(problem) ? 1 : (uint64_t)problem->batch;

    return problem->dslopes.data == NULL ? 0 : batches * (uint64_t)problem->heads_q;
}

void sums_dslopes_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    const struct attn_view *view = &problem->dslopes;
    int64_t batch = (int64_t)tile / problem->heads_q;
    int64_t head = (int64_t)tile % problem->heads_q;
    int64_t end = is_summed(problem) ? problem->batch : batch + 1;
    double sum = 0;

    for (int64_t b = batch; b < end; b++) {
        struct tile_place place = whole_head(work, TILE_QUERIES, b, head);
        const float *rows = workspace_rows(work, WORKSPACE_SLOPES, &place);
        for (int64_t row = 0; row < place.sequence.length; row++) {
            sum -= rows[row];
        }
    }
    ((float *)view->data)[view->batch_stride * batch + view->head_stride * head] = (float)sum;
}

uint64_t sums_dsinks_tiles(const struct attn_problem *problem)
{
    return problem->dsinks.data == NULL ? 0 : (uint64_t)problem->heads_q;
}

/* The sink has a probability like a key's, and its value is 0. */
void sums_dsinks_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    int64_t head = (int64_t)tile;
    float sink = ((const float *)problem->sinks.data)[problem->sinks.head_stride * head];
    double sum = 0;

    for (int32_t b = 0; b < problem->batch; b++) {
        struct tile_place place = whole_head(work, TILE_QUERIES, b, head);
        const float *lse = workspace_rows(work, WORKSPACE_LSE, &place);
        const float *delta = workspace_rows(work, WORKSPACE_DELTA, &place);
        for (int64_t row = 0; row < place.sequence.length; row++) {
            double p = exp((double)sink - (double)lse[row]);
            sum -= p == 0 ? 0 : p * (double)delta[row];
        }
    }
    ((float *)problem->dsinks.data)[problem->dsinks.head_stride * head] = (float)sum;
}

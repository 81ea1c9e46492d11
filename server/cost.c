#include "cost.h"

#include <math.h>
#include <stddef.h>

/* What the families cut problems into: so many rows of one side, which walk blocks of the other. */
#define TILE_ROWS 128
#define BLOCK_ROWS 64
#define PANEL_ROWS 16 /* to whose multiples they pad rows and head dims */

/* Tiles of a plan are charged alike though they are not: none with less than this part of the longest,
 * lest a launch of many be many times longer than estimated. */
#define LEAST_PART_OF_LONGEST 0.0625

/* What the sum of dsinks takes for each number beside reading it: an exponential. */
#define SINK_FLOPS 256

/* What one tile does, at worst. */
struct piece {
    double flops;
    enum wire_role role; /* whose elements it adds up; 0: it walks along a sequence */
};

static double lesser(double a, double b)
{
    return a < b ? a : b;
}

static double padded(double extent)
{
    return ceil(extent / PANEL_ROWS) * PANEL_ROWS;
}

/* Of both head dims together, as kernels work with them. */
static double padded_dims(const struct attn_problem *problem)
{
    return padded(problem->head_dim_qk) + padded(problem->head_dim_v);
}

/* As attn_flops() counts them, of one score. */
static double score_flops(const struct plan *plan)
{
    return (plan->direction == ATTN_FORWARD ? 2 : 5) * padded_dims(&plan->problem);
}

/* Rows that a tile owns of the side with the longest sequence of `length`. */
static double tile_rows(double length)
{
    return padded(lesser(length, TILE_ROWS));
}

/* -- the longest piece ---------------------------------------------------------------------------- */

/* A side of a problem, whatever its lengths. */
struct side {
    double longest; /* sequence */
    double all;     /* rows of all sequences */
};

static struct side side_of(int32_t batch, int64_t seqlen, const int32_t *cu_seqlens, int64_t total)
{
    double most = cu_seqlens != NULL ? (double)total : HUGE_VAL;

    return (struct side){
        .longest = lesser((double)seqlen, most),
        .all = lesser((double)batch * (double)seqlen, most),
    };
}

static struct side queries_of(const struct attn_problem *p)
{
    return side_of(p->batch, p->seqlen_q, p->lengths.cu_seqlens_q, p->lengths.total_q);
}

static struct side keys_of(const struct attn_problem *p)
{
    return side_of(p->batch, p->seqlen_k, p->lengths.cu_seqlens_k, p->lengths.total_k);
}

/*
 * How far the longest tile walks among those that own `rows` rows of a side; `length` is the other's.
 * A window bounded on both sides limits the walk. So does a bound, `slack`, on the side to which rows
 * run away from where the sequences are aligned: nobody sees further than the last row plus that.
 */
static double tile_walk(double rows, double length, int64_t before, int64_t after, int64_t slack)
{
    double walk = length;

    if (before != ATTN_UNBOUNDED && after != ATTN_UNBOUNDED) {
        walk = lesser(walk, (double)before + (double)after + TILE_ROWS);
    }
    if (slack != ATTN_UNBOUNDED) {
        walk = lesser(walk, rows + (double)slack);
    }
    return padded(walk);
}

/* Of so many walks along blocks of the other side, by a tile of a side whose longest sequence has so
 * many rows. */
static double walk_flops(const struct plan *plan, const struct backend *backend, double walks,
    double rows, double length)
{
    double steps = walks * ceil(length / BLOCK_ROWS);

    return fmax(walks * tile_rows(rows) * length * score_flops(plan), steps * backend->step_flops);
}

/* The mean says little: tiles of a plan may be empty but one. */
static struct piece longest_walk(const struct plan *plan, const struct backend *backend)
{
    const struct attn_problem *p = &plan->problem;
    double queries = queries_of(p).longest;
    double keys = keys_of(p).longest;
    bool top_left = p->alignment == ATTN_TOP_LEFT;
    double walk = tile_walk(queries, keys, p->window_left, p->window_right,
        top_left ? p->window_right : p->window_left);
    struct piece longest = {.flops = walk_flops(plan, backend, 1, queries, walk)};

    if (plan->direction == ATTN_BACKWARD) {
        double heads = (double)p->heads_q / (double)p->heads_kv;
        walk = tile_walk(keys, queries, p->window_left, p->window_right,
            top_left ? p->window_left : p->window_right);
        longest.flops = fmax(longest.flops, walk_flops(plan, backend, heads, keys, walk));
    }
    return longest;
}

/* One thing after another: `steps` sequences of a head, which have so many `bytes` together. */
static double sum_flops(const struct backend *backend, double steps, double bytes)
{
    return steps * backend->step_flops + bytes * backend->flops_per_byte;
}

/* A tile recomputes a block of scores for each batch and head that an element of dbias is a sum of; or,
 * where dbias has no matrix, reads what others have left there for each row. */
static double dbias_flops(const struct plan *plan, const struct backend *backend)
{
    const struct attn_problem *p = &plan->problem;
    const bool *broadcast = p->bias_broadcast;
    double heads = broadcast[1] ? p->heads_q : 1;
    double steps = heads * (broadcast[0] ? p->batch : 1);
    struct side side = broadcast[3] ? queries_of(p) : keys_of(p);

    if (!broadcast[2] && !broadcast[3]) {
        return walk_flops(
            plan, backend, steps, queries_of(p).longest, padded(lesser(side.longest, BLOCK_ROWS)));
    }
    double rows = steps * lesser(side.longest, TILE_ROWS);
    if (broadcast[2] && broadcast[3]) {
        rows = heads * (broadcast[0] ? side.all : side.longest);
    }
    return sum_flops(backend, steps, rows * sizeof(float));
}

/* Slopes of one element for all batches: outputs have no other strides of 0. */
static double dslopes_flops(const struct plan *plan, const struct backend *backend)
{
    const struct attn_problem *p = &plan->problem;
    bool all = p->dslopes.batch_stride == 0;
    struct side queries = queries_of(p);

    return sum_flops(
        backend, all ? p->batch : 1, (all ? queries.all : queries.longest) * sizeof(float));
}

static double dsinks_flops(const struct plan *plan, const struct backend *backend)
{
    const struct attn_problem *p = &plan->problem;
    double rows = queries_of(p).all;

    return sum_flops(backend, p->batch, rows * 2 * sizeof(float)) + rows * SINK_FLOPS;
}

/* An upper estimate. */
static struct piece longest_piece(const struct plan *plan, const struct backend *backend)
{
    const struct attn_problem *p = &plan->problem;
    const struct piece sums[] = {
        {p->dbias.data != NULL ? dbias_flops(plan, backend) : 0, WIRE_DBIAS},
        {p->dslopes.data != NULL ? dslopes_flops(plan, backend) : 0, WIRE_DSLOPES},
        {p->dsinks.data != NULL ? dsinks_flops(plan, backend) : 0, WIRE_DSINKS},
    };
    struct piece longest = longest_walk(plan, backend);

    for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++) {
        if (sums[i].flops > longest.flops) {
            longest = sums[i];
        }
    }
    return longest;
}

static bool refuse(const struct piece *piece, double most, struct wire_error *error)
{
    if (piece->role == 0) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the call's longest tile, %d rows and all they see, would take %.3g flops, but nobody "
            "waits for more than %.3g: shorten the sequences or windows",
            TILE_ROWS, piece->flops, most);
    }
    return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
        "%s: one tile adds up what all batches, heads or rows have for an element, as long as %.3g "
        "flops take, but nobody waits for more than %.3g: make the batch smaller",
        wire_role_name(piece->role), piece->flops, most);
}

/* -- all of it ------------------------------------------------------------------------------------ */

/* Bytes of all tensors, each element once. */
static double tensor_bytes(const struct plan *plan)
{
    double bytes = 0;

    for (uint32_t t = 0; t < plan->wire.tensors; t++) {
        const struct wire_tensor *tensor = &plan->wire.tensor[t];
        double all = (double)wire_dtype_bytes(tensor->dtype);
        for (uint32_t d = 0; d < tensor->dims; d++) {
            all *= (double)tensor->shape[d];
        }
        bytes += lesser(all, (double)plan->extent[t].high - (double)plan->extent[t].low);
    }
    return bytes;
}

/*
 * The plan's flops as kernels pad them, for every tile at least a block's and a part of the longest
 * piece's, and what touching its memory costs. Never 0, so nothing escapes being sliced; the engine
 * measures what a unit of it takes.
 */
static double total_flops(const struct plan *plan, double longest, double flops_per_byte)
{
    const struct attn_problem *problem = &plan->problem;
    double per_score = score_flops(plan);
    double queries = lesser((double)problem->seqlen_q, TILE_ROWS);
    double dims = (double)problem->head_dim_qk + (double)problem->head_dim_v;
    double padding = padded_dims(problem) / dims;
    double rows = queries > 0 ? padded(queries) : PANEL_ROWS;
    double block = rows * BLOCK_ROWS * per_score;
    double least = fmax(block, longest * LEAST_PART_OF_LONGEST);

    if (queries > 0) {
        padding *= rows / queries;
    }
    return attn_flops(plan->direction, problem) * padding + (double)plan->tiles * least +
           tensor_bytes(plan) * flops_per_byte;
}

bool cost_estimate(struct plan *plan, const struct backend *backend, struct wire_error *error)
{
    struct piece longest = longest_piece(plan, backend);

    if (longest.flops > backend->max_tile_flops) {
        return refuse(&longest, backend->max_tile_flops, error);
    }
    plan->flops = total_flops(plan, longest.flops, backend->flops_per_byte);
    return true;
}

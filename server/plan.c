#include "plan.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* What the families cut problems into: so many rows of one side, which walk blocks of the other. */
#define TILE_ROWS 128
#define BLOCK_ROWS 64
#define PANEL_ROWS 16 /* to whose multiples they pad rows and head dims */

/* Tiles of a plan are charged alike though they are not: none with less than this part of the longest,
 * lest a launch of many be many times longer than estimated. */
#define LEAST_PART_OF_LONGEST 0.0625

_Static_assert((int)WIRE_FP16 == (int)ATTN_FP16 && (int)WIRE_BF16 == (int)ATTN_BF16 &&
                   (int)WIRE_FP32 == (int)ATTN_FP32,
    "dtypes are numbered alike on the wire and in the kernels");
_Static_assert((int)WIRE_FORWARD == (int)ATTN_FORWARD && (int)WIRE_BACKWARD == (int)ATTN_BACKWARD,
    "directions are");
_Static_assert(
    (int)WIRE_TOP_LEFT == (int)ATTN_TOP_LEFT && (int)WIRE_BOTTOM_RIGHT == (int)ATTN_BOTTOM_RIGHT,
    "alignments are");

/*
 * Where a tensor goes in struct attn_problem, and what its dimensions are there: b batch, r row,
 * h head, c key, d head_dim, whose stride is 1. Tensors of a packed side come without their b.
 */
static const struct place {
    size_t offset;
    const char *dims; /* NULL: an array of lengths, of which the problem holds the address alone */
} places[WIRE_ROLE_END] = {
    [WIRE_Q] = {offsetof(struct attn_problem, q), "brhd"},
    [WIRE_K] = {offsetof(struct attn_problem, k), "brhd"},
    [WIRE_V] = {offsetof(struct attn_problem, v), "brhd"},
    [WIRE_OUT] = {offsetof(struct attn_problem, out), "brhd"},
    [WIRE_LSE] = {offsetof(struct attn_problem, lse), "bhr"},
    [WIRE_DOUT] = {offsetof(struct attn_problem, dout), "brhd"},
    [WIRE_DLSE] = {offsetof(struct attn_problem, dlse), "bhr"},
    [WIRE_DQ] = {offsetof(struct attn_problem, dq), "brhd"},
    [WIRE_DK] = {offsetof(struct attn_problem, dk), "brhd"},
    [WIRE_DV] = {offsetof(struct attn_problem, dv), "brhd"},
    [WIRE_BIAS] = {offsetof(struct attn_problem, bias), "bhrc"},
    [WIRE_DBIAS] = {offsetof(struct attn_problem, dbias), "bhrc"},
    [WIRE_SLOPES] = {offsetof(struct attn_problem, slopes), "bh"},
    [WIRE_DSLOPES] = {offsetof(struct attn_problem, dslopes), "bh"},
    [WIRE_SINKS] = {offsetof(struct attn_problem, sinks), "h"},
    [WIRE_DSINKS] = {offsetof(struct attn_problem, dsinks), "h"},
    [WIRE_CU_SEQLENS_Q] = {offsetof(struct attn_problem, lengths.cu_seqlens_q), NULL},
    [WIRE_CU_SEQLENS_K] = {offsetof(struct attn_problem, lengths.cu_seqlens_k), NULL},
    [WIRE_SEQLENS_K] = {offsetof(struct attn_problem, lengths.seqlens_k), NULL},
};

static void set_address(struct attn_problem *problem, enum wire_role role, void *data)
{
    const struct place *place = &places[role];
    char *at = (char *)problem + place->offset;

    if (place->dims == NULL) {
        *(const int32_t **)(void *)at = data;
    } else {
        ((struct attn_view *)(void *)at)->data = data;
    }
}

static bool is_empty(const struct wire_tensor *tensor)
{
    for (uint32_t d = 0; d < tensor->dims; d++) {
        if (tensor->shape[d] == 0) {
            return true;
        }
    }
    return false;
}

/* Strides of extents 0 and 1 mean nothing: those of 1 become 0, which broadcasts, and those of 0 must
 * not, for nothing may be written there. Nor do any others of a tensor without elements, which nobody
 * has checked: small ones make of its address none that is far away. */
static void set_strides(struct attn_problem *problem, const struct wire_tensor *tensor)
{
    const struct place *place = &places[tensor->role];

    if (place->dims == NULL) {
        return;
    }
    struct attn_view *view = (struct attn_view *)(void *)((char *)problem + place->offset);
    const char *dims = place->dims + (strlen(place->dims) - tensor->dims);
    bool empty = is_empty(tensor);
    for (uint32_t d = 0; d < tensor->dims; d++) {
        bool matters = tensor->shape[d] > 1 && !empty;
        int64_t stride = matters ? tensor->strides[d] : tensor->shape[d] == 0;
        switch (dims[d]) {
        case 'b':
            view->batch_stride = stride;
            break;
        case 'r':
            view->row_stride = stride;
            break;
        case 'h':
            view->head_stride = stride;
            break;
        case 'c':
            view->column_stride = empty ? 1 : stride;
            break;
        default:
            view->column_stride = 1;
        }
    }
}

/* A window beyond every sequence is cut to one that is just as wide, so that sums stay in range. */
static int64_t window_of(bool given, uint64_t keys)
{
    const uint64_t widest = 2 * (uint64_t)WIRE_MAX_SEQLEN;

    if (!given) {
        return ATTN_UNBOUNDED;
    }
    return (int64_t)(keys < widest ? keys : widest);
}

static void fill_problem(struct plan *plan, const struct wire_shape *shape)
{
    const struct wire_plan *wire = &plan->wire;
    struct attn_problem *problem = &plan->problem;

    *problem = (struct attn_problem){
        .dtype = (enum attn_dtype)shape->dtype,
        .batch = (int32_t)shape->batch,
        .heads_q = shape->heads_q,
        .heads_kv = shape->heads_kv,
        .head_dim_qk = shape->head_dim_qk,
        .head_dim_v = shape->head_dim_v,
        .seqlen_q = shape->seqlen_q,
        .seqlen_k = shape->seqlen_k,
        .scale = shape->scale,
        .softcap = shape->softcap,
        .window_left = window_of(wire->has_window_left, wire->window_left),
        .window_right = window_of(wire->has_window_right, wire->window_right),
        .alignment = (enum attn_alignment)wire->alignment,
        .deterministic = shape->deterministic,
        .dropout_threshold = shape->dropout_threshold,
        .lengths = {.total_q = shape->total_q, .total_k = shape->total_k},
        .bias_dtype = (enum attn_dtype)shape->bias_dtype,
    };
    memcpy(problem->bias_broadcast, shape->bias_broadcast, sizeof(problem->bias_broadcast));
    for (uint32_t t = 0; t < wire->tensors; t++) {
        set_address(problem, wire->tensor[t].role, plan); /* only says that the tensor is there */
        set_strides(problem, &wire->tensor[t]);
    }
}

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

/* Longest sequence of a side, whatever its lengths. */
static double longest(int64_t seqlen, const int32_t *cu_seqlens, int64_t total)
{
    return (double)(cu_seqlens != NULL && total < seqlen ? total : seqlen);
}

/*
 * Scores of the longest tile among those that own `rows` rows of a side and walk `length` of the other.
 * A window bounded on both sides limits the walk. So does a bound, `slack`, on the side to which rows
 * run away from where the sequences are aligned: nobody sees further than the last row plus that.
 */
static double tile_scores(double rows, double length, int64_t before, int64_t after, int64_t slack)
{
    double walk = length;

    if (before != ATTN_UNBOUNDED && after != ATTN_UNBOUNDED) {
        walk = lesser(walk, (double)before + (double)after + TILE_ROWS);
    }
    if (slack != ATTN_UNBOUNDED) {
        walk = lesser(walk, rows + (double)slack);
    }
    return tile_rows(rows) * padded(walk);
}

/* Scores of a tile that sums dbias over batches or heads: a block of each. */
static double dbias_scores(const struct attn_problem *problem, double queries, double keys)
{
    double batches = problem->bias_broadcast[0] ? problem->batch : 1;
    double heads = problem->bias_broadcast[1] ? problem->heads_q : 1;

    if (problem->dbias.data == NULL) {
        return 0;
    }
    return batches * heads * tile_rows(queries) * padded(lesser(keys, BLOCK_ROWS));
}

/* An upper estimate of the longest tile. The mean says little: tiles of a plan may be empty but one. */
static double longest_tile_flops(const struct plan *plan)
{
    const struct attn_problem *p = &plan->problem;
    const struct attn_lengths *lengths = &p->lengths;
    double queries = longest(p->seqlen_q, lengths->cu_seqlens_q, lengths->total_q);
    double keys = longest(p->seqlen_k, lengths->cu_seqlens_k, lengths->total_k);
    bool top_left = p->alignment == ATTN_TOP_LEFT;
    double scores = tile_scores(queries, keys, p->window_left, p->window_right,
        top_left ? p->window_right : p->window_left);

    if (plan->direction == ATTN_BACKWARD) {
        double heads = (double)p->heads_q / (double)p->heads_kv;
        double of_keys = heads * tile_scores(keys, queries, p->window_left, p->window_right,
                                     top_left ? p->window_left : p->window_right);
        scores = fmax(scores, fmax(of_keys, dbias_scores(p, queries, keys)));
    }
    return scores * score_flops(plan);
}

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
 * What the scheduler charges for the plan: its flops as kernels pad them, for every tile at least a
 * block's and a part of the longest tile's, and what touching its memory costs. Never 0, so nothing
 * escapes being sliced; the engine measures what a unit of it takes.
 */
static double cost_of(const struct plan *plan, double longest_tile, double flops_per_byte)
{
    const struct attn_problem *problem = &plan->problem;
    double per_score = score_flops(plan);
    double queries = lesser((double)problem->seqlen_q, TILE_ROWS);
    double dims = (double)problem->head_dim_qk + (double)problem->head_dim_v;
    double padding = padded_dims(problem) / dims;
    double rows = queries > 0 ? padded(queries) : PANEL_ROWS;
    double block = rows * BLOCK_ROWS * per_score;
    double least = fmax(block, longest_tile * LEAST_PART_OF_LONGEST);

    if (queries > 0) {
        padding *= rows / queries;
    }
    return attn_flops(plan->direction, problem) * padding + (double)plan->tiles * least +
           tensor_bytes(plan) * flops_per_byte;
}

/* Everything that the kernels know about a problem before it has addresses. */
static bool judge(struct plan *plan, struct backend *backend, struct wire_error *error)
{
    const char *why = NULL;

    plan->direction = (enum attn_direction)plan->wire.direction;
    plan->family = backend->ops->choose(backend, plan->direction, &plan->problem, &why);
    if (plan->family == NULL) {
        return wire_fail(error, WIRE_UNSUPPORTED, "%.250s", why);
    }
    plan->workspace_bytes = attn_workspace_bytes(plan->family, plan->direction, &plan->problem);
    if (plan->workspace_bytes > backend->workspace_bytes) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the call needs a workspace of %zu bytes, but the daemon has %" PRIu64 " in all",
            plan->workspace_bytes, backend->workspace_bytes);
    }
    plan->tiles = attn_tile_count(plan->family, plan->direction, &plan->problem);
    double longest_tile = longest_tile_flops(plan);
    if (longest_tile > backend->max_tile_flops) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the call's longest tile, %d rows and all they see, would take %.3g flops, but nobody "
            "waits for more than %.3g: shorten the sequences or windows",
            TILE_ROWS, longest_tile, backend->max_tile_flops);
    }
    plan->flops = cost_of(plan, longest_tile, backend->flops_per_byte);
    plan->group_key = attn_group_key(plan->family, plan->direction, &plan->problem);
    return true;
}

struct plan *plan_create(
    const struct wire_plan *wire, struct backend *backend, struct wire_error *error)
{
    struct wire_shape shape;
    struct plan *plan = calloc(1, sizeof(*plan));

    if (plan == NULL) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
        return NULL;
    }
    plan->wire = *wire;
    if (validate_plan(&plan->wire, &shape, plan->extent, error)) {
        fill_problem(plan, &shape);
        if (judge(plan, backend, error)) {
            return plan;
        }
    }
    free(plan);
    return NULL;
}

void plan_destroy(struct plan *plan)
{
    free(plan);
}

bool plan_resolve(const struct plan *plan, const struct wire_call *call,
    struct region *const region[WIRE_MAX_TENSORS], struct job *job, struct wire_error *error)
{
    uint64_t bytes[WIRE_MAX_TENSORS] = {0};

    for (uint32_t t = 0; t < plan->wire.tensors; t++) {
        bytes[t] = region[t]->bytes;
    }
    if (!validate_call(&plan->wire, plan->extent, call, bytes, error)) {
        return false;
    }
    job->direction = plan->direction;
    job->family = plan->family;
    job->problem = plan->problem;
    job->problem.dropout_seed = call->dropout_seed;
    job->problem.dropout_offset = call->dropout_offset;
    job->workspace_bytes = plan->workspace_bytes;
    job->tiles = plan->tiles;
    job->flops = plan->flops;
    job->group_key = plan->group_key;
    for (uint32_t t = 0; t < plan->wire.tensors; t++) {
        set_address(
            &job->problem, plan->wire.tensor[t].role, (char *)region[t]->base + call->offset[t]);
    }
    return true;
}

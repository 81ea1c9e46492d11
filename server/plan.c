#include "plan.h"

#include "cost.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

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
    plan->group_key = attn_group_key(plan->family, plan->direction, &plan->problem);
    return cost_estimate(plan, backend, error);
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

#include "plan.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

_Static_assert((int)WIRE_FP16 == (int)ATTN_FP16 && (int)WIRE_BF16 == (int)ATTN_BF16 &&
                   (int)WIRE_FP32 == (int)ATTN_FP32,
    "dtypes are numbered alike on the wire and in the kernels");
_Static_assert((int)WIRE_FORWARD == (int)ATTN_FORWARD && (int)WIRE_BACKWARD == (int)ATTN_BACKWARD,
    "directions are");
_Static_assert(
    (int)WIRE_TOP_LEFT == (int)ATTN_TOP_LEFT && (int)WIRE_BOTTOM_RIGHT == (int)ATTN_BOTTOM_RIGHT,
    "alignments are");

static struct attn_view *view_of(struct attn_problem *problem, enum wire_role role)
{
    switch (role) {
    case WIRE_Q:
        return &problem->q;
    case WIRE_K:
        return &problem->k;
    case WIRE_V:
        return &problem->v;
    case WIRE_OUT:
        return &problem->out;
    case WIRE_LSE:
        return &problem->lse;
    case WIRE_DOUT:
        return &problem->dout;
    case WIRE_DLSE:
        return &problem->dlse;
    case WIRE_DQ:
        return &problem->dq;
    case WIRE_DK:
        return &problem->dk;
    case WIRE_DV:
        return &problem->dv;
    default:
        break;
    }
    assert(false && "validated plans have only roles of the enum");
    return NULL;
}

/* Strides of extents 0 and 1 mean nothing; as 0 they cannot make equal plans differ. */
static int64_t stride_of(const struct wire_tensor *tensor, unsigned dim)
{
    return tensor->shape[dim] > 1 ? tensor->strides[dim] : 0;
}

static void set_strides(struct attn_view *view, const struct wire_tensor *tensor)
{
    bool per_row = tensor->role == WIRE_LSE || tensor->role == WIRE_DLSE;

    view->batch_stride = stride_of(tensor, 0);
    view->row_stride = stride_of(tensor, per_row ? 2 : 1);
    view->head_stride = stride_of(tensor, per_row ? 1 : 2);
    view->column_stride = per_row ? 0 : 1;
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
        .window_left = window_of(wire->has_window_left, wire->window_left),
        .window_right = window_of(wire->has_window_right, wire->window_right),
        .alignment = (enum attn_alignment)wire->alignment,
        .deterministic = true,
    };
    for (uint32_t t = 0; t < wire->tensors; t++) {
        struct attn_view *view = view_of(problem, wire->tensor[t].role);
        view->data = plan; /* only says that the tensor is there */
        set_strides(view, &wire->tensor[t]);
    }
}

/* Whether the plan asks for no more than fill_problem() hands on. */
static bool is_handed_on(const struct wire_plan *wire, struct wire_error *error)
{
    enum wire_role last = wire->tensor[wire->tensors - 1].role; /* they ascend */

    if (last > WIRE_DV) {
        return wire_fail(
            error, WIRE_UNSUPPORTED, "%s is not supported by this daemon", wire_role_name(last));
    }
    if (wire->softcap != 0 || wire->dropout_threshold != 0) {
        return wire_fail(error, WIRE_UNSUPPORTED, "%s is not supported by this daemon",
            wire->softcap != 0 ? "softcap" : "dropout");
    }
    return true;
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
    plan->flops = attn_flops(plan->direction, &plan->problem);
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
    if (validate_plan(&plan->wire, &shape, plan->extent, error) &&
        is_handed_on(&plan->wire, error)) {
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
    job->workspace_bytes = plan->workspace_bytes;
    job->tiles = plan->tiles;
    job->flops = plan->flops;
    job->group_key = plan->group_key;
    for (uint32_t t = 0; t < plan->wire.tensors; t++) {
        struct attn_view *view = view_of(&job->problem, plan->wire.tensor[t].role);
        view->data = (char *)region[t]->base + call->offset[t];
    }
    return true;
}

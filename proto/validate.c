#include "validate.h"

#include "overlap.h"

#include <inttypes.h>
#include <math.h>

#define MAX_SPAN \
    (INT64_C(1) << 62) /* of a tensor's bytes and of windows: sums of two cannot overflow */
#define ALL_DIMS 4     /* of every tensor but lse and dlse */
#define HEAD_DIM 3     /* its place among them */

/* What an extent of a tensor means; extents of one meaning must be equal in all tensors. */
enum meaning {
    BATCH,
    SEQLEN_Q,
    SEQLEN_K,
    HEADS_Q,
    HEADS_KV,
    HEAD_DIM_QK,
    HEAD_DIM_V,
    MEANINGS,
};

static const struct {
    const char *name;
    uint64_t least;
    uint64_t most;
} meanings[MEANINGS] = {
    [BATCH] = {"batch", 0, WIRE_MAX_BATCH},
    [SEQLEN_Q] = {"seqlen_q", 0, WIRE_MAX_SEQLEN},
    [SEQLEN_K] = {"seqlen_k", 0, WIRE_MAX_SEQLEN},
    [HEADS_Q] = {"heads_q", 0, WIRE_MAX_HEADS},
    [HEADS_KV] = {"heads_kv", 0, WIRE_MAX_HEADS},
    [HEAD_DIM_QK] = {"head_dim", 1, WIRE_MAX_HEAD_DIM},
    [HEAD_DIM_V] = {"head_dim_v", 1, WIRE_MAX_HEAD_DIM},
};

enum use {
    ABSENT,
    INPUT,
    OPTIONAL_INPUT,
    OUTPUT,
    OPTIONAL_OUTPUT,
};

#define QUERY_QK                              \
    {                                         \
        BATCH, SEQLEN_Q, HEADS_Q, HEAD_DIM_QK \
    }
#define QUERY_V                              \
    {                                        \
        BATCH, SEQLEN_Q, HEADS_Q, HEAD_DIM_V \
    }
#define KEY_QK                                 \
    {                                          \
        BATCH, SEQLEN_K, HEADS_KV, HEAD_DIM_QK \
    }
#define KEY_V                                 \
    {                                         \
        BATCH, SEQLEN_K, HEADS_KV, HEAD_DIM_V \
    }
#define ROWS                     \
    {                            \
        BATCH, HEADS_Q, SEQLEN_Q \
    }

static const struct {
    enum use use[WIRE_BACKWARD + 1]; /* by direction */
    bool always_fp32;
    uint32_t dims;
    enum meaning shape[WIRE_MAX_DIMS];
} roles[WIRE_ROLE_END] = {
    [WIRE_Q] = {{ABSENT, INPUT, INPUT}, false, ALL_DIMS, QUERY_QK},
    [WIRE_K] = {{ABSENT, INPUT, INPUT}, false, ALL_DIMS, KEY_QK},
    [WIRE_V] = {{ABSENT, INPUT, INPUT}, false, ALL_DIMS, KEY_V},
    [WIRE_OUT] = {{ABSENT, OUTPUT, INPUT}, false, ALL_DIMS, QUERY_V},
    [WIRE_LSE] = {{ABSENT, OPTIONAL_OUTPUT, INPUT}, true, 3, ROWS},
    [WIRE_DOUT] = {{ABSENT, ABSENT, INPUT}, false, ALL_DIMS, QUERY_V},
    [WIRE_DLSE] = {{ABSENT, ABSENT, OPTIONAL_INPUT}, true, 3, ROWS},
    [WIRE_DQ] = {{ABSENT, ABSENT, OUTPUT}, false, ALL_DIMS, QUERY_QK},
    [WIRE_DK] = {{ABSENT, ABSENT, OUTPUT}, false, ALL_DIMS, KEY_QK},
    [WIRE_DV] = {{ABSENT, ABSENT, OUTPUT}, false, ALL_DIMS, KEY_V},
};

/* The first tensor that has an extent of some meaning says what it is. */
struct defined {
    const struct wire_tensor *by;
    uint32_t dim;
};

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

static const char *direction_name(enum wire_direction direction)
{
    return direction == WIRE_FORWARD ? "forward" : "backward";
}

static enum use use_of(enum wire_direction direction, enum wire_role role)
{
    if ((unsigned)direction > WIRE_BACKWARD || (unsigned)role >= WIRE_ROLE_END) {
        return ABSENT;
    }
    return roles[role].use[direction];
}

static bool is_empty(const struct wire_tensor *tensor)
{
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        if (tensor->shape[dim] == 0) {
            return true;
        }
    }
    return false;
}

/* ---- Plans -------------------------------------------------------------------------------------- */

static bool check_options(const struct wire_plan *plan, struct wire_error *error)
{
    if (plan->direction != WIRE_FORWARD && plan->direction != WIRE_BACKWARD) {
        return fail(error, "direction is %d, neither forward nor backward", (int)plan->direction);
    }
    if (plan->alignment != WIRE_TOP_LEFT && plan->alignment != WIRE_BOTTOM_RIGHT) {
        return fail(
            error, "alignment is %d, neither top-left nor bottom-right", (int)plan->alignment);
    }
    if (plan->has_scale && !isfinite(plan->scale)) {
        return fail(error, "scale is not a finite number");
    }
    if (plan->has_window_left && plan->window_left > (uint64_t)MAX_SPAN) {
        return fail(error, "window_left is %" PRIu64 ", more than 2^62", plan->window_left);
    }
    if (plan->has_window_right && plan->window_right > (uint64_t)MAX_SPAN) {
        return fail(error, "window_right is %" PRIu64 ", more than 2^62", plan->window_right);
    }
    return true;
}

static bool check_roles(const struct wire_plan *plan, struct wire_error *error)
{
    enum wire_role last = 0;

    if (plan->tensors > WIRE_MAX_TENSORS) {
        return fail(error, "tensors has %" PRIu32 " members, more than %d", plan->tensors,
            WIRE_MAX_TENSORS);
    }
    for (uint32_t i = 0; i < plan->tensors; i++) {
        enum wire_role role = plan->tensor[i].role;
        if (use_of(plan->direction, role) == ABSENT) {
            return fail(error, "tensors[%" PRIu32 "] is %s (role %d), which no %s call has", i,
                wire_role_name(role), (int)role, direction_name(plan->direction));
        }
        if (role <= last) {
            return fail(error,
                "tensors[%" PRIu32 "] is %s after %s: roles must ascend, none may come twice", i,
                wire_role_name(role), wire_role_name(last));
        }
        last = role;
    }
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        enum use use = use_of(plan->direction, role);
        if ((use == INPUT || use == OUTPUT) && wire_plan_tensor(plan, role) == NULL) {
            return fail(error, "%s is missing, which every %s call needs", wire_role_name(role),
                direction_name(plan->direction));
        }
    }
    return true;
}

static bool check_dtype(
    const struct wire_tensor *tensor, const struct wire_tensor *q, struct wire_error *error)
{
    const char *name = wire_role_name(tensor->role);

    if (wire_dtype_bytes(tensor->dtype) == 0) {
        return fail(error, "%s.dtype is %d, none of fp16, bf16 and fp32", name, (int)tensor->dtype);
    }
    if (roles[tensor->role].always_fp32) {
        return tensor->dtype == WIRE_FP32 || fail(error, "%s.dtype is %s, but must be fp32", name,
                                                 wire_dtype_name(tensor->dtype));
    }
    return tensor->dtype == q->dtype ||
           fail(error, "%s.dtype is %s, but q.dtype is %s", name, wire_dtype_name(tensor->dtype),
               wire_dtype_name(q->dtype));
}

/* The shape within limits, and equal to what earlier tensors made of it. */
static bool check_shape(
    const struct wire_tensor *tensor, struct defined defined[MEANINGS], struct wire_error *error)
{
    const char *name = wire_role_name(tensor->role);
    uint32_t dims = roles[tensor->role].dims;

    if (tensor->dims != dims) {
        return fail(error, "%s has %" PRIu32 " dimensions, but must have %" PRIu32, name,
            tensor->dims, dims);
    }
    for (uint32_t dim = 0; dim < dims; dim++) {
        enum meaning meaning = roles[tensor->role].shape[dim];
        struct defined *first = &defined[meaning];
        uint64_t extent = tensor->shape[dim];
        if (extent < meanings[meaning].least || extent > meanings[meaning].most) {
            return fail(error,
                "%s.shape[%" PRIu32 "] (%s) is %" PRIu64 ", not between %" PRIu64 " and %" PRIu64,
                name, dim, meanings[meaning].name, extent, meanings[meaning].least,
                meanings[meaning].most);
        }
        if (first->by == NULL) {
            *first = (struct defined){tensor, dim};
        } else if (first->by->shape[first->dim] != extent) {
            return fail(error,
                "%s.shape[%" PRIu32 "] (%s) is %" PRIu64 ", but %s.shape[%" PRIu32 "] is %" PRIu64,
                name, dim, meanings[meaning].name, extent, wire_role_name(first->by->role),
                first->dim, first->by->shape[first->dim]);
        }
    }
    return true;
}

/* The bytes that a tensor touches. Strides of extents 0 and 1 mean nothing, those of a tensor without
 * elements neither. */
static bool find_extent(
    const struct wire_tensor *tensor, struct wire_extent *extent, struct wire_error *error)
{
    const char *name = wire_role_name(tensor->role);
    int64_t size = (int64_t)wire_dtype_bytes(tensor->dtype);
    int64_t bytes = size; /* of all elements, were none shared: nobody's loop counters overflow */

    *extent = (struct wire_extent){0, 0};
    if (is_empty(tensor)) {
        return true;
    }
    extent->high = size;
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        int64_t steps = (int64_t)tensor->shape[dim] - 1;
        int64_t span;
        if (__builtin_mul_overflow(bytes, steps + 1, &bytes) || bytes > MAX_SPAN) {
            return fail(error, "%s has more than 2^62 bytes", name);
        }
        if (steps == 0) {
            continue;
        }
        if (__builtin_mul_overflow(steps * size, tensor->strides[dim], &span) ||
            __builtin_add_overflow(span < 0 ? extent->low : extent->high, span,
                span < 0 ? &extent->low : &extent->high) ||
            extent->low < -MAX_SPAN || extent->high > MAX_SPAN) {
            return fail(error,
                "%s.strides[%" PRIu32 "] is %" PRId64
                ": with it the tensor spans more than 2^62 bytes",
                name, dim, tensor->strides[dim]);
        }
    }
    return true;
}

static bool check_strides(
    const struct wire_tensor *tensor, bool is_output, struct wire_error *error)
{
    const char *name = wire_role_name(tensor->role);
    uint32_t dim;

    if (is_empty(tensor)) {
        return true;
    }
    for (dim = 0; dim < tensor->dims; dim++) {
        int64_t stride = tensor->strides[dim];
        if (tensor->shape[dim] == 1) {
            continue;
        }
        if (tensor->dims == ALL_DIMS && dim == HEAD_DIM && stride != 1) {
            return fail(
                error, "%s.strides[%" PRIu32 "] is %" PRId64 ", but must be 1", name, dim, stride);
        }
        if (is_output && stride <= 0) {
            return fail(error,
                "%s.strides[%" PRIu32 "] is %" PRId64 ", but an output's strides must be positive",
                name, dim, stride);
        }
    }
    if (is_output && overlap_within(tensor, &dim)) {
        return fail(error,
            "%s.strides[%" PRIu32 "] is %" PRId64
            ", less than the span of its smaller strides: an output's elements may not overlap",
            name, dim, tensor->strides[dim]);
    }
    return true;
}

static bool check_heads(const struct wire_plan *plan, struct wire_error *error)
{
    uint64_t heads_q = plan->tensor[0].shape[2];
    uint64_t heads_kv = plan->tensor[1].shape[2];

    if (heads_kv == 0 ? heads_q != 0 : heads_q % heads_kv != 0) {
        return fail(error, "k.shape[2] is %" PRIu64 ", which does not divide q's %" PRIu64 " heads",
            heads_kv, heads_q);
    }
    return true;
}

static void fill_shape(const struct wire_plan *plan, struct wire_shape *shape)
{
    /* Roles ascend, and these three are always there. */
    const struct wire_tensor *q = &plan->tensor[0];
    const struct wire_tensor *k = &plan->tensor[1];
    const struct wire_tensor *v = &plan->tensor[2];

    *shape = (struct wire_shape){
        .batch = (int64_t)q->shape[0],
        .seqlen_q = (int64_t)q->shape[1],
        .seqlen_k = (int64_t)k->shape[1],
        .heads_q = (int32_t)q->shape[2],
        .heads_kv = (int32_t)k->shape[2],
        .head_dim_qk = (int32_t)q->shape[3],
        .head_dim_v = (int32_t)v->shape[3],
        .dtype = q->dtype,
        .scale = plan->has_scale ? plan->scale : (float)(1.0 / sqrt((double)q->shape[3])),
    };
}

/* ---- Calls -------------------------------------------------------------------------------------- */

static bool is_placed(const struct wire_extent *extent)
{
    return extent->low < extent->high;
}

static bool check_place(const struct wire_tensor *tensor, const struct wire_extent *extent,
    uint64_t offset, uint64_t region_bytes, struct wire_error *error)
{
    const char *name = wire_role_name(tensor->role);
    size_t size = wire_dtype_bytes(tensor->dtype);

    if (!is_placed(extent)) { /* it has an address all the same */
        return offset <= region_bytes ||
               fail(error, "%s.offset is %" PRIu64 ", outside of the region of %" PRIu64 " bytes",
                   name, offset, region_bytes);
    }
    if (offset % size != 0) {
        return fail(error,
            "%s.offset is %" PRIu64 ", no multiple of the %zu bytes of an %s element", name, offset,
            size, wire_dtype_name(tensor->dtype));
    }
    if (offset < (uint64_t)-extent->low) {
        return fail(error,
            "%s.offset is %" PRIu64 ", but the tensor begins %" PRId64
            " bytes before it: outside of the region",
            name, offset, -extent->low);
    }
    if (offset > region_bytes || region_bytes - offset < (uint64_t)extent->high) {
        return fail(error,
            "%s.offset is %" PRIu64 ", but the tensor ends %" PRId64
            " bytes after it: outside of the region of %" PRIu64 " bytes",
            name, offset, extent->high, region_bytes);
    }
    return true;
}

static bool do_overlap(const struct wire_plan *plan, const struct wire_extent *extents,
    const struct wire_call *call, uint32_t i, uint32_t j)
{
    /* check_place has shown that these sums lie inside of a region. */
    uint64_t begin_i = call->offset[i] - (uint64_t)-extents[i].low;
    uint64_t begin_j = call->offset[j] - (uint64_t)-extents[j].low;
    uint64_t end_i = call->offset[i] + (uint64_t)extents[i].high;
    uint64_t end_j = call->offset[j] + (uint64_t)extents[j].high;

    if (begin_i >= end_j || begin_j >= end_i) {
        return false;
    }
    if (call->offset[i] > call->offset[j]) {
        uint32_t upper = i;
        i = j;
        j = upper;
    }
    uint64_t distance = call->offset[j] - call->offset[i];
    return !overlap_is_interleaved(&plan->tensor[i], &plan->tensor[j],
        (int64_t)(distance / wire_dtype_bytes(plan->tensor[i].dtype)));
}

static bool check_overlap(const struct wire_plan *plan, const struct wire_extent *extents,
    const struct wire_call *call, uint32_t output, struct wire_error *error)
{
    for (uint32_t other = 0; other < plan->tensors; other++) {
        if (other != output && is_placed(&extents[other]) &&
            call->region[other] == call->region[output] &&
            do_overlap(plan, extents, call, output, other)) {
            return fail(error, "%s overlaps %s in memory, but an output must not",
                wire_role_name(plan->tensor[output].role),
                wire_role_name(plan->tensor[other].role));
        }
    }
    return true;
}

/* ---- Public ------------------------------------------------------------------------------------- */

bool validate_plan(const struct wire_plan *plan, struct wire_shape *shape,
    struct wire_extent extents[WIRE_MAX_TENSORS], struct wire_error *error)
{
    struct defined defined[MEANINGS] = {{NULL, 0}};

    if (!check_options(plan, error) || !check_roles(plan, error)) {
        return false;
    }
    for (uint32_t i = 0; i < plan->tensors; i++) {
        const struct wire_tensor *tensor = &plan->tensor[i];
        if (!check_dtype(tensor, &plan->tensor[0], error) || !check_shape(tensor, defined, error) ||
            !find_extent(tensor, &extents[i], error) ||
            !check_strides(tensor, wire_role_is_output(plan->direction, tensor->role), error)) {
            return false;
        }
    }
    if (!check_heads(plan, error)) {
        return false;
    }
    fill_shape(plan, shape);
    return true;
}

bool validate_call(const struct wire_plan *plan, const struct wire_extent extents[WIRE_MAX_TENSORS],
    const struct wire_call *call, const uint64_t region_bytes[WIRE_MAX_TENSORS],
    struct wire_error *error)
{
    if (call->tensors != plan->tensors) {
        return fail(error, "the call has %" PRIu32 " tensors, but its plan has %" PRIu32,
            call->tensors, plan->tensors);
    }
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (!check_place(&plan->tensor[i], &extents[i], call->offset[i], region_bytes[i], error)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (is_placed(&extents[i]) && wire_role_is_output(plan->direction, plan->tensor[i].role) &&
            !check_overlap(plan, extents, call, i, error)) {
            return false;
        }
    }
    return true;
}

bool wire_role_is_output(enum wire_direction direction, enum wire_role role)
{
    enum use use = use_of(direction, role);
    return use == OUTPUT || use == OPTIONAL_OUTPUT;
}

const struct wire_tensor *wire_plan_tensor(const struct wire_plan *plan, enum wire_role role)
{
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (plan->tensor[i].role == role) {
            return &plan->tensor[i];
        }
    }
    return NULL;
}

#include "validate.h"

#include "overlap.h"
#include "role.h"

#include <inttypes.h>
#include <math.h>

#define MAX_SPAN \
    (INT64_C(1) << 62) /* of a tensor's bytes and of windows: sums of two cannot overflow */

static const struct {
    const char *name;
    const char *packed; /* its name in a packed tensor */
    uint64_t most;
    uint64_t least;
} extents_of[ROLE_EXTENTS] = {
    [ROLE_BATCH] = {"batch", "batch", WIRE_MAX_BATCH, 0},
    [ROLE_SEQLEN_Q] = {"seqlen_q", "total_q", WIRE_MAX_SEQLEN, 0},
    [ROLE_SEQLEN_K] = {"seqlen_k", "total_k", WIRE_MAX_SEQLEN, 0},
    [ROLE_HEADS_Q] = {"heads_q", "heads_q", WIRE_MAX_HEADS, 0},
    [ROLE_HEADS_KV] = {"heads_kv", "heads_kv", WIRE_MAX_HEADS, 0},
    [ROLE_HEAD_DIM] = {"head_dim", "head_dim", WIRE_MAX_HEAD_DIM, 1},
    [ROLE_HEAD_DIM_V] = {"head_dim_v", "head_dim_v", WIRE_MAX_HEAD_DIM, 1},
};

/* The first tensor that has an extent of some kind says what it is. */
struct defined {
    const struct wire_tensor *by;
    uint32_t dim;
    uint64_t value;
};

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

static const char *direction_name(enum wire_direction direction)
{
    return direction == WIRE_FORWARD ? "forward" : "backward";
}

static bool has(const struct wire_plan *plan, enum wire_role role)
{
    return wire_plan_tensor(plan, role) != NULL;
}

static bool is_packed(const struct wire_plan *plan, enum wire_role role)
{
    enum wire_role lengths = role_table[role].lengths;
    return lengths != 0 && has(plan, lengths);
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

/* ---- Options ------------------------------------------------------------------------------------ */

static bool check_windows(const struct wire_plan *plan, struct wire_error *error)
{
    if (plan->has_window_left && plan->window_left > (uint64_t)MAX_SPAN) {
        return fail(error, "window_left is %" PRIu64 ", more than 2^62", plan->window_left);
    }
    if (plan->has_window_right && plan->window_right > (uint64_t)MAX_SPAN) {
        return fail(error, "window_right is %" PRIu64 ", more than 2^62", plan->window_right);
    }
    return true;
}

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
    if (!(plan->softcap >= 0 && plan->softcap <= WIRE_MAX_SOFTCAP)) {
        return fail(error, "softcap is %g, but must not be below 0 (none) nor above %g",
            (double)plan->softcap, (double)WIRE_MAX_SOFTCAP);
    }
    if (plan->dropout_threshold >= WIRE_DROPOUT_ONE) {
        return fail(error,
            "dropout_threshold is %" PRIu32 ", but must be below %d, which would drop everything",
            plan->dropout_threshold, WIRE_DROPOUT_ONE);
    }
    return check_windows(plan, error);
}

static bool check_longest(const struct wire_plan *plan, enum wire_role lengths, const char *name,
    bool given, uint64_t longest, struct wire_error *error)
{
    if (given && !has(plan, lengths)) {
        return fail(error, "%s is given, but %s is not", name, wire_role_name(lengths));
    }
    return !given || longest <= (uint64_t)WIRE_MAX_SEQLEN ||
           fail(error, "%s is %" PRIu64 ", more than %" PRId64, name, longest, WIRE_MAX_SEQLEN);
}

/* ---- Roles -------------------------------------------------------------------------------------- */

static bool check_presence(
    const struct wire_plan *plan, enum wire_role role, struct wire_error *error)
{
    enum role_use use = role_use(plan->direction, role);
    enum wire_role like = role_table[role].like;

    if ((use == ROLE_INPUT || use == ROLE_OUTPUT) && !has(plan, role)) {
        return fail(error, "%s is missing, which every %s call needs", wire_role_name(role),
            direction_name(plan->direction));
    }
    return like == 0 || !has(plan, role) || has(plan, like) ||
           fail(error, "%s is given, but %s is not", wire_role_name(role), wire_role_name(like));
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
        if (role_use(plan->direction, role) == ROLE_ABSENT) {
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
        if (!check_presence(plan, role, error)) {
            return false;
        }
    }
    return true;
}

/* ---- Tensors ------------------------------------------------------------------------------------ */

static bool check_dtype_as_q(
    const struct wire_tensor *tensor, const struct wire_tensor *q, struct wire_error *error)
{
    enum wire_dtype dtype = tensor->dtype;
    const char *name = wire_role_name(tensor->role);

    if (dtype != WIRE_FP16 && dtype != WIRE_BF16 && dtype != WIRE_FP32) {
        return fail(error, "%s.dtype is %d, none of fp16, bf16 and fp32", name, (int)dtype);
    }
    bool or_fp32 = role_table[tensor->role].dtype == ROLE_AS_Q_OR_FP32;
    return dtype == q->dtype || (or_fp32 && dtype == WIRE_FP32) ||
           fail(error, "%s.dtype is %s, but q.dtype is %s%s", name, wire_dtype_name(dtype),
               wire_dtype_name(q->dtype), or_fp32 ? ": it must be that or fp32" : "");
}

static bool check_dtype(
    const struct wire_plan *plan, const struct wire_tensor *tensor, struct wire_error *error)
{
    const struct role *role = &role_table[tensor->role];
    const struct wire_tensor *like = wire_plan_tensor(plan, role->like);
    enum wire_dtype must = role->dtype == ROLE_INT32 ? WIRE_INT32 : WIRE_FP32;
    const char *name = wire_role_name(tensor->role);

    if (like != NULL) {
        return tensor->dtype == like->dtype ||
               fail(error, "%s.dtype is %s, but %s.dtype is %s", name,
                   wire_dtype_name(tensor->dtype), wire_role_name(like->role),
                   wire_dtype_name(like->dtype));
    }
    if (role->dtype == ROLE_AS_Q || role->dtype == ROLE_AS_Q_OR_FP32) {
        return check_dtype_as_q(tensor, &plan->tensor[0], error);
    }
    return tensor->dtype == must || fail(error, "%s.dtype is %s, but must be %s", name,
                                        wire_dtype_name(tensor->dtype), wire_dtype_name(must));
}

/* An extent that may be 1 or what the other tensors made of it, the longest sequence of a packed side. */
static bool check_broadcast(const struct wire_plan *plan, const struct wire_tensor *tensor,
    uint32_t dim, const struct defined defined[ROLE_EXTENTS], struct wire_error *error)
{
    enum role_extent kind = role_table[tensor->role].extent[dim];
    uint64_t expected = defined[kind].value;

    if (kind == ROLE_SEQLEN_Q && plan->has_max_seqlen_q) {
        expected = plan->max_seqlen_q;
    } else if (kind == ROLE_SEQLEN_K && plan->has_max_seqlen_k) {
        expected = plan->max_seqlen_k;
    }
    return tensor->shape[dim] == 1 || tensor->shape[dim] == expected ||
           fail(error, "%s.shape[%" PRIu32 "] (%s) is %" PRIu64 ", neither 1 nor %" PRIu64,
               wire_role_name(tensor->role), dim, extents_of[kind].name, tensor->shape[dim],
               expected);
}

/* An extent within limits, and equal to what earlier tensors made of it. */
static bool check_extent(const struct wire_tensor *tensor, uint32_t dim, enum role_extent kind,
    bool packed, struct defined defined[ROLE_EXTENTS], struct wire_error *error)
{
    const char *role = wire_role_name(tensor->role);
    const char *name = packed ? extents_of[kind].packed : extents_of[kind].name;
    uint64_t extra = role_table[tensor->role].extra;
    const char *plus = extra != 0 ? " + 1" : "";
    uint64_t extent = tensor->shape[dim];
    struct defined *first = &defined[kind];

    if (extent < extents_of[kind].least + extra || extent > extents_of[kind].most + extra) {
        return fail(error,
            "%s.shape[%" PRIu32 "] (%s%s) is %" PRIu64 ", not between %" PRIu64 " and %" PRIu64,
            role, dim, name, plus, extent, extents_of[kind].least + extra,
            extents_of[kind].most + extra);
    }
    if (first->by == NULL) {
        *first = (struct defined){tensor, dim, extent - extra};
    } else if (first->value != extent - extra) {
        return fail(error,
            "%s.shape[%" PRIu32 "] (%s%s) is %" PRIu64 ", but %s.shape[%" PRIu32 "]%s is %" PRIu64,
            role, dim, name, plus, extent, wire_role_name(first->by->role), first->dim,
            role_table[first->by->role].extra != 0 ? " (batch + 1)" : "",
            first->by->shape[first->dim]);
    }
    return true;
}

static bool check_likeness(
    const struct wire_tensor *tensor, const struct wire_tensor *like, struct wire_error *error)
{
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        if (tensor->shape[dim] != like->shape[dim]) {
            return fail(error,
                "%s.shape[%" PRIu32 "] is %" PRIu64 ", but %s.shape[%" PRIu32 "] is %" PRIu64,
                wire_role_name(tensor->role), dim, tensor->shape[dim], wire_role_name(like->role),
                dim, like->shape[dim]);
        }
    }
    return true;
}

static bool check_shape(const struct wire_plan *plan, const struct wire_tensor *tensor,
    struct defined defined[ROLE_EXTENTS], struct wire_error *error)
{
    const struct role *role = &role_table[tensor->role];
    const struct wire_tensor *like = wire_plan_tensor(plan, role->like);
    bool packed = is_packed(plan, tensor->role);
    uint32_t dims = role->dims - packed;

    if (tensor->dims != dims) {
        return fail(error, "%s has %" PRIu32 " dimensions, but must have %" PRIu32 "%s%s",
            wire_role_name(tensor->role), tensor->dims, dims, packed ? " with " : "",
            packed ? wire_role_name(role->lengths) : "");
    }
    if (like != NULL) {
        return check_likeness(tensor, like, error);
    }
    for (uint32_t dim = 0; dim < dims; dim++) {
        bool good =
            role->broadcast & 1U << dim
                ? check_broadcast(plan, tensor, dim, defined, error)
                : check_extent(tensor, dim, role->extent[dim + packed], packed, defined, error);
        if (!good) {
            return false;
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
    bool is_scattered = role_table[tensor->role].is_scattered;
    uint32_t dim;

    if (is_empty(tensor)) {
        return true;
    }
    for (dim = 0; dim < tensor->dims; dim++) {
        int64_t stride = tensor->strides[dim];
        if (tensor->shape[dim] == 1) {
            continue;
        }
        if (!is_scattered && dim == tensor->dims - 1 && stride != 1) {
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

/* Those that say what the extents are, or those that go by them. */
static bool check_tensors(const struct wire_plan *plan, bool followers,
    struct defined defined[ROLE_EXTENTS], struct wire_extent extents[WIRE_MAX_TENSORS],
    struct wire_error *error)
{
    for (uint32_t i = 0; i < plan->tensors; i++) {
        const struct wire_tensor *tensor = &plan->tensor[i];
        const struct role *role = &role_table[tensor->role];
        if ((role->like != 0 || role->broadcast != 0) != followers) {
            continue;
        }
        if (!check_dtype(plan, tensor, error) || !check_shape(plan, tensor, defined, error) ||
            !find_extent(tensor, &extents[i], error) ||
            !check_strides(tensor, wire_role_is_output(plan->direction, tensor->role), error)) {
            return false;
        }
    }
    return true;
}

static bool check_heads(const struct defined defined[ROLE_EXTENTS], struct wire_error *error)
{
    const struct defined *kv = &defined[ROLE_HEADS_KV];
    uint64_t heads_q = defined[ROLE_HEADS_Q].value;

    if (kv->value == 0 ? heads_q != 0 : heads_q % kv->value != 0) {
        return fail(error,
            "k.shape[%" PRIu32 "] is %" PRIu64 ", which does not divide q's %" PRIu64 " heads",
            kv->dim, kv->value, heads_q);
    }
    return true;
}

/* ---- What is found out -------------------------------------------------------------------------- */

static void fill_bias(const struct wire_plan *plan, struct wire_shape *shape)
{
    const struct wire_tensor *bias = wire_plan_tensor(plan, WIRE_BIAS);
    const struct wire_tensor *slopes = wire_plan_tensor(plan, WIRE_SLOPES);

    if (bias != NULL) {
        shape->bias_dtype = bias->dtype;
        for (uint32_t dim = 0; dim < WIRE_MAX_DIMS; dim++) {
            shape->bias_broadcast[dim] = bias->shape[dim] == 1;
        }
    }
    shape->slopes_broadcast = slopes != NULL && slopes->shape[0] == 1;
}

static void fill_shape(const struct wire_plan *plan, const struct defined defined[ROLE_EXTENTS],
    struct wire_shape *shape)
{
    uint64_t rows_q = defined[ROLE_SEQLEN_Q].value;
    uint64_t rows_k = defined[ROLE_SEQLEN_K].value;
    bool packed_q = is_packed(plan, WIRE_Q);
    bool packed_k = is_packed(plan, WIRE_K);
    double head_dim = (double)defined[ROLE_HEAD_DIM].value;

    *shape = (struct wire_shape){
        .batch = (int64_t)defined[ROLE_BATCH].value,
        .seqlen_q = (int64_t)(plan->has_max_seqlen_q ? plan->max_seqlen_q : rows_q),
        .seqlen_k = (int64_t)(plan->has_max_seqlen_k ? plan->max_seqlen_k : rows_k),
        .packed_q = packed_q,
        .packed_k = packed_k,
        .total_q = packed_q ? (int64_t)rows_q : 0,
        .total_k = packed_k ? (int64_t)rows_k : 0,
        .heads_q = (int32_t)defined[ROLE_HEADS_Q].value,
        .heads_kv = (int32_t)defined[ROLE_HEADS_KV].value,
        .head_dim_qk = (int32_t)defined[ROLE_HEAD_DIM].value,
        .head_dim_v = (int32_t)defined[ROLE_HEAD_DIM_V].value,
        .dtype = plan->tensor[0].dtype,
        .scale = plan->has_scale ? plan->scale : (float)(1.0 / sqrt(head_dim)),
        .softcap = plan->softcap,
        .dropout_threshold = plan->dropout_threshold,
        .deterministic = plan->deterministic,
    };
    fill_bias(plan, shape);
}

/* ---- Public ------------------------------------------------------------------------------------- */

bool validate_plan(const struct wire_plan *plan, struct wire_shape *shape,
    struct wire_extent extents[WIRE_MAX_TENSORS], struct wire_error *error)
{
    struct defined defined[ROLE_EXTENTS] = {{NULL, 0, 0}};

    if (!check_options(plan, error) || !check_roles(plan, error) ||
        !check_longest(plan, WIRE_CU_SEQLENS_Q, "max_seqlen_q", plan->has_max_seqlen_q,
            plan->max_seqlen_q, error) ||
        !check_longest(plan, WIRE_CU_SEQLENS_K, "max_seqlen_k", plan->has_max_seqlen_k,
            plan->max_seqlen_k, error) ||
        !check_tensors(plan, false, defined, extents, error) || !check_heads(defined, error) ||
        !check_tensors(plan, true, defined, extents, error)) {
        return false;
    }
    fill_shape(plan, defined, shape);
    return true;
}

bool wire_role_is_output(enum wire_direction direction, enum wire_role role)
{
    enum role_use use = role_use(direction, role);
    return use == ROLE_OUTPUT || use == ROLE_OPTIONAL_OUTPUT;
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

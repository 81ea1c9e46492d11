#include "request.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define LARGEST_STRUCT 4096     /* what claims to be larger is no struct of ours but garbage */
#define BACKWARD_ONLY WIRE_DOUT /* the first role that a forward request does not have */

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

/* Where a request has the tensor of a role; 0: nowhere. */
static const size_t members[WIRE_ROLE_END] = {
    [WIRE_Q] = offsetof(struct attnd_request, q),
    [WIRE_K] = offsetof(struct attnd_request, k),
    [WIRE_V] = offsetof(struct attnd_request, v),
    [WIRE_OUT] = offsetof(struct attnd_request, out),
    [WIRE_LSE] = offsetof(struct attnd_request, lse),
    [WIRE_DOUT] = offsetof(struct attnd_request, dout),
    [WIRE_DLSE] = offsetof(struct attnd_request, dlse),
    [WIRE_DQ] = offsetof(struct attnd_request, dq),
    [WIRE_DK] = offsetof(struct attnd_request, dk),
    [WIRE_DV] = offsetof(struct attnd_request, dv),
};

static bool is_rows(enum wire_role role)
{
    return role == WIRE_LSE || role == WIRE_DLSE;
}

/* Whether the tensor is there just if a request of this direction has it. */
static bool check_presence(
    const struct attnd_request *request, enum wire_role role, struct wire_error *error)
{
    bool forward = request->direction == ATTND_FORWARD;
    bool foreign = members[role] == 0 || (forward && role >= BACKWARD_ONLY);
    bool optional = role == (forward ? WIRE_LSE : WIRE_DLSE);
    const DLTensor *tensor = request_tensor(request, role);
    if (tensor && foreign) {
        return fail(
            error, "%s is given, which a forward request does not have", wire_role_name(role));
    }
    if (!tensor && !foreign && !optional) {
        return fail(error, "%s is NULL", wire_role_name(role));
    }
    return true;
}

static bool read_dtype(
    const char *name, const DLTensor *tensor, enum wire_dtype *dtype, struct wire_error *error)
{
    DLDataType type = tensor->dtype;
    if (type.lanes != 1) {
        return fail(error, "%s.dtype.lanes is %d, but must be 1", name, (int)type.lanes);
    }
    if (type.code == kDLFloat && type.bits == 16) {
        *dtype = WIRE_FP16;
    } else if (type.code == kDLBfloat && type.bits == 16) {
        *dtype = WIRE_BF16;
    } else if (type.code == kDLFloat && type.bits == 32) {
        *dtype = WIRE_FP32;
    } else {
        return wire_fail(error, WIRE_UNSUPPORTED,
            "%s.dtype has code %d and %d bits; supported are float16 (2, 16), bfloat16 (4, 16) "
            "and float32 (2, 32)",
            name, (int)type.code, (int)type.bits);
    }
    return true;
}

/* Row-major strides. An overflow is left to the validator, which refuses such shapes before it looks
 * at strides. */
static void set_compact_strides(struct wire_tensor *tensor)
{
    uint64_t stride = 1;
    for (uint32_t dim = tensor->dims; dim-- > 0;) {
        tensor->strides[dim] = (int64_t)(stride & INT64_MAX);
        stride *= tensor->shape[dim] ? tensor->shape[dim] : 1;
    }
}

static bool read_shape(
    const char *name, const DLTensor *tensor, struct wire_tensor *wire, struct wire_error *error)
{
    bool rows = is_rows(wire->role);
    int dims = rows ? 3 : 4;
    if (tensor->ndim != dims) {
        return fail(error, "%s->ndim is %d, but must be %d %s", name, tensor->ndim, dims,
            rows ? "(batch, heads, seqlen)" : "(batch, seqlen, heads, head_dim)");
    }
    if (!tensor->shape) {
        return fail(error, "%s->shape is NULL", name);
    }
    wire->dims = (uint32_t)dims;
    for (int dim = 0; dim < dims; dim++) {
        if (tensor->shape[dim] < 0) {
            return fail(
                error, "%s.shape[%d] is %" PRId64 ", below 0", name, dim, tensor->shape[dim]);
        }
        wire->shape[dim] = (uint64_t)tensor->shape[dim];
        wire->strides[dim] = tensor->strides ? tensor->strides[dim] : 0;
    }
    if (!tensor->strides) {
        set_compact_strides(wire);
    }
    return true;
}

static bool has_elements(const struct wire_tensor *tensor)
{
    bool any = true;
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        any = any && tensor->shape[dim] != 0;
    }
    return any;
}

static bool read_address(const char *name, const DLTensor *tensor, const struct wire_tensor *wire,
    uint64_t *address, struct wire_error *error)
{
    size_t size = wire_dtype_bytes(wire->dtype);
    if (__builtin_add_overflow((uint64_t)(uintptr_t)tensor->data, tensor->byte_offset, address)) {
        return fail(error, "%s->byte_offset is %" PRIu64 ", beyond the end of the address space",
            name, tensor->byte_offset);
    }
    if (!has_elements(wire)) {
        *address = 0;
        return true;
    }
    if (!tensor->data) {
        return fail(error, "%s->data is NULL", name);
    }
    if (*address % size != 0) {
        return fail(error,
            "%s->data plus byte_offset is no multiple of the %zu bytes of an element", name, size);
    }
    return true;
}

static bool read_tensor(
    const DLTensor *tensor, struct wire_tensor *wire, uint64_t *address, struct wire_error *error)
{
    const char *name = wire_role_name(wire->role);
    if (tensor->device.device_type != kDLCPU) {
        return wire_fail(error, WIRE_UNSUPPORTED,
            "%s->device is of DLPack type %d, but this daemon computes in host memory (type %d)",
            name, (int)tensor->device.device_type, (int)kDLCPU);
    }
    return read_dtype(name, tensor, &wire->dtype, error) && read_shape(name, tensor, wire, error) &&
           read_address(name, tensor, wire, address, error);
}

static bool read_window(
    const char *name, int64_t window, bool *has, uint64_t *wire, struct wire_error *error)
{
    if (window < 0 && window != ATTND_UNBOUNDED) {
        return fail(error, "%s is %" PRId64 ", below 0 and not ATTND_UNBOUNDED", name, window);
    }
    *has = window != ATTND_UNBOUNDED;
    *wire = *has ? (uint64_t)window : 0;
    return true;
}

static bool read_alignment(
    const struct attnd_options *options, struct wire_plan *plan, struct wire_error *error)
{
    if (options->alignment != ATTND_BOTTOM_RIGHT && options->alignment != ATTND_TOP_LEFT) {
        return fail(error, "alignment is %d, neither ATTND_BOTTOM_RIGHT nor ATTND_TOP_LEFT",
            (int)options->alignment);
    }
    /* Without a bound it means nothing, and plans that mean the same are the same. */
    bool bounded = plan->has_window_left || plan->has_window_right;
    plan->alignment =
        bounded && options->alignment == ATTND_TOP_LEFT ? WIRE_TOP_LEFT : WIRE_BOTTOM_RIGHT;
    return true;
}

static bool read_options(
    const struct attnd_options *given, struct wire_plan *plan, struct wire_error *error)
{
    struct attnd_options options = ATTND_OPTIONS_INIT;
    if (given && !request_read_sized("options->", &options, sizeof options, given, error)) {
        return false;
    }
    if (!isfinite(options.scale)) {
        return fail(error, "scale is not a finite number");
    }
    plan->has_scale = options.scale != 0.0F;
    plan->scale = plan->has_scale ? options.scale : 0.0F; /* no negative zero */
    if (options.causal) {
        options.window_right = 0;
    }
    return read_window("window_left", options.window_left, &plan->has_window_left,
               &plan->window_left, error) &&
           read_window("window_right", options.window_right, &plan->has_window_right,
               &plan->window_right, error) &&
           read_alignment(&options, plan, error);
}

/* Element (i0, i1, i2, *) of a tensor padded to four dimensions in front. */
static uint64_t row_offset(const struct wire_tensor *tensor, const uint64_t index[3])
{
    uint32_t pad = WIRE_MAX_DIMS - tensor->dims;
    int64_t offset = 0;
    for (uint32_t dim = pad; dim < WIRE_MAX_DIMS - 1; dim++) {
        offset += tensor->strides[dim - pad] * (int64_t)index[dim];
    }
    return (uint64_t)offset * wire_dtype_bytes(tensor->dtype);
}

static void copy_row(unsigned char *to, int64_t to_stride, const unsigned char *from,
    int64_t from_stride, uint64_t count, size_t size)
{
    if ((to_stride == 1 && from_stride == 1) || count == 1) {
        memcpy(to, from, count * size);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        memcpy(to, from, size);
        to += to_stride * (int64_t)size;
        from += from_stride * (int64_t)size;
    }
}

bool request_read_sized(const char *prefix, void *known, size_t known_bytes, const void *given,
    struct wire_error *error)
{
    size_t size;
    memcpy(&size, given, sizeof size);
    if (size < sizeof size || size > LARGEST_STRUCT) {
        return fail(error, "%ssize is %zu, but must be the struct's sizeof", prefix, size);
    }
    const unsigned char *bytes = given;
    for (size_t i = known_bytes; i < size; i++) {
        if (bytes[i] != 0) {
            return wire_fail(error, WIRE_UNSUPPORTED,
                "%ssize is %zu, and behind the %zu bytes that this library knows there is a value",
                prefix, size, known_bytes);
        }
    }
    memcpy(known, given, size < known_bytes ? size : known_bytes);
    return true;
}

const DLTensor *request_tensor(const struct attnd_request *request, enum wire_role role)
{
    const DLTensor *tensor = NULL;
    if (members[role] != 0) {
        memcpy(&tensor, (const unsigned char *)request + members[role], sizeof(const DLTensor *));
    }
    return tensor;
}

void request_set_tensor(struct attnd_request *request, enum wire_role role, const DLTensor *tensor)
{
    memcpy((unsigned char *)request + members[role], &tensor, sizeof(const DLTensor *));
}

uint64_t request_address(const DLTensor *tensor)
{
    return (uint64_t)(uintptr_t)tensor->data + tensor->byte_offset;
}

bool request_read(const struct attnd_request *request, struct wire_plan *plan,
    uint64_t address[WIRE_MAX_TENSORS], struct wire_error *error)
{
    memset(plan, 0, sizeof *plan); /* padding too: equal plans are equal bytes */
    if (request->direction != ATTND_FORWARD && request->direction != ATTND_BACKWARD) {
        return fail(error, "direction is %d, neither ATTND_FORWARD nor ATTND_BACKWARD",
            (int)request->direction);
    }
    plan->direction = (enum wire_direction)request->direction;
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        if (!check_presence(request, role, error)) {
            return false;
        }
        const DLTensor *tensor = request_tensor(request, role);
        if (tensor) {
            struct wire_tensor *wire = &plan->tensor[plan->tensors];
            wire->role = role;
            if (!read_tensor(tensor, wire, &address[plan->tensors], error)) {
                return false;
            }
            plan->tensors++;
        }
    }
    return read_options(request->options, plan, error);
}

void request_copy_elements(const struct wire_tensor *to, void *to_data,
    const struct wire_tensor *from, const void *from_data)
{
    uint32_t last = from->dims - 1;
    uint32_t pad = WIRE_MAX_DIMS - from->dims;
    size_t size = wire_dtype_bytes(from->dtype);
    uint64_t extent[3] = {1, 1, 1};
    for (uint32_t dim = 0; dim < last; dim++) {
        extent[pad + dim] = from->shape[dim];
    }
    if (from->shape[last] == 0) {
        return;
    }
    uint64_t at[3];
    for (at[0] = 0; at[0] < extent[0]; at[0]++) {
        for (at[1] = 0; at[1] < extent[1]; at[1]++) {
            for (at[2] = 0; at[2] < extent[2]; at[2]++) {
                copy_row((unsigned char *)to_data + row_offset(to, at), to->strides[last],
                    (const unsigned char *)from_data + row_offset(from, at), from->strides[last],
                    from->shape[last], size);
            }
        }
    }
}

uint64_t request_compact(struct wire_tensor *tensor)
{
    uint64_t bytes = wire_dtype_bytes(tensor->dtype);
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        bytes *= tensor->shape[dim];
    }
    set_compact_strides(tensor);
    return bytes;
}

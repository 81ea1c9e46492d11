#include "request.h"

#include <inttypes.h>
#include <string.h>

#include "elements.h"
#include "role.h"

#define LARGEST_STRUCT 4096 /* what claims to be larger is no struct of ours but garbage */

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

/* ---- Tensors ------------------------------------------------------------------------------------ */

/* Whether the tensor is there just if a request of this direction has it. */
static bool check_presence(
    const struct request *request, enum wire_role role, struct wire_error *error)
{
    bool forward = request->direction == ATTND_FORWARD;
    const DLTensor *tensor = request->tensor[role];
    enum role_use use = role_use(forward ? WIRE_FORWARD : WIRE_BACKWARD, role);
    if (tensor && use == ROLE_ABSENT) {
        return fail(
            error, "%s is given, which a forward request does not have", wire_role_name(role));
    }
    if (!tensor && (use == ROLE_INPUT || use == ROLE_OUTPUT)) {
        return fail(error, "%s is NULL", wire_role_name(role));
    }
    return true;
}

static bool read_length_dtype(
    const char *name, DLDataType type, enum wire_dtype *dtype, struct wire_error *error)
{
    *dtype = WIRE_INT32;
    return (type.code == kDLInt && type.bits == 32) ||
           fail(error, "%s.dtype has code %d and %d bits, but must be int32 (%d, 32)", name,
               (int)type.code, (int)type.bits, (int)kDLInt);
}

static bool read_float_dtype(
    const char *name, DLDataType type, enum wire_dtype *dtype, struct wire_error *error)
{
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

static bool read_dtype(
    const char *name, const DLTensor *tensor, struct wire_tensor *wire, struct wire_error *error)
{
    if (tensor->dtype.lanes != 1) {
        return fail(error, "%s.dtype.lanes is %d, but must be 1", name, (int)tensor->dtype.lanes);
    }
    return role_table[wire->role].dtype == ROLE_INT32
               ? read_length_dtype(name, tensor->dtype, &wire->dtype, error)
               : read_float_dtype(name, tensor->dtype, &wire->dtype, error);
}

static bool read_shape(
    const char *name, const DLTensor *tensor, struct wire_tensor *wire, struct wire_error *error)
{
    if (tensor->ndim < 1 || tensor->ndim > WIRE_MAX_DIMS) {
        return fail(
            error, "%s->ndim is %d, not between 1 and %d", name, tensor->ndim, WIRE_MAX_DIMS);
    }
    if (!tensor->shape) {
        return fail(error, "%s->shape is NULL", name);
    }
    wire->dims = (uint32_t)tensor->ndim;
    for (int dim = 0; dim < tensor->ndim; dim++) {
        if (tensor->shape[dim] < 0) {
            return fail(
                error, "%s.shape[%d] is %" PRId64 ", below 0", name, dim, tensor->shape[dim]);
        }
        wire->shape[dim] = (uint64_t)tensor->shape[dim];
        wire->strides[dim] = tensor->strides ? tensor->strides[dim] : 0;
    }
    if (!tensor->strides) {
        (void)elements_compact(wire);
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
    return read_dtype(name, tensor, wire, error) && read_shape(name, tensor, wire, error) &&
           read_address(name, tensor, wire, address, error);
}

static bool is_length(enum wire_role role)
{
    return role_table[role].dtype == ROLE_INT32;
}

static bool check_device(const char *name, const DLTensor *tensor, struct wire_error *error)
{
    if (tensor->device.device_type == kDLCUDAManaged) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY,
            "%s lies in managed memory (cudaMallocManaged), which no other process can map; use "
            "memory from cudaMalloc",
            name);
    }
    return tensor->device.device_type == kDLCUDA || request_is_host(tensor) ||
           wire_fail(error, WIRE_UNSUPPORTED,
               "%s->device is of DLPack type %d; supported are host memory (%d, %d) and that of a "
               "CUDA device (%d)",
               name, (int)tensor->device.device_type, (int)kDLCPU, (int)kDLCUDAHost, (int)kDLCUDA);
}

/* ---- Options ------------------------------------------------------------------------------------ */

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

static bool read_longest(
    const char *name, int64_t rows, bool *has, uint64_t *wire, struct wire_error *error)
{
    if (rows < 0) {
        return fail(error, "%s is %" PRId64 ", below 0", name, rows);
    }
    *has = rows != 0;
    *wire = (uint64_t)rows;
    return true;
}

static bool read_alignment(
    const struct request *request, struct wire_plan *plan, struct wire_error *error)
{
    enum attnd_alignment alignment = request->options.alignment;
    if (alignment != ATTND_BOTTOM_RIGHT && alignment != ATTND_TOP_LEFT) {
        return fail(error, "alignment is %d, neither ATTND_BOTTOM_RIGHT nor ATTND_TOP_LEFT",
            (int)alignment);
    }
    /* Where nothing goes by it, plans that mean the same are the same. */
    bool matters =
        plan->has_window_left || plan->has_window_right || request->tensor[WIRE_SLOPES] != NULL;
    plan->alignment = matters && alignment == ATTND_TOP_LEFT ? WIRE_TOP_LEFT : WIRE_BOTTOM_RIGHT;
    return true;
}

/* The one place where a probability becomes a threshold. The sum is exact. */
static bool read_dropout(float probability, uint32_t *threshold, struct wire_error *error)
{
    double given = (double)probability;
    if (!(given >= 0 && given < 1)) {
        return fail(error, "dropout_p is %.9g, but must be at least 0 and below 1", given);
    }
    *threshold = (uint32_t)(WIRE_DROPOUT_ONE * given + 0.5);
    return *threshold < WIRE_DROPOUT_ONE ||
           fail(error,
               "dropout_p is %.9g, which rounds to 1 in steps of 1 / %d: everything would be "
               "dropped",
               given, WIRE_DROPOUT_ONE);
}

static bool read_options(
    const struct request *request, struct wire_plan *plan, struct wire_error *error)
{
    const struct attnd_options *options = &request->options;
    plan->has_scale = options->scale != 0.0F;
    plan->scale = plan->has_scale ? options->scale : 0.0F; /* no negative zero */
    plan->softcap = options->softcap != 0.0F ? options->softcap : 0.0F;
    plan->deterministic = options->deterministic;
    return read_window("window_left", options->window_left, &plan->has_window_left,
               &plan->window_left, error) &&
           read_window("window_right", options->causal ? 0 : options->window_right,
               &plan->has_window_right, &plan->window_right, error) &&
           read_alignment(request, plan, error) &&
           read_dropout(options->dropout_p, &plan->dropout_threshold, error) &&
           read_longest("max_seqlen_q", options->max_seqlen_q, &plan->has_max_seqlen_q,
               &plan->max_seqlen_q, error) &&
           read_longest("max_seqlen_k", options->max_seqlen_k, &plan->has_max_seqlen_k,
               &plan->max_seqlen_k, error);
}

/* ---- Public ------------------------------------------------------------------------------------- */

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

bool request_read(
    const struct attnd_request *given, struct request *request, struct wire_error *error)
{
    struct attnd_options options = ATTND_OPTIONS_INIT;
    if (given->options &&
        !request_read_sized("options->", &options, sizeof options, given->options, error)) {
        return false;
    }
    *request = (struct request){.direction = given->direction,
        .options = options,
        .tensor = {[WIRE_Q] = given->q,
            [WIRE_K] = given->k,
            [WIRE_V] = given->v,
            [WIRE_OUT] = given->out,
            [WIRE_LSE] = given->lse,
            [WIRE_DOUT] = given->dout,
            [WIRE_DLSE] = given->dlse,
            [WIRE_DQ] = given->dq,
            [WIRE_DK] = given->dk,
            [WIRE_DV] = given->dv,
            [WIRE_BIAS] = options.bias,
            [WIRE_DBIAS] = given->dbias,
            [WIRE_SLOPES] = options.slopes,
            [WIRE_DSLOPES] = given->dslopes,
            [WIRE_SINKS] = options.sinks,
            [WIRE_DSINKS] = given->dsinks,
            [WIRE_CU_SEQLENS_Q] = options.cu_seqlens_q,
            [WIRE_CU_SEQLENS_K] = options.cu_seqlens_k,
            [WIRE_SEQLENS_K] = options.seqlens_k}};
    return true;
}

bool request_plan(const struct request *request, struct wire_plan *plan,
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
        const DLTensor *tensor = request->tensor[role];
        if (tensor) {
            struct wire_tensor *wire = &plan->tensor[plan->tensors];
            wire->role = role;
            if (!read_tensor(tensor, wire, &address[plan->tensors], error)) {
                return false;
            }
            plan->tensors++;
        }
    }
    return read_options(request, plan, error);
}

bool request_is_host(const DLTensor *tensor)
{
    return tensor->device.device_type == kDLCPU || tensor->device.device_type == kDLCUDAHost;
}

bool request_find_memory(const struct request *request, bool first, struct request_memory *memory,
    struct wire_error *error)
{
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        const DLTensor *tensor = request->tensor[role];
        const char *name = wire_role_name(role);
        if (!tensor) {
            continue;
        }
        if (!check_device(name, tensor, error)) {
            return false;
        }
        bool device = tensor->device.device_type == kDLCUDA;
        if (is_length(role) && !device) {
            continue; /* wherever the others lie */
        }
        if (first) {
            *memory = (struct request_memory){device, device ? tensor->device.device_id : 0};
            first = false;
        }
        if (device != memory->device) {
            return device ? fail(error, "%s lies in a device's memory, but q in the host's", name)
                          : fail(error,
                                "%s lies in the host's memory, but q in a device's; only lengths "
                                "may lie in either",
                                name);
        }
        if (device && tensor->device.device_id != memory->ordinal) {
            return fail(error, "%s->device.device_id is %d, but that of tensors before it is %d",
                name, tensor->device.device_id, memory->ordinal);
        }
    }
    return true;
}

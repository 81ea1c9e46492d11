#include "codec.h"

#include "attnd.pb.h"
#include "fault.h"

#include <pb_decode.h>
#include <pb_encode.h>

#include <inttypes.h>
#include <string.h>

/* ---- wire.h and attnd.proto say the same -------------------------------------------------------- */

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)
#define SAME_BOUND(type, member, bound) \
    _Static_assert(sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]) == (bound), #member)

SAME(WIRE_OK, attnd_pb_Status_STATUS_OK);
SAME(WIRE_INVALID_ARGUMENT, attnd_pb_Status_STATUS_INVALID_ARGUMENT);
SAME(WIRE_UNSUPPORTED, attnd_pb_Status_STATUS_UNSUPPORTED);
SAME(WIRE_UNSUPPORTED_MEMORY, attnd_pb_Status_STATUS_UNSUPPORTED_MEMORY);
SAME(WIRE_RESOURCE_EXHAUSTED, attnd_pb_Status_STATUS_RESOURCE_EXHAUSTED);
SAME(WIRE_AGAIN, attnd_pb_Status_STATUS_AGAIN);
SAME(WIRE_NOT_FOUND, attnd_pb_Status_STATUS_NOT_FOUND);
SAME(WIRE_PERMISSION_DENIED, attnd_pb_Status_STATUS_PERMISSION_DENIED);
SAME(WIRE_VERSION_MISMATCH, attnd_pb_Status_STATUS_VERSION_MISMATCH);
SAME(WIRE_DRAINING, attnd_pb_Status_STATUS_DRAINING);
SAME(WIRE_TIMED_OUT, attnd_pb_Status_STATUS_TIMED_OUT);
SAME(WIRE_CANCELLED, attnd_pb_Status_STATUS_CANCELLED);
SAME(WIRE_DISCONNECTED, attnd_pb_Status_STATUS_DISCONNECTED);
SAME(WIRE_FORKED, attnd_pb_Status_STATUS_FORKED);
SAME(WIRE_PROTOCOL_ERROR, attnd_pb_Status_STATUS_PROTOCOL_ERROR);
SAME(WIRE_DEVICE_FAULT, attnd_pb_Status_STATUS_DEVICE_FAULT);
SAME(WIRE_INTERNAL, attnd_pb_Status_STATUS_INTERNAL);
SAME(WIRE_LANE_POISONED, attnd_pb_Status_STATUS_LANE_POISONED);
SAME(WIRE_STATUS_END, _attnd_pb_Status_MAX + 1);
SAME(WIRE_FP16, attnd_pb_Dtype_DTYPE_FP16);
SAME(WIRE_BF16, attnd_pb_Dtype_DTYPE_BF16);
SAME(WIRE_FP32, attnd_pb_Dtype_DTYPE_FP32);
SAME(WIRE_INT32, attnd_pb_Dtype_DTYPE_INT32);
SAME(WIRE_INT32, _attnd_pb_Dtype_MAX);
SAME(WIRE_FORWARD, attnd_pb_Direction_DIRECTION_FORWARD);
SAME(WIRE_BACKWARD, attnd_pb_Direction_DIRECTION_BACKWARD);
SAME(WIRE_BACKWARD, _attnd_pb_Direction_MAX);
SAME(WIRE_TOP_LEFT, attnd_pb_Alignment_ALIGNMENT_TOP_LEFT);
SAME(WIRE_BOTTOM_RIGHT, attnd_pb_Alignment_ALIGNMENT_BOTTOM_RIGHT);
SAME(WIRE_BOTTOM_RIGHT, _attnd_pb_Alignment_MAX);
SAME(WIRE_DEVICE_CPU, attnd_pb_DeviceKind_DEVICE_KIND_CPU);
SAME(WIRE_DEVICE_CUDA, attnd_pb_DeviceKind_DEVICE_KIND_CUDA);
SAME(WIRE_DEVICE_CUDA, _attnd_pb_DeviceKind_MAX);
SAME(WIRE_Q, attnd_pb_Role_ROLE_Q);
SAME(WIRE_K, attnd_pb_Role_ROLE_K);
SAME(WIRE_V, attnd_pb_Role_ROLE_V);
SAME(WIRE_OUT, attnd_pb_Role_ROLE_OUT);
SAME(WIRE_LSE, attnd_pb_Role_ROLE_LSE);
SAME(WIRE_DOUT, attnd_pb_Role_ROLE_DOUT);
SAME(WIRE_DLSE, attnd_pb_Role_ROLE_DLSE);
SAME(WIRE_DQ, attnd_pb_Role_ROLE_DQ);
SAME(WIRE_DK, attnd_pb_Role_ROLE_DK);
SAME(WIRE_DV, attnd_pb_Role_ROLE_DV);
SAME(WIRE_BIAS, attnd_pb_Role_ROLE_BIAS);
SAME(WIRE_DBIAS, attnd_pb_Role_ROLE_DBIAS);
SAME(WIRE_SLOPES, attnd_pb_Role_ROLE_SLOPES);
SAME(WIRE_DSLOPES, attnd_pb_Role_ROLE_DSLOPES);
SAME(WIRE_SINKS, attnd_pb_Role_ROLE_SINKS);
SAME(WIRE_DSINKS, attnd_pb_Role_ROLE_DSINKS);
SAME(WIRE_CU_SEQLENS_Q, attnd_pb_Role_ROLE_CU_SEQLENS_Q);
SAME(WIRE_CU_SEQLENS_K, attnd_pb_Role_ROLE_CU_SEQLENS_K);
SAME(WIRE_SEQLENS_K, attnd_pb_Role_ROLE_SEQLENS_K);
SAME(WIRE_ROLE_END, _attnd_pb_Role_MAX + 1);

SAME_BOUND(attnd_pb_Open, name, WIRE_NAME_BYTES);
SAME_BOUND(attnd_pb_GateReply, detail, WIRE_DETAIL_BYTES);
SAME_BOUND(attnd_pb_Session, token.bytes, WIRE_TOKEN_BYTES);
SAME_BOUND(attnd_pb_Device, uuid.bytes, WIRE_UUID_BYTES);
SAME_BOUND(attnd_pb_Device, name, WIRE_NAME_BYTES);
SAME_BOUND(attnd_pb_Hello, token.bytes, WIRE_TOKEN_BYTES);
SAME_BOUND(attnd_pb_Tensor, shape, WIRE_MAX_DIMS);
SAME_BOUND(attnd_pb_Tensor, strides, WIRE_MAX_DIMS);
SAME_BOUND(attnd_pb_AddPlan, tensors, WIRE_MAX_TENSORS);
SAME_BOUND(attnd_pb_Submit, calls, WIRE_MAX_CALLS);
SAME_BOUND(attnd_pb_Call, regions, WIRE_MAX_TENSORS);
SAME_BOUND(attnd_pb_Call, offsets, WIRE_MAX_TENSORS);
SAME_BOUND(attnd_pb_Reply, detail, WIRE_DETAIL_BYTES);
SAME_BOUND(attnd_pb_Plan, family, WIRE_NAME_BYTES);
SAME_BOUND(attnd_pb_Stats, version, WIRE_NAME_BYTES);

/* nanopb defines these only for messages of which every field, at any depth, is bounded. */
_Static_assert(attnd_pb_GateRequest_size <= WIRE_MAX_MESSAGE_BYTES, "GateRequest is too large");
_Static_assert(attnd_pb_GateReply_size <= WIRE_MAX_MESSAGE_BYTES, "GateReply is too large");
_Static_assert(attnd_pb_Request_size <= WIRE_MAX_MESSAGE_BYTES, "Request is too large");
_Static_assert(attnd_pb_Reply_size <= WIRE_MAX_MESSAGE_BYTES, "Reply is too large");

/* ---- From decoded to plain structs -------------------------------------------------------------- */

static bool decode(
    const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size, const char **reason)
{
    pb_istream_t stream = pb_istream_from_buffer(bytes, size);

    if (pb_decode(&stream, type, message)) {
        return true;
    }
    *reason = PB_GET_ERROR(&stream);
    return false;
}

static bool fail_decode(const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size,
    const char *reason, struct wire_error *error)
{
    char path[FAULT_PATH_BYTES] = "";

    fault_locate(type, message, bytes, size, path);
    return wire_fail(error, WIRE_PROTOCOL_ERROR, "%s cannot be decoded: %s",
        path[0] == 0 ? "the message" : path, reason);
}

static bool fail_enum(struct wire_error *error, const char *field, uint32_t value)
{
    return wire_fail(error, WIRE_PROTOCOL_ERROR,
        "%s is %" PRIu32 ", which is no value of this protocol version", field, value);
}

/* Whether an enum without a meaning for 0 has a member's value. */
static bool is_member(uint32_t value, uint32_t last)
{
    return value >= 1 && value <= last;
}

static bool read_status(uint32_t value, struct wire_error *status, struct wire_error *error)
{
    if (value >= WIRE_STATUS_END) {
        return fail_enum(error, "status", value);
    }
    status->status = (enum wire_status)value;
    return true;
}

static bool read_token(const char *field, const uint8_t *bytes, size_t size,
    uint8_t token[WIRE_TOKEN_BYTES], struct wire_error *error)
{
    if (size != WIRE_TOKEN_BYTES) {
        return wire_fail(
            error, WIRE_PROTOCOL_ERROR, "%s has %zu bytes, not %d", field, size, WIRE_TOKEN_BYTES);
    }
    memcpy(token, bytes, WIRE_TOKEN_BYTES);
    return true;
}

static bool read_device(
    const attnd_pb_Device *in, struct wire_session *session, struct wire_error *error)
{
    if (!is_member((uint32_t)in->kind, WIRE_DEVICE_CUDA)) {
        return fail_enum(error, "session.device.kind", (uint32_t)in->kind);
    }
    if (in->uuid.size != 0 && in->uuid.size != WIRE_UUID_BYTES) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "session.device.uuid has %u bytes, not %d or none", (unsigned)in->uuid.size,
            WIRE_UUID_BYTES);
    }
    session->device_kind = (enum wire_device_kind)in->kind;
    session->has_uuid = in->uuid.size != 0;
    memcpy(session->device_uuid, in->uuid.bytes, in->uuid.size);
    wire_copy_text(session->device_name, sizeof(session->device_name), in->name);
    return true;
}

static bool read_session(
    const attnd_pb_Session *in, struct wire_session *session, struct wire_error *error)
{
    if (!in->has_limits || !in->has_device) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR, "session.%s is missing",
            in->has_limits ? "device" : "limits");
    }
    session->id = in->id;
    session->major = in->major;
    session->minor = in->minor;
    session->features = in->features;
    session->limits.in_flight = in->limits.in_flight;
    session->limits.regions = in->limits.regions;
    session->limits.region_bytes = in->limits.region_bytes;
    session->limits.plans = in->limits.plans;
    session->limits.workspace_bytes = in->limits.workspace_bytes;
    return read_token("session.token", in->token.bytes, in->token.size, session->token, error) &&
           read_device(&in->device, session, error);
}

static bool read_tensor(
    const attnd_pb_Tensor *in, unsigned index, struct wire_tensor *tensor, struct wire_error *error)
{
    if (!is_member((uint32_t)in->role, WIRE_ROLE_END - 1)) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "add_plan.tensors[%u].role is %" PRIu32 ", which is no value of this protocol version",
            index, (uint32_t)in->role);
    }
    if (!is_member((uint32_t)in->dtype, WIRE_INT32)) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "add_plan.tensors[%u].dtype is %" PRIu32 ", which is no value of this protocol version",
            index, (uint32_t)in->dtype);
    }
    if (in->shape_count != in->strides_count) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "add_plan.tensors[%u] has %u extents in shape, but %u strides", index,
            (unsigned)in->shape_count, (unsigned)in->strides_count);
    }
    tensor->role = (enum wire_role)in->role;
    tensor->dtype = (enum wire_dtype)in->dtype;
    tensor->dims = in->shape_count;
    memcpy(tensor->shape, in->shape, in->shape_count * sizeof(in->shape[0]));
    memcpy(tensor->strides, in->strides, in->strides_count * sizeof(in->strides[0]));
    return true;
}

static bool read_plan(const attnd_pb_AddPlan *in, struct wire_plan *plan, struct wire_error *error)
{
    if (!is_member((uint32_t)in->direction, WIRE_BACKWARD)) {
        return fail_enum(error, "add_plan.direction", (uint32_t)in->direction);
    }
    if (!is_member((uint32_t)in->alignment, WIRE_BOTTOM_RIGHT)) {
        return fail_enum(error, "add_plan.alignment", (uint32_t)in->alignment);
    }
    plan->direction = (enum wire_direction)in->direction;
    plan->alignment = (enum wire_alignment)in->alignment;
    plan->has_scale = in->has_scale;
    plan->scale = in->scale;
    plan->has_window_left = in->has_window_left;
    plan->window_left = in->window_left;
    plan->has_window_right = in->has_window_right;
    plan->window_right = in->window_right;
    plan->softcap = in->softcap;
    plan->dropout_threshold = in->dropout_threshold;
    plan->deterministic = in->deterministic;
    plan->has_max_seqlen_q = in->has_max_seqlen_q;
    plan->max_seqlen_q = in->max_seqlen_q;
    plan->has_max_seqlen_k = in->has_max_seqlen_k;
    plan->max_seqlen_k = in->max_seqlen_k;
    for (unsigned i = 0; i < in->tensors_count; i++) {
        if (!read_tensor(&in->tensors[i], i, &plan->tensor[i], error)) {
            return false;
        }
    }
    plan->tensors = in->tensors_count;
    return true;
}

static bool read_submit(
    const attnd_pb_Submit *in, struct wire_submit *submit, struct wire_error *error)
{
    submit->lane = in->lane;
    submit->first_sequence = in->first_sequence;
    submit->calls = in->calls_count;
    for (unsigned i = 0; i < in->calls_count; i++) {
        const attnd_pb_Call *call = &in->calls[i];
        if (call->regions_count != call->offsets_count) {
            return wire_fail(error, WIRE_PROTOCOL_ERROR,
                "submit.calls[%u] has %u regions, but %u offsets", i, (unsigned)call->regions_count,
                (unsigned)call->offsets_count);
        }
        submit->call[i].plan = call->plan;
        submit->call[i].tensors = call->regions_count;
        submit->call[i].dropout_seed = call->dropout_seed;
        submit->call[i].dropout_offset = call->dropout_offset;
        memcpy(
            submit->call[i].region, call->regions, call->regions_count * sizeof(call->regions[0]));
        memcpy(
            submit->call[i].offset, call->offsets, call->offsets_count * sizeof(call->offsets[0]));
    }
    return true;
}

static struct wire_counters read_counters(const attnd_pb_Counters *in)
{
    return (struct wire_counters){.requests = in->requests,
        .failed = in->failed,
        .groups = in->groups,
        .group_members = in->group_members,
        .regions = in->regions,
        .region_bytes = in->region_bytes,
        .plans = in->plans,
        .in_flight = in->in_flight};
}

static bool fail_body(struct wire_error *error)
{
    return wire_fail(
        error, WIRE_PROTOCOL_ERROR, "body is missing, or none of this protocol version");
}

static bool read_gate_request(
    const attnd_pb_GateRequest *in, struct wire_gate_request *message, struct wire_error *error)
{
    switch (in->which_body) {
    case attnd_pb_GateRequest_open_tag:
        message->kind = WIRE_GATE_OPEN;
        message->major = in->body.open.major;
        message->minor = in->body.open.minor;
        message->features = in->body.open.features;
        wire_copy_text(message->name, sizeof(message->name), in->body.open.name);
        return true;
    case attnd_pb_GateRequest_add_region_tag:
        message->kind = WIRE_GATE_ADD_REGION;
        message->bytes = in->body.add_region.bytes;
        return true;
    case attnd_pb_GateRequest_drop_region_tag:
        message->kind = WIRE_GATE_DROP_REGION;
        message->region = in->body.drop_region.region;
        return true;
    default:
        return fail_body(error);
    }
}

static bool read_gate_reply(
    const attnd_pb_GateReply *in, struct wire_gate_reply *message, struct wire_error *error)
{
    if (!read_status((uint32_t)in->status, &message->error, error)) {
        return false;
    }
    wire_copy_text(message->error.detail, sizeof(message->error.detail), in->detail);
    switch (in->which_body) {
    case attnd_pb_GateReply_session_tag:
        message->has_session = true;
        return read_session(&in->body.session, &message->session, error);
    case attnd_pb_GateReply_region_tag:
        message->region = in->body.region.region;
        return true;
    default: /* a reply may be no more than a status */
        return true;
    }
}

static bool read_request(
    const attnd_pb_Request *in, struct wire_request *message, struct wire_error *error)
{
    switch (in->which_body) {
    case attnd_pb_Request_hello_tag:
        message->kind = WIRE_HELLO;
        message->hello.session = in->body.hello.session;
        return read_token("hello.token", in->body.hello.token.bytes, in->body.hello.token.size,
            message->hello.token, error);
    case attnd_pb_Request_add_plan_tag:
        message->kind = WIRE_ADD_PLAN;
        return read_plan(&in->body.add_plan, &message->plan, error);
    case attnd_pb_Request_drop_plan_tag:
        message->kind = WIRE_DROP_PLAN;
        message->drop_plan = in->body.drop_plan.plan;
        return true;
    case attnd_pb_Request_submit_tag:
        message->kind = WIRE_SUBMIT;
        return read_submit(&in->body.submit, &message->submit, error);
    case attnd_pb_Request_get_stats_tag:
        message->kind = WIRE_GET_STATS;
        return true;
    default:
        return fail_body(error);
    }
}

static bool read_reply(
    const attnd_pb_Reply *in, struct wire_reply *message, struct wire_error *error)
{
    if (!read_status((uint32_t)in->status, &message->error, error)) {
        return false;
    }
    wire_copy_text(message->error.detail, sizeof(message->error.detail), in->detail);
    switch (in->which_body) {
    case attnd_pb_Reply_plan_tag:
        message->kind = WIRE_REPLY_PLAN;
        message->plan.plan = in->body.plan.plan;
        message->plan.workspace_bytes = in->body.plan.workspace_bytes;
        wire_copy_text(message->plan.family, sizeof(message->plan.family), in->body.plan.family);
        return true;
    case attnd_pb_Reply_failed_tag:
        message->kind = WIRE_REPLY_FAILED;
        message->failed.lane = in->body.failed.lane;
        message->failed.sequence = in->body.failed.sequence;
        return true;
    case attnd_pb_Reply_stats_tag:
        message->kind = WIRE_REPLY_STATS;
        message->stats.session = read_counters(&in->body.stats.session);
        message->stats.daemon = read_counters(&in->body.stats.daemon);
        message->stats.sessions = in->body.stats.sessions;
        message->stats.uptime_ns = in->body.stats.uptime_ns;
        wire_copy_text(
            message->stats.version, sizeof(message->stats.version), in->body.stats.version);
        return true;
    default: /* a reply may be no more than a status */
        return true;
    }
}

/* ---- From plain structs to encodable ones ------------------------------------------------------- */

static size_t encode(const pb_msgdesc_t *type, const void *message, uint8_t *bytes, size_t capacity)
{
    pb_ostream_t stream = pb_ostream_from_buffer(bytes, capacity);
    return pb_encode(&stream, type, message) ? stream.bytes_written : 0;
}

/* nanopb reads strings up to their array's end: `text` may lack a NUL, the copy does not. */
static void write_text(char *out, size_t capacity, const char *text)
{
    memcpy(out, text, strnlen(text, capacity - 1));
}

static bool write_plan(const struct wire_plan *plan, attnd_pb_AddPlan *out)
{
    if (plan->tensors > WIRE_MAX_TENSORS) {
        return false;
    }
    out->direction = (attnd_pb_Direction)plan->direction;
    out->alignment = (attnd_pb_Alignment)plan->alignment;
    out->has_scale = plan->has_scale;
    out->scale = plan->scale;
    out->has_window_left = plan->has_window_left;
    out->window_left = plan->window_left;
    out->has_window_right = plan->has_window_right;
    out->window_right = plan->window_right;
    out->softcap = plan->softcap;
    out->dropout_threshold = plan->dropout_threshold;
    out->deterministic = plan->deterministic;
    out->has_max_seqlen_q = plan->has_max_seqlen_q;
    out->max_seqlen_q = plan->max_seqlen_q;
    out->has_max_seqlen_k = plan->has_max_seqlen_k;
    out->max_seqlen_k = plan->max_seqlen_k;
    out->tensors_count = (pb_size_t)plan->tensors;
    for (uint32_t i = 0; i < plan->tensors; i++) {
        const struct wire_tensor *tensor = &plan->tensor[i];
        if (tensor->dims > WIRE_MAX_DIMS) {
            return false;
        }
        out->tensors[i].role = (attnd_pb_Role)tensor->role;
        out->tensors[i].dtype = (attnd_pb_Dtype)tensor->dtype;
        out->tensors[i].shape_count = (pb_size_t)tensor->dims;
        out->tensors[i].strides_count = (pb_size_t)tensor->dims;
        memcpy(out->tensors[i].shape, tensor->shape, sizeof(tensor->shape));
        memcpy(out->tensors[i].strides, tensor->strides, sizeof(tensor->strides));
    }
    return true;
}

static bool write_submit(const struct wire_submit *submit, attnd_pb_Submit *out)
{
    if (submit->calls > WIRE_MAX_CALLS) {
        return false;
    }
    out->lane = submit->lane;
    out->first_sequence = submit->first_sequence;
    out->calls_count = (pb_size_t)submit->calls;
    for (uint32_t i = 0; i < submit->calls; i++) {
        const struct wire_call *call = &submit->call[i];
        if (call->tensors > WIRE_MAX_TENSORS) {
            return false;
        }
        out->calls[i].plan = call->plan;
        out->calls[i].regions_count = (pb_size_t)call->tensors;
        out->calls[i].offsets_count = (pb_size_t)call->tensors;
        out->calls[i].dropout_seed = call->dropout_seed;
        out->calls[i].dropout_offset = call->dropout_offset;
        memcpy(out->calls[i].regions, call->region, call->tensors * sizeof(call->region[0]));
        memcpy(out->calls[i].offsets, call->offset, call->tensors * sizeof(call->offset[0]));
    }
    return true;
}

static void write_session(const struct wire_session *session, attnd_pb_Session *out)
{
    out->id = session->id;
    out->token.size = WIRE_TOKEN_BYTES;
    memcpy(out->token.bytes, session->token, WIRE_TOKEN_BYTES);
    out->major = session->major;
    out->minor = session->minor;
    out->features = session->features;
    out->has_limits = true;
    out->limits = (attnd_pb_Limits){.in_flight = session->limits.in_flight,
        .regions = session->limits.regions,
        .region_bytes = session->limits.region_bytes,
        .plans = session->limits.plans,
        .workspace_bytes = session->limits.workspace_bytes};
    out->has_device = true;
    out->device.kind = (attnd_pb_DeviceKind)session->device_kind;
    out->device.uuid.size = session->has_uuid ? WIRE_UUID_BYTES : 0;
    memcpy(out->device.uuid.bytes, session->device_uuid, out->device.uuid.size);
    write_text(out->device.name, sizeof(out->device.name), session->device_name);
}

static attnd_pb_Counters write_counters(const struct wire_counters *counters)
{
    return (attnd_pb_Counters){.requests = counters->requests,
        .failed = counters->failed,
        .groups = counters->groups,
        .group_members = counters->group_members,
        .regions = counters->regions,
        .region_bytes = counters->region_bytes,
        .plans = counters->plans,
        .in_flight = counters->in_flight};
}

static bool write_request(const struct wire_request *message, attnd_pb_Request *out)
{
    switch (message->kind) {
    case WIRE_REQUEST_NONE:
        return false;
    case WIRE_HELLO:
        out->which_body = attnd_pb_Request_hello_tag;
        out->body.hello.session = message->hello.session;
        out->body.hello.token.size = WIRE_TOKEN_BYTES;
        memcpy(out->body.hello.token.bytes, message->hello.token, WIRE_TOKEN_BYTES);
        return true;
    case WIRE_ADD_PLAN:
        out->which_body = attnd_pb_Request_add_plan_tag;
        return write_plan(&message->plan, &out->body.add_plan);
    case WIRE_DROP_PLAN:
        out->which_body = attnd_pb_Request_drop_plan_tag;
        out->body.drop_plan.plan = message->drop_plan;
        return true;
    case WIRE_SUBMIT:
        out->which_body = attnd_pb_Request_submit_tag;
        return write_submit(&message->submit, &out->body.submit);
    case WIRE_GET_STATS:
        out->which_body = attnd_pb_Request_get_stats_tag;
        return true;
    }
    return false;
}

static void write_reply(const struct wire_reply *message, attnd_pb_Reply *out)
{
    switch (message->kind) {
    case WIRE_REPLY_NONE:
        break;
    case WIRE_REPLY_PLAN:
        out->which_body = attnd_pb_Reply_plan_tag;
        out->body.plan.plan = message->plan.plan;
        out->body.plan.workspace_bytes = message->plan.workspace_bytes;
        write_text(out->body.plan.family, sizeof(out->body.plan.family), message->plan.family);
        break;
    case WIRE_REPLY_FAILED:
        out->which_body = attnd_pb_Reply_failed_tag;
        out->body.failed.lane = message->failed.lane;
        out->body.failed.sequence = message->failed.sequence;
        break;
    case WIRE_REPLY_STATS:
        out->which_body = attnd_pb_Reply_stats_tag;
        out->body.stats.has_session = true;
        out->body.stats.session = write_counters(&message->stats.session);
        out->body.stats.has_daemon = true;
        out->body.stats.daemon = write_counters(&message->stats.daemon);
        out->body.stats.sessions = message->stats.sessions;
        out->body.stats.uptime_ns = message->stats.uptime_ns;
        write_text(
            out->body.stats.version, sizeof(out->body.stats.version), message->stats.version);
        break;
    }
}

/* ---- Public ------------------------------------------------------------------------------------- */

size_t codec_encode_gate_request(
    const struct wire_gate_request *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_GateRequest out = {.id = message->id};

    switch (message->kind) {
    case WIRE_GATE_NONE:
        return 0;
    case WIRE_GATE_OPEN:
        out.which_body = attnd_pb_GateRequest_open_tag;
        out.body.open.major = message->major;
        out.body.open.minor = message->minor;
        out.body.open.features = message->features;
        write_text(out.body.open.name, sizeof(out.body.open.name), message->name);
        break;
    case WIRE_GATE_ADD_REGION:
        out.which_body = attnd_pb_GateRequest_add_region_tag;
        out.body.add_region.bytes = message->bytes;
        break;
    case WIRE_GATE_DROP_REGION:
        out.which_body = attnd_pb_GateRequest_drop_region_tag;
        out.body.drop_region.region = message->region;
        break;
    }
    return encode(&attnd_pb_GateRequest_msg, &out, bytes, capacity);
}

size_t codec_encode_gate_reply(
    const struct wire_gate_reply *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_GateReply out = {.id = message->id, .status = (attnd_pb_Status)message->error.status};

    write_text(out.detail, sizeof(out.detail), message->error.detail);
    if (message->has_session) {
        out.which_body = attnd_pb_GateReply_session_tag;
        write_session(&message->session, &out.body.session);
    } else if (message->region != 0) {
        out.which_body = attnd_pb_GateReply_region_tag;
        out.body.region.region = message->region;
    }
    return encode(&attnd_pb_GateReply_msg, &out, bytes, capacity);
}

size_t codec_encode_request(const struct wire_request *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_Request out;

    memset(&out, 0, sizeof(out));
    out.id = message->id;
    return write_request(message, &out) ? encode(&attnd_pb_Request_msg, &out, bytes, capacity) : 0;
}

size_t codec_encode_reply(const struct wire_reply *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_Reply out;

    memset(&out, 0, sizeof(out));
    out.id = message->id;
    out.status = (attnd_pb_Status)message->error.status;
    write_text(out.detail, sizeof(out.detail), message->error.detail);
    write_reply(message, &out);
    return encode(&attnd_pb_Reply_msg, &out, bytes, capacity);
}

bool codec_decode_gate_request(
    const uint8_t *bytes, size_t size, struct wire_gate_request *message, struct wire_error *error)
{
    attnd_pb_GateRequest in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = decode(&attnd_pb_GateRequest_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_gate_request(&in, message, error)
                   : fail_decode(&attnd_pb_GateRequest_msg, &in, bytes, size, reason, error);
}

bool codec_decode_gate_reply(
    const uint8_t *bytes, size_t size, struct wire_gate_reply *message, struct wire_error *error)
{
    attnd_pb_GateReply in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = decode(&attnd_pb_GateReply_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_gate_reply(&in, message, error)
                   : fail_decode(&attnd_pb_GateReply_msg, &in, bytes, size, reason, error);
}

bool codec_decode_request(
    const uint8_t *bytes, size_t size, struct wire_request *message, struct wire_error *error)
{
    attnd_pb_Request in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = decode(&attnd_pb_Request_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_request(&in, message, error)
                   : fail_decode(&attnd_pb_Request_msg, &in, bytes, size, reason, error);
}

bool codec_decode_reply(
    const uint8_t *bytes, size_t size, struct wire_reply *message, struct wire_error *error)
{
    attnd_pb_Reply in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = decode(&attnd_pb_Reply_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_reply(&in, message, error)
                   : fail_decode(&attnd_pb_Reply_msg, &in, bytes, size, reason, error);
}

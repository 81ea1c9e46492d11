#include "codec.h"

#include "codec_part.h"

#include <inttypes.h>
#include <string.h>

/* ---- From decoded to plain structs -------------------------------------------------------------- */

static bool read_tensor(
    const attnd_pb_Tensor *in, unsigned index, struct wire_tensor *tensor, struct wire_error *error)
{
    if (!part_is_member((uint32_t)in->role, WIRE_ROLE_END - 1)) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "add_plan.tensors[%u].role is %" PRIu32 ", which is no value of this protocol version",
            index, (uint32_t)in->role);
    }
    if (!part_is_member((uint32_t)in->dtype, WIRE_INT32)) {
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
    if (!part_is_member((uint32_t)in->direction, WIRE_BACKWARD)) {
        return part_fail_enum(error, "add_plan.direction", (uint32_t)in->direction);
    }
    if (!part_is_member((uint32_t)in->alignment, WIRE_BOTTOM_RIGHT)) {
        return part_fail_enum(error, "add_plan.alignment", (uint32_t)in->alignment);
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
    submit->epoch = in->epoch;
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

static bool read_info(const attnd_pb_Info *in, struct wire_info *info, struct wire_error *error)
{
    if (!in->has_limits || !in->has_device) {
        return wire_fail(
            error, WIRE_PROTOCOL_ERROR, "info.%s is missing", in->has_limits ? "device" : "limits");
    }
    if ((uint32_t)in->mps > WIRE_MPS_ON) {
        return part_fail_enum(error, "info.mps", (uint32_t)in->mps);
    }
    wire_copy_text(info->driver, sizeof(info->driver), in->driver);
    info->mps = (enum wire_mps)in->mps;
    info->checks_exporter = in->checks_exporter;
    info->one_ipc_user = in->one_ipc_user;
    info->families = in->families_count;
    for (uint32_t i = 0; i < info->families; i++) {
        wire_copy_text(info->family[i], sizeof(info->family[i]), in->families[i]);
    }
    part_read_limits(&in->limits, &info->limits);
    info->max_sessions = in->max_sessions;
    info->max_sessions_per_uid = in->max_sessions_per_uid;
    info->region_bytes_per_uid = in->region_bytes_per_uid;
    info->pid = in->pid;
    wire_copy_text(info->version, sizeof(info->version), in->version);
    info->major = in->major;
    info->minor = in->minor;
    return part_read_device("info.device", &in->device, &info->device, error);
}

static bool read_request(
    const attnd_pb_Request *in, struct wire_request *message, struct wire_error *error)
{
    switch (in->which_body) {
    case attnd_pb_Request_hello_tag:
        message->kind = WIRE_HELLO;
        message->hello.session = in->body.hello.session;
        return part_read_token("hello.token", in->body.hello.token.bytes, in->body.hello.token.size,
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
    case attnd_pb_Request_get_info_tag:
        message->kind = WIRE_GET_INFO;
        return true;
    default:
        return part_fail_body(error);
    }
}

static bool read_reply(
    const attnd_pb_Reply *in, struct wire_reply *message, struct wire_error *error)
{
    if (!part_read_status((uint32_t)in->status, &message->error, error)) {
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
    case attnd_pb_Reply_info_tag:
        message->kind = WIRE_REPLY_INFO;
        return read_info(&in->body.info, &message->info, error);
    default: /* a reply may be no more than a status */
        return true;
    }
}

/* ---- From plain structs to encodable ones ------------------------------------------------------- */

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
    out->epoch = submit->epoch;
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

static bool write_info(const struct wire_info *info, attnd_pb_Info *out)
{
    if (info->families > WIRE_MAX_FAMILIES) {
        return false;
    }
    out->has_device = true;
    out->device = part_write_device(&info->device);
    part_write_text(out->driver, sizeof(out->driver), info->driver);
    out->mps = (attnd_pb_Mps)info->mps;
    out->checks_exporter = info->checks_exporter;
    out->one_ipc_user = info->one_ipc_user;
    out->families_count = (pb_size_t)info->families;
    for (uint32_t i = 0; i < info->families; i++) {
        part_write_text(out->families[i], sizeof(out->families[i]), info->family[i]);
    }
    out->has_limits = true;
    out->limits = part_write_limits(&info->limits);
    out->max_sessions = info->max_sessions;
    out->max_sessions_per_uid = info->max_sessions_per_uid;
    out->region_bytes_per_uid = info->region_bytes_per_uid;
    out->pid = info->pid;
    part_write_text(out->version, sizeof(out->version), info->version);
    out->major = info->major;
    out->minor = info->minor;
    return true;
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
    case WIRE_GET_INFO:
        out->which_body = attnd_pb_Request_get_info_tag;
        return true;
    }
    return false;
}

static bool write_reply(const struct wire_reply *message, attnd_pb_Reply *out)
{
    switch (message->kind) {
    case WIRE_REPLY_NONE:
        return true;
    case WIRE_REPLY_PLAN:
        out->which_body = attnd_pb_Reply_plan_tag;
        out->body.plan.plan = message->plan.plan;
        out->body.plan.workspace_bytes = message->plan.workspace_bytes;
        part_write_text(out->body.plan.family, sizeof(out->body.plan.family), message->plan.family);
        return true;
    case WIRE_REPLY_FAILED:
        out->which_body = attnd_pb_Reply_failed_tag;
        out->body.failed.lane = message->failed.lane;
        out->body.failed.sequence = message->failed.sequence;
        return true;
    case WIRE_REPLY_STATS:
        out->which_body = attnd_pb_Reply_stats_tag;
        out->body.stats.has_session = true;
        out->body.stats.session = write_counters(&message->stats.session);
        out->body.stats.has_daemon = true;
        out->body.stats.daemon = write_counters(&message->stats.daemon);
        out->body.stats.sessions = message->stats.sessions;
        out->body.stats.uptime_ns = message->stats.uptime_ns;
        part_write_text(
            out->body.stats.version, sizeof(out->body.stats.version), message->stats.version);
        return true;
    case WIRE_REPLY_INFO:
        out->which_body = attnd_pb_Reply_info_tag;
        return write_info(&message->info, &out->body.info);
    }
    return false;
}

/* ---- Public ------------------------------------------------------------------------------------- */

size_t codec_encode_request(const struct wire_request *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_Request out;

    memset(&out, 0, sizeof(out));
    out.id = message->id;
    return write_request(message, &out) ? part_encode(&attnd_pb_Request_msg, &out, bytes, capacity)
                                        : 0;
}

size_t codec_encode_reply(const struct wire_reply *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_Reply out;

    memset(&out, 0, sizeof(out));
    out.id = message->id;
    out.status = (attnd_pb_Status)message->error.status;
    part_write_text(out.detail, sizeof(out.detail), message->error.detail);
    return write_reply(message, &out) ? part_encode(&attnd_pb_Reply_msg, &out, bytes, capacity) : 0;
}

bool codec_decode_request(
    const uint8_t *bytes, size_t size, struct wire_request *message, struct wire_error *error)
{
    attnd_pb_Request in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = part_decode(&attnd_pb_Request_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_request(&in, message, error)
                   : part_fail(&attnd_pb_Request_msg, &in, bytes, size, reason, error);
}

bool codec_decode_reply(
    const uint8_t *bytes, size_t size, struct wire_reply *message, struct wire_error *error)
{
    attnd_pb_Reply in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = part_decode(&attnd_pb_Reply_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_reply(&in, message, error)
                   : part_fail(&attnd_pb_Reply_msg, &in, bytes, size, reason, error);
}

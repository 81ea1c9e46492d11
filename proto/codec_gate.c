#include "codec.h"

#include "codec_part.h"

#include <string.h>

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
    part_read_limits(&in->limits, &session->limits);
    return part_read_token(
               "session.token", in->token.bytes, in->token.size, session->token, error) &&
           part_read_device("session.device", &in->device, &session->device, error);
}

static bool read_add_region(
    const attnd_pb_AddRegion *in, struct wire_gate_request *message, struct wire_error *error)
{
    if ((uint32_t)in->kind > WIRE_MEMORY_CUDA_VMM) {
        return part_fail_enum(error, "add_region.kind", (uint32_t)in->kind);
    }
    unsigned wanted = (uint32_t)in->kind == WIRE_MEMORY_CUDA_IPC ? WIRE_HANDLE_BYTES : 0;
    if (in->handle.size != wanted) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "add_region.handle has %u bytes, but with this kind must have %u",
            (unsigned)in->handle.size, wanted);
    }
    message->memory = (enum wire_memory_kind)in->kind;
    memcpy(message->handle, in->handle.bytes, wanted);
    message->reserve = in->reserve;
    message->bytes = in->bytes;
    return true;
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
        return read_add_region(&in->body.add_region, message, error);
    case attnd_pb_GateRequest_drop_region_tag:
        message->kind = WIRE_GATE_DROP_REGION;
        message->region = in->body.drop_region.region;
        return true;
    case attnd_pb_GateRequest_extend_region_tag:
        message->kind = WIRE_GATE_EXTEND_REGION;
        message->region = in->body.extend_region.region;
        message->offset = in->body.extend_region.offset;
        message->bytes = in->body.extend_region.bytes;
        return true;
    case attnd_pb_GateRequest_trim_tag:
        message->kind = WIRE_GATE_TRIM;
        return true;
    default:
        return part_fail_body(error);
    }
}

static bool read_gate_reply(
    const attnd_pb_GateReply *in, struct wire_gate_reply *message, struct wire_error *error)
{
    if (!part_read_status((uint32_t)in->status, &message->error, error)) {
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

static void write_session(const struct wire_session *session, attnd_pb_Session *out)
{
    out->id = session->id;
    out->token.size = WIRE_TOKEN_BYTES;
    memcpy(out->token.bytes, session->token, WIRE_TOKEN_BYTES);
    out->major = session->major;
    out->minor = session->minor;
    out->features = session->features;
    out->has_limits = true;
    out->limits = part_write_limits(&session->limits);
    out->has_device = true;
    out->device = part_write_device(&session->device);
}

static void write_add_region(const struct wire_gate_request *message, attnd_pb_AddRegion *out)
{
    out->bytes = message->bytes;
    out->kind = (attnd_pb_MemoryKind)message->memory;
    out->handle.size = message->memory == WIRE_MEMORY_CUDA_IPC ? WIRE_HANDLE_BYTES : 0;
    memcpy(out->handle.bytes, message->handle, out->handle.size);
    out->reserve = message->reserve;
}

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
        part_write_text(out.body.open.name, sizeof(out.body.open.name), message->name);
        break;
    case WIRE_GATE_ADD_REGION:
        out.which_body = attnd_pb_GateRequest_add_region_tag;
        write_add_region(message, &out.body.add_region);
        break;
    case WIRE_GATE_DROP_REGION:
        out.which_body = attnd_pb_GateRequest_drop_region_tag;
        out.body.drop_region.region = message->region;
        break;
    case WIRE_GATE_EXTEND_REGION:
        out.which_body = attnd_pb_GateRequest_extend_region_tag;
        out.body.extend_region.region = message->region;
        out.body.extend_region.offset = message->offset;
        out.body.extend_region.bytes = message->bytes;
        break;
    case WIRE_GATE_TRIM:
        out.which_body = attnd_pb_GateRequest_trim_tag;
        break;
    }
    return part_encode(&attnd_pb_GateRequest_msg, &out, bytes, capacity);
}

size_t codec_encode_gate_reply(
    const struct wire_gate_reply *message, uint8_t *bytes, size_t capacity)
{
    attnd_pb_GateReply out = {.id = message->id, .status = (attnd_pb_Status)message->error.status};

    part_write_text(out.detail, sizeof(out.detail), message->error.detail);
    if (message->has_session) {
        out.which_body = attnd_pb_GateReply_session_tag;
        write_session(&message->session, &out.body.session);
    } else if (message->region != 0) {
        out.which_body = attnd_pb_GateReply_region_tag;
        out.body.region.region = message->region;
    }
    return part_encode(&attnd_pb_GateReply_msg, &out, bytes, capacity);
}

bool codec_decode_gate_request(
    const uint8_t *bytes, size_t size, struct wire_gate_request *message, struct wire_error *error)
{
    attnd_pb_GateRequest in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = part_decode(&attnd_pb_GateRequest_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_gate_request(&in, message, error)
                   : part_fail(&attnd_pb_GateRequest_msg, &in, bytes, size, reason, error);
}

bool codec_decode_gate_reply(
    const uint8_t *bytes, size_t size, struct wire_gate_reply *message, struct wire_error *error)
{
    attnd_pb_GateReply in;
    const char *reason;

    memset(message, 0, sizeof(*message));
    bool decoded = part_decode(&attnd_pb_GateReply_msg, &in, bytes, size, &reason);
    message->id = in.id;
    return decoded ? read_gate_reply(&in, message, error)
                   : part_fail(&attnd_pb_GateReply_msg, &in, bytes, size, reason, error);
}

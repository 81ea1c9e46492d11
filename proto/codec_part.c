#include "codec_part.h"

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
SAME(WIRE_MEMORY_SHM, attnd_pb_MemoryKind_MEMORY_KIND_SHM);
SAME(WIRE_MEMORY_CUDA_IPC, attnd_pb_MemoryKind_MEMORY_KIND_CUDA_IPC);
SAME(WIRE_MEMORY_CUDA_VMM, attnd_pb_MemoryKind_MEMORY_KIND_CUDA_VMM);
SAME(WIRE_MEMORY_CUDA_VMM, _attnd_pb_MemoryKind_MAX);
SAME(WIRE_MPS_UNKNOWN, attnd_pb_Mps_MPS_UNKNOWN);
SAME(WIRE_MPS_OFF, attnd_pb_Mps_MPS_OFF);
SAME(WIRE_MPS_ON, attnd_pb_Mps_MPS_ON);
SAME(WIRE_MPS_ON, _attnd_pb_Mps_MAX);
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
SAME_BOUND(attnd_pb_AddRegion, handle.bytes, WIRE_HANDLE_BYTES);
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
SAME_BOUND(attnd_pb_Info, driver, WIRE_NAME_BYTES);
SAME_BOUND(attnd_pb_Info, families, WIRE_MAX_FAMILIES);
SAME_BOUND(attnd_pb_Info, families[0], WIRE_NAME_BYTES);
SAME_BOUND(attnd_pb_Info, version, WIRE_NAME_BYTES);

/* nanopb defines these only for messages of which every field, at any depth, is bounded. */
_Static_assert(attnd_pb_GateRequest_size <= WIRE_MAX_MESSAGE_BYTES, "GateRequest is too large");
_Static_assert(attnd_pb_GateReply_size <= WIRE_MAX_MESSAGE_BYTES, "GateReply is too large");
_Static_assert(attnd_pb_Request_size <= WIRE_MAX_MESSAGE_BYTES, "Request is too large");
_Static_assert(attnd_pb_Reply_size <= WIRE_MAX_MESSAGE_BYTES, "Reply is too large");

/* ---- Reading ------------------------------------------------------------------------------------ */

bool part_decode(
    const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size, const char **reason)
{
    pb_istream_t stream = pb_istream_from_buffer(bytes, size);

    if (pb_decode(&stream, type, message)) {
        return true;
    }
    *reason = PB_GET_ERROR(&stream);
    return false;
}

bool part_fail(const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size,
    const char *reason, struct wire_error *error)
{
    char path[FAULT_PATH_BYTES] = "";

    fault_locate(type, message, bytes, size, path);
    return wire_fail(error, WIRE_PROTOCOL_ERROR, "%s cannot be decoded: %s",
        path[0] == 0 ? "the message" : path, reason);
}

bool part_fail_enum(struct wire_error *error, const char *field, uint32_t value)
{
    return wire_fail(error, WIRE_PROTOCOL_ERROR,
        "%s is %" PRIu32 ", which is no value of this protocol version", field, value);
}

bool part_fail_body(struct wire_error *error)
{
    return wire_fail(
        error, WIRE_PROTOCOL_ERROR, "body is missing, or none of this protocol version");
}

bool part_is_member(uint32_t value, uint32_t last)
{
    return value >= 1 && value <= last;
}

bool part_read_status(uint32_t value, struct wire_error *status, struct wire_error *error)
{
    if (value >= WIRE_STATUS_END) {
        return part_fail_enum(error, "status", value);
    }
    status->status = (enum wire_status)value;
    return true;
}

bool part_read_token(const char *field, const uint8_t *bytes, size_t size,
    uint8_t token[WIRE_TOKEN_BYTES], struct wire_error *error)
{
    if (size != WIRE_TOKEN_BYTES) {
        return wire_fail(
            error, WIRE_PROTOCOL_ERROR, "%s has %zu bytes, not %d", field, size, WIRE_TOKEN_BYTES);
    }
    memcpy(token, bytes, WIRE_TOKEN_BYTES);
    return true;
}

bool part_read_device(const char *field, const attnd_pb_Device *in, struct wire_device *device,
    struct wire_error *error)
{
    if (!part_is_member((uint32_t)in->kind, WIRE_DEVICE_CUDA)) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR,
            "%s.kind is %" PRIu32 ", which is no value of this protocol version", field,
            (uint32_t)in->kind);
    }
    if (in->uuid.size != 0 && in->uuid.size != WIRE_UUID_BYTES) {
        return wire_fail(error, WIRE_PROTOCOL_ERROR, "%s.uuid has %u bytes, not %d or none", field,
            (unsigned)in->uuid.size, WIRE_UUID_BYTES);
    }
    device->kind = (enum wire_device_kind)in->kind;
    device->has_uuid = in->uuid.size != 0;
    memcpy(device->uuid, in->uuid.bytes, in->uuid.size);
    wire_copy_text(device->name, sizeof(device->name), in->name);
    return true;
}

void part_read_limits(const attnd_pb_Limits *in, struct wire_limits *limits)
{
    limits->in_flight = in->in_flight;
    limits->regions = in->regions;
    limits->region_bytes = in->region_bytes;
    limits->plans = in->plans;
    limits->workspace_bytes = in->workspace_bytes;
}

/* ---- Writing ------------------------------------------------------------------------------------ */

size_t part_encode(const pb_msgdesc_t *type, const void *message, uint8_t *bytes, size_t capacity)
{
    pb_ostream_t stream = pb_ostream_from_buffer(bytes, capacity);
    return pb_encode(&stream, type, message) ? stream.bytes_written : 0;
}

void part_write_text(char *out, size_t capacity, const char *text)
{
    memcpy(out, text, strnlen(text, capacity - 1));
}

attnd_pb_Device part_write_device(const struct wire_device *device)
{
    attnd_pb_Device out = {.kind = (attnd_pb_DeviceKind)device->kind};

    out.uuid.size = device->has_uuid ? WIRE_UUID_BYTES : 0;
    memcpy(out.uuid.bytes, device->uuid, out.uuid.size);
    part_write_text(out.name, sizeof(out.name), device->name);
    return out;
}

attnd_pb_Limits part_write_limits(const struct wire_limits *limits)
{
    return (attnd_pb_Limits){.in_flight = limits->in_flight,
        .regions = limits->regions,
        .region_bytes = limits->region_bytes,
        .plans = limits->plans,
        .workspace_bytes = limits->workspace_bytes};
}

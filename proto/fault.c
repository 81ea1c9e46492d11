#include "fault.h"

#include "attnd.pb.h"

#include <pb_common.h>
#include <pb_decode.h>

#include <stdio.h>
#include <string.h>

#define NAME_OF_SINGULAR(name) #name
#define NAME_OF_OPTIONAL(name) #name
#define NAME_OF_REPEATED(name) #name
#define NAME_OF_ONEOF(names) NAME_OF_MEMBER names
#define NAME_OF_MEMBER(set, member, path) #member
#define NAME_ENTRY(message, allocation, rule, type, name, tag) {message, tag, NAME_OF_##rule(name)},
#define NAMES_OF(message) message##_FIELDLIST(NAME_ENTRY, &message##_msg)

static const struct {
    const pb_msgdesc_t *message;
    uint32_t tag;
    const char *name;
} field_names[] = {
    // clang-format off
    NAMES_OF(attnd_pb_GateRequest)
    NAMES_OF(attnd_pb_Open)
    NAMES_OF(attnd_pb_AddRegion)
    NAMES_OF(attnd_pb_DropRegion)
    NAMES_OF(attnd_pb_ExtendRegion)
    NAMES_OF(attnd_pb_GateReply)
    NAMES_OF(attnd_pb_Session)
    NAMES_OF(attnd_pb_Limits)
    NAMES_OF(attnd_pb_Device)
    NAMES_OF(attnd_pb_Region)
    NAMES_OF(attnd_pb_Request)
    NAMES_OF(attnd_pb_Hello)
    NAMES_OF(attnd_pb_Tensor)
    NAMES_OF(attnd_pb_AddPlan)
    NAMES_OF(attnd_pb_DropPlan)
    NAMES_OF(attnd_pb_Submit)
    NAMES_OF(attnd_pb_Call)
    NAMES_OF(attnd_pb_Reply)
    NAMES_OF(attnd_pb_Plan)
    NAMES_OF(attnd_pb_Failed)
    NAMES_OF(attnd_pb_Counters)
    NAMES_OF(attnd_pb_Stats)
    NAMES_OF(attnd_pb_Info)
    // clang-format on
};

static void append_name(char path[FAULT_PATH_BYTES], const pb_msgdesc_t *message, uint32_t tag)
{
    for (size_t i = 0; i < sizeof(field_names) / sizeof(field_names[0]); i++) {
        if (field_names[i].message == message && field_names[i].tag == tag) {
            size_t used = strlen(path);
            snprintf(path + used, FAULT_PATH_BYTES - used, "%s%s", used == 0 ? "" : ".",
                field_names[i].name);
        }
    }
}

/* The submessage in field `tag` of `message`, whose bytes follow the tag in `content`. */
static void locate_inside(const pb_msgdesc_t *type, void *message, uint32_t tag,
    pb_istream_t content, const uint8_t *end, char path[FAULT_PATH_BYTES])
{
    pb_field_iter_t field;
    pb_istream_t inner;

    if (pb_field_iter_begin(&field, type, message) && pb_field_iter_find(&field, tag) &&
        PB_LTYPE_IS_SUBMSG(field.type) && pb_make_string_substream(&content, &inner)) {
        fault_locate(
            field.submsg_desc, field.pData, end - inner.bytes_left, inner.bytes_left, path);
    }
}

void fault_locate(const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size,
    char path[FAULT_PATH_BYTES])
{
    pb_istream_t nothing = pb_istream_from_buffer(bytes, 0);
    if (!pb_decode(&nothing, type, message)) { /* sets all fields to their defaults */
        return;
    }
    while (size > 0) {
        pb_istream_t stream = pb_istream_from_buffer(bytes, size);
        pb_wire_type_t wire_type;
        uint32_t tag;
        bool end;
        if (!pb_decode_tag(&stream, &wire_type, &tag, &end)) {
            return;
        }
        pb_istream_t content = stream;
        size_t length = pb_skip_field(&stream, wire_type) ? size - stream.bytes_left : size;
        pb_istream_t field = pb_istream_from_buffer(bytes, length);
        if (!pb_decode_ex(&field, type, message, PB_DECODE_NOINIT)) {
            append_name(path, type, tag);
            if (wire_type == PB_WT_STRING) {
                locate_inside(type, message, tag, content, bytes + length, path);
            }
            return;
        }
        bytes += length;
        size -= length;
    }
}

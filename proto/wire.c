#include "wire.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Length of the printable UTF-8 character at `text`, 0 if there is none. */
static size_t printable_length(const unsigned char *text)
{
    static const unsigned smallest[] = {0, 0, 0x80, 0x800, 0x10000};

    if (text[0] < 0x80) {
        return text[0] >= 0x20 && text[0] != 0x7f;
    }
    size_t length = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
    if (text[0] < 0xc0 || text[0] >= 0xf8) {
        return 0;
    }
    unsigned value = text[0] & (0x7FU >> length);
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
        value = value << 6 | (text[i] & 0x3fU);
    }
    /* U+0080 to U+009F are control characters too: terminals take U+009B for an escape sequence. */
    bool valid = value >= smallest[length] && value >= 0xa0 && value <= 0x10ffff &&
                 (value < 0xd800 || value > 0xdfff);
    return valid ? length : 0;
}

bool wire_fail(struct wire_error *error, enum wire_status status, const char *format, ...)
{
    va_list arguments;

    error->status = status;
    va_start(arguments, format);
    vsnprintf(error->detail, sizeof(error->detail), format, arguments);
    va_end(arguments);
    return false;
}

void wire_copy_text(char *out, size_t capacity, const char *text)
{
    const unsigned char *in = (const unsigned char *)text;
    size_t used = 0;

    while (*in != 0 && used + 1 < capacity) {
        size_t length = printable_length(in);
        if (length == 0) {
            out[used++] = '?';
            in++;
        } else if (used + length < capacity) {
            memcpy(out + used, in, length);
            used += length;
            in += length;
        } else {
            break;
        }
    }
    memset(out + used, 0, capacity - used);
}

const char *wire_status_name(enum wire_status status)
{
    static const char *const names[] = {
        [WIRE_OK] = "OK",
        [WIRE_INVALID_ARGUMENT] = "INVALID_ARGUMENT",
        [WIRE_UNSUPPORTED] = "UNSUPPORTED",
        [WIRE_UNSUPPORTED_MEMORY] = "UNSUPPORTED_MEMORY",
        [WIRE_RESOURCE_EXHAUSTED] = "RESOURCE_EXHAUSTED",
        [WIRE_AGAIN] = "AGAIN",
        [WIRE_NOT_FOUND] = "NOT_FOUND",
        [WIRE_PERMISSION_DENIED] = "PERMISSION_DENIED",
        [WIRE_VERSION_MISMATCH] = "VERSION_MISMATCH",
        [WIRE_DRAINING] = "DRAINING",
        [WIRE_TIMED_OUT] = "TIMED_OUT",
        [WIRE_CANCELLED] = "CANCELLED",
        [WIRE_DISCONNECTED] = "DISCONNECTED",
        [WIRE_FORKED] = "FORKED",
        [WIRE_PROTOCOL_ERROR] = "PROTOCOL_ERROR",
        [WIRE_DEVICE_FAULT] = "DEVICE_FAULT",
        [WIRE_INTERNAL] = "INTERNAL",
        [WIRE_LANE_POISONED] = "LANE_POISONED",
    };
    _Static_assert(sizeof(names) / sizeof(names[0]) == WIRE_STATUS_END, "a status has no name");

    return (unsigned)status < WIRE_STATUS_END ? names[status] : "?";
}

const char *wire_dtype_name(enum wire_dtype dtype)
{
    switch (dtype) {
    case WIRE_FP16:
        return "fp16";
    case WIRE_BF16:
        return "bf16";
    case WIRE_FP32:
        return "fp32";
    case WIRE_INT32:
        return "int32";
    }
    return "?";
}

const char *wire_role_name(enum wire_role role)
{
    static const char *const names[] = {
        [0] = "?",
        [WIRE_Q] = "q",
        [WIRE_K] = "k",
        [WIRE_V] = "v",
        [WIRE_OUT] = "out",
        [WIRE_LSE] = "lse",
        [WIRE_DOUT] = "dout",
        [WIRE_DLSE] = "dlse",
        [WIRE_DQ] = "dq",
        [WIRE_DK] = "dk",
        [WIRE_DV] = "dv",
        [WIRE_BIAS] = "bias",
        [WIRE_DBIAS] = "dbias",
        [WIRE_SLOPES] = "slopes",
        [WIRE_DSLOPES] = "dslopes",
        [WIRE_SINKS] = "sinks",
        [WIRE_DSINKS] = "dsinks",
        [WIRE_CU_SEQLENS_Q] = "cu_seqlens_q",
        [WIRE_CU_SEQLENS_K] = "cu_seqlens_k",
        [WIRE_SEQLENS_K] = "seqlens_k",
    };
    _Static_assert(sizeof(names) / sizeof(names[0]) == WIRE_ROLE_END, "a role has no name");

    return (unsigned)role < WIRE_ROLE_END ? names[role] : "?";
}

size_t wire_dtype_bytes(enum wire_dtype dtype)
{
    switch (dtype) {
    case WIRE_FP16:
    case WIRE_BF16:
        return 2;
    case WIRE_FP32:
    case WIRE_INT32:
        return 4;
    }
    return 0;
}

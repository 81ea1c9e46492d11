/*
 * What the codecs of the gate and of rpc.sock have in common: reading and writing of parts that occur
 * in both, and the ways in which decoding fails.
 *
 * Pure functions without allocation, any thread; for codec.c and codec_gate.c alone.
 */
#pragma once

#include <pb.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.pb.h"
#include "wire.h"

/* false: *reason is nanopb's. */
bool part_decode(const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size,
    const char **reason);

/* The part_fail functions return false. */
bool part_fail(const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size,
    const char *reason, struct wire_error *error);
bool part_fail_enum(struct wire_error *error, const char *field, uint32_t value);
bool part_fail_body(struct wire_error *error);

/* Whether an enum without a meaning for 0 has a member's value. */
bool part_is_member(uint32_t value, uint32_t last);

bool part_read_status(uint32_t value, struct wire_error *status, struct wire_error *error);
bool part_read_token(const char *field, const uint8_t *bytes, size_t size,
    uint8_t token[WIRE_TOKEN_BYTES], struct wire_error *error);
bool part_read_device(const char *field, const attnd_pb_Device *in, struct wire_device *device,
    struct wire_error *error);
void part_read_limits(const attnd_pb_Limits *in, struct wire_limits *limits);

/* The encoded size, 0: it does not fit. */
size_t part_encode(const pb_msgdesc_t *type, const void *message, uint8_t *bytes, size_t capacity);

/* nanopb reads strings up to their array's end: `text` may lack a NUL, the copy into zeroes does not. */
void part_write_text(char *out, size_t capacity, const char *text);
attnd_pb_Device part_write_device(const struct wire_device *device);
attnd_pb_Limits part_write_limits(const struct wire_limits *limits);

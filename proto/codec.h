/*
 * Bytes <-> the plain structs of wire.h. With codec_part.c and fault.c the only users of nanopb.
 *
 * Decoding believes nothing: what comes out has every count within its array, every string ended,
 * every enum a member or the decode fails with a sentence. Whether it makes sense is validate.h's
 * question. Pure functions without allocation; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* Each returns the encoded size, or 0 if it does not fit (capacity WIRE_MAX_MESSAGE_BYTES always does). */
size_t codec_encode_gate_request(
    const struct wire_gate_request *message, uint8_t *bytes, size_t capacity);
size_t codec_encode_gate_reply(
    const struct wire_gate_reply *message, uint8_t *bytes, size_t capacity);
size_t codec_encode_request(const struct wire_request *message, uint8_t *bytes, size_t capacity);
size_t codec_encode_reply(const struct wire_reply *message, uint8_t *bytes, size_t capacity);

/* Each fills *message, or returns false with *error set (and message->id if that much was readable). */
bool codec_decode_gate_request(
    const uint8_t *bytes, size_t size, struct wire_gate_request *message, struct wire_error *error);
bool codec_decode_gate_reply(
    const uint8_t *bytes, size_t size, struct wire_gate_reply *message, struct wire_error *error);
bool codec_decode_request(
    const uint8_t *bytes, size_t size, struct wire_request *message, struct wire_error *error);
bool codec_decode_reply(
    const uint8_t *bytes, size_t size, struct wire_reply *message, struct wire_error *error);

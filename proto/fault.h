/*
 * Which field of a message could not be decoded.
 *
 * nanopb says what is wrong, but not where. So a message that failed is decoded once more, field by
 * field: the first that fails is the one. Pure, any thread; for codec_part.c alone.
 */
#pragma once

#include <pb.h>

#include <stddef.h>
#include <stdint.h>

#define FAULT_PATH_BYTES 96

/* Appends the field's name ("submit.calls.offsets") to `path`, or nothing if there is none to name.
 * `message` is a struct of `type`, used as scratch. Recursion is as deep as messages nest. */
void fault_locate(const pb_msgdesc_t *type, void *message, const uint8_t *bytes, size_t size,
    char path[FAULT_PATH_BYTES]);

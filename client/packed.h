/*
 * Tensors that hold two or three side by side: kv and qkv, and their gradients. Pure functions; any
 * thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "wire.h"

#define PACKED_PARTS 3

/* The parts of one, as tensors. It must stay where it is. */
struct packed {
    DLTensor part[PACKED_PARTS];
    int64_t shape[WIRE_MAX_DIMS]; /* of each part */
    int64_t strides[WIRE_MAX_DIMS];
};

/* Takes a tensor (..., parts, heads, head_dim) apart, which sentences call `name`. */
bool packed_split(const char *name, const DLTensor *tensor, int64_t parts, struct packed *packed,
    struct wire_error *error);

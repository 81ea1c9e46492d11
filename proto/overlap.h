/*
 * Index arithmetic of strided tensors: which elements may share memory.
 *
 * All answers are on the safe side: what is called apart is apart. Tensors have elements, and bytes
 * that fit an int64_t; pure functions, any thread. For validate.c.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

/* Whether two elements of one tensor may share memory: by validate_plan()'s rule for outputs. The
 * strides of extents above 1 are positive. If true, *dim is the dimension whose stride is too small. */
bool overlap_within(const struct wire_tensor *tensor, uint32_t *dim);

/* Whether b, whose first element lies `distance` >= 0 elements behind a's, has equal strides and an
 * index box disjoint from a's, so that the two are apart though their byte ranges meet. */
bool overlap_is_interleaved(
    const struct wire_tensor *a, const struct wire_tensor *b, int64_t distance);

/*
 * The elements of tensors in this process's memory: copies between layouts. Pure functions; any thread.
 */
#pragma once

#include <stdint.h>

#include "wire.h"

/* Gives the tensor row-major strides without gaps. Returns its size in bytes; both are nonsense if the
 * shape is so large that the validator refuses it. */
uint64_t elements_compact(struct wire_tensor *tensor);

/* Copies the elements of one tensor to another of equal shape and dtype. */
void elements_copy(const struct wire_tensor *to, void *to_data, const struct wire_tensor *from,
    const void *from_data);

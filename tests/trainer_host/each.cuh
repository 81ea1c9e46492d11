/*
 * The trainer's loops, whose rounds are a GPU's threads, as loops of this processor in the order of the
 * stream; their rounds go backwards: who counts on an order is found out.
 */
#pragma once

#include <cuda_runtime.h>
#include <dlpack/dlpack.h>
#include <stddef.h>

static const DLDevice EACH_PLACE = {kDLCUDA, 0};

template <class Body>
static cudaError_t each(cudaStream_t stream, size_t count, Body body)
{
    return fake_enqueue(stream, [=] {
        for (size_t at = count; at-- > 0;) {
            body(at);
        }
    });
}

/*
 * The trainer's loops, whose rounds are a GPU's threads, as a loop of this processor, backwards: who
 * counts on an order is found out.
 */
#pragma once

#include <cuda_runtime.h>
#include <dlpack/dlpack.h>
#include <stddef.h>

/* Memory of the process: attnd_forward() copies it, and returns when it has ended. */
static const DLDevice EACH_PLACE = {kDLCPU, 0};

template <class Body>
static cudaError_t each(cudaStream_t stream, size_t count, Body body)
{
    for (size_t at = count; at-- > 0;) {
        body(at);
    }
    return stream != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

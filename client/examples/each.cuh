/*
 * A loop whose rounds are threads of a GPU: each(stream, count, body) runs body(0) to body(count - 1)
 * in any order, behind what is in the stream. Only enqueues.
 */
#pragma once

#include <cuda_runtime.h>
#include <dlpack/dlpack.h>
#include <stddef.h>

/* Of what the loops work on. */
static const DLDevice EACH_PLACE = {kDLCUDA, 0};

/* Few threads a block: the loops are over as little as a thousand rows, and processors are many. */
enum {
    EACH_THREADS = 64,
};

template <class Body>
static __global__ void each_thread(size_t count, Body body)
{
    size_t at = (size_t)blockIdx.x * EACH_THREADS + threadIdx.x;
    if (at < count) {
        body(at);
    }
}

template <class Body>
static cudaError_t each(cudaStream_t stream, size_t count, Body body)
{
    size_t blocks = (count + EACH_THREADS - 1) / EACH_THREADS;
    if (blocks > 0) {
        each_thread<<<(unsigned)blocks, EACH_THREADS, 0, stream>>>(count, body);
    }
    return cudaGetLastError();
}

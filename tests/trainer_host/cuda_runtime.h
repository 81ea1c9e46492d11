/*
 * As much of CUDA's run-time library as the trainer's device uses, on a machine without a GPU: memory
 * is the process's own, everything runs at once and in order. For tests of the device's host code.
 */
#pragma once

#include <chrono>
#include <cstdlib>
#include <cstring>

#define __device__

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
};

enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
};

enum {
    cudaStreamNonBlocking = 1,
};

struct fake_stream {
    int unused;
};

struct fake_event {
    std::chrono::steady_clock::time_point when;
    bool recorded;
};

typedef fake_stream *cudaStream_t;
typedef fake_event *cudaEvent_t;

static inline const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}

static inline cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}

static inline cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

/* Dirty, as a GPU's memory is. */
static inline cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    *memory = std::malloc(bytes);
    if (*memory == nullptr) {
        return cudaErrorMemoryAllocation;
    }
    std::memset(*memory, 0xA5, bytes);
    return cudaSuccess;
}

static inline cudaError_t cudaFree(void *memory)
{
    std::free(memory);
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *memory, int byte, size_t bytes, cudaStream_t stream)
{
    std::memset(memory, byte, bytes);
    return stream != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream)
{
    std::memcpy(to, from, bytes);
    return stream != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    *stream = new fake_stream();
    return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return stream != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

static inline cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = new fake_event();
    return cudaSuccess;
}

static inline cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

static inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->when = std::chrono::steady_clock::now();
    event->recorded = true;
    return stream != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return event->recorded ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    *ms = std::chrono::duration<float, std::milli>(to->when - from->when).count();
    return from->recorded && to->recorded ? cudaSuccess : cudaErrorInvalidValue;
}

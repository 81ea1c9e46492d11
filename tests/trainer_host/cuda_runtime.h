/*
 * As much of CUDA's run-time library as the trainer's device uses, over the fake driver: memory and
 * streams are what libattnd takes for a GPU's, and this processor does what streams are given, later
 * and in order.
 */
#pragma once

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

extern "C" {
#include "fake_cuda.h"
}

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

struct fake_event {
    std::chrono::steady_clock::time_point when;
    std::atomic<int> given;
    std::atomic<int> passed;
};

typedef void *cudaStream_t;
typedef fake_event *cudaEvent_t;

/* The only one: freeing memory waits for it. */
static void *fake_stream;

template <class Work>
static cudaError_t fake_enqueue(cudaStream_t stream, Work work)
{
    if (stream == nullptr) {
        return cudaErrorInvalidValue;
    }
    auto run = [](void *context) {
        Work *todo = static_cast<Work *>(context);
        (*todo)();
        delete todo;
    };
    fake_cuda_launch(stream, run, new Work(work));
    return cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}

static inline cudaError_t cudaSetDevice(int device)
{
    bool good = device == 0 && cuCtxPushCurrent_v2(fake_cuda_context(0, true)) == 0;
    return good ? cudaSuccess : cudaErrorInvalidValue;
}

/* Dirty, as a GPU's memory is. */
static inline cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    *memory = fake_cuda_alloc(0, FAKE_MALLOC, bytes);
    if (*memory == nullptr) {
        return cudaErrorMemoryAllocation;
    }
    std::memset(*memory, 0xA5, bytes);
    return cudaSuccess;
}

static inline cudaError_t cudaFree(void *memory)
{
    if (memory != nullptr) {
        fake_cuda_synchronize(fake_stream);
        fake_cuda_free(memory);
    }
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *memory, int byte, size_t bytes, cudaStream_t stream)
{
    return fake_enqueue(stream, [=] { std::memset(memory, byte, bytes); });
}

static inline cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream)
{
    return fake_enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    *stream = fake_stream = fake_cuda_stream();
    return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    fake_cuda_synchronize(stream);
    return cudaSuccess;
}

static inline cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    return cudaStreamSynchronize(stream); /* it ends with the process */
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
    event->given++;
    return fake_enqueue(stream, [=] {
        event->when = std::chrono::steady_clock::now();
        event->passed++;
    });
}

static inline cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    while (event->passed != event->given) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    return event->given > 0 ? cudaSuccess : cudaErrorInvalidValue;
}

static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    *ms = std::chrono::duration<float, std::milli>(to->when - from->when).count();
    return from->passed == from->given ? cudaSuccess : cudaErrorInvalidValue;
}

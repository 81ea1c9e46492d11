#include "work.h"

#include <cstdio>
#include <cstdlib>
#include <cuda_runtime_api.h>

#define THREADS 256
#define BLOCKS 264

static __device__ float from_bf16(uint16_t bits)
{
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

static __device__ uint16_t to_bf16(float value)
{
    return static_cast<uint16_t>(__float_as_uint(value) >> 16);
}

static __device__ uint32_t mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ x >> 16;
}

static __device__ float signed_unit(uint32_t bits)
{
    return static_cast<float>(static_cast<int32_t>(mix(bits)) >> 8) * 0x1p-23F;
}

static __device__ size_t first_index()
{
    return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

static __device__ size_t stride()
{
    return static_cast<size_t>(gridDim.x) * blockDim.x;
}

static __global__ void fill(uint16_t *values, size_t count, uint32_t seed)
{
    for (size_t i = first_index(); i < count; i += stride()) {
        values[i] = to_bf16(signed_unit(static_cast<uint32_t>(i) * 2654435761U + seed));
    }
}

/* A result's bits and its place make the new number: a NaN stays one, anything else is in [-1, 1]. */
static __device__ uint16_t stirred(float result, size_t i, uint32_t step)
{
    if (isnan(result)) {
        return 0x7fc0;
    }
    uint32_t bits = __float_as_uint(result) >> 16;
    return to_bf16(signed_unit(bits * 0x9e3779b9U + static_cast<uint32_t>(i) * 31U + step));
}

static __global__ void stir(work_tensors t, size_t count, uint32_t step)
{
    const uint16_t nan = 0xffff;
    for (size_t i = first_index(); i < count; i += stride()) {
        float out = from_bf16(t.out[i]);
        t.out[i] = nan;
        if (t.dq == nullptr) {
            t.q[i] = stirred(out, i, 4 * step);
            t.k[i] = stirred(out, i, 4 * step + 1);
            t.v[i] = stirred(out, i, 4 * step + 2);
            continue;
        }
        t.q[i] = stirred(out + from_bf16(t.dq[i]), i, 4 * step);
        t.k[i] = stirred(from_bf16(t.dk[i]), i, 4 * step + 1);
        t.v[i] = stirred(from_bf16(t.dv[i]), i, 4 * step + 2);
        t.dq[i] = nan;
        t.dk[i] = nan;
        t.dv[i] = nan;
    }
}

static __device__ uint64_t global_timer()
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

static __global__ void spin(uint64_t ns)
{
    uint64_t begin = global_timer();
    while (global_timer() - begin < ns) {}
}

static __global__ void fault(volatile int *nowhere)
{
    *nowhere = 1;
}

static __global__ void differences(
    const uint16_t *a, const uint16_t *b, size_t count, unsigned long long *total)
{
    unsigned long long mine = 0;
    for (size_t i = first_index(); i < count; i += stride()) {
        mine += a[i] != b[i] ? 1 : 0;
    }
    if (mine > 0) {
        atomicAdd(total, mine);
    }
}

/* Non-negative floats are ordered like their bits. */
static __global__ void distance(
    const uint16_t *a, const uint16_t *b, size_t count, unsigned long long *largest)
{
    float mine = 0;
    for (size_t i = first_index(); i < count; i += stride()) {
        float apart = fabsf(from_bf16(a[i]) - from_bf16(b[i]));
        mine = a[i] == b[i] || apart <= mine ? mine : apart;
        mine = a[i] != b[i] && isnan(apart) ? __int_as_float(0x7f800000) : mine;
    }
    atomicMax(largest, static_cast<unsigned long long>(__float_as_uint(mine)));
}

static void require(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        (void)std::fprintf(stderr, "work: %s: %s\n", what, cudaGetErrorString(error));
        std::_Exit(1);
    }
}

static cudaStream_t stream_of(void *stream)
{
    return static_cast<cudaStream_t>(stream);
}

/* A word on the device that two of the kernels count in. */
static unsigned long long *zeroed_word()
{
    static unsigned long long *word;
    if (word == nullptr) {
        require(cudaMalloc(reinterpret_cast<void **>(&word), sizeof *word), "a word");
    }
    require(cudaMemset(word, 0, sizeof *word), "cudaMemset");
    return word;
}

static unsigned long long word_value(const unsigned long long *word)
{
    unsigned long long value = 0;
    require(cudaGetLastError(), "a launch");
    require(cudaMemcpy(&value, word, sizeof value, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return value;
}

/* -- public --------------------------------------------------------------------------------- */

void work_fill(void *stream, uint16_t *values, size_t count, uint32_t seed)
{
    fill<<<BLOCKS, THREADS, 0, stream_of(stream)>>>(values, count, seed);
    require(cudaGetLastError(), "work_fill");
}

void work_stir(void *stream, const struct work_tensors *tensors, size_t count, uint32_t step)
{
    stir<<<BLOCKS, THREADS, 0, stream_of(stream)>>>(*tensors, count, step);
    require(cudaGetLastError(), "work_stir");
}

void work_spin(void *stream, uint64_t ns)
{
    spin<<<1, 1, 0, stream_of(stream)>>>(ns);
    require(cudaGetLastError(), "work_spin");
}

void work_fault(void *stream)
{
    fault<<<1, 1, 0, stream_of(stream)>>>(reinterpret_cast<int *>(64));
    require(cudaGetLastError(), "work_fault");
}

void work_poison(void *stream, void *memory, size_t bytes)
{
    require(cudaMemsetAsync(memory, 0xff, bytes, stream_of(stream)), "work_poison");
}

uint64_t work_differences(const void *a, const void *b, size_t bytes)
{
    unsigned long long *total = zeroed_word();
    differences<<<BLOCKS, THREADS>>>(
        static_cast<const uint16_t *>(a), static_cast<const uint16_t *>(b), bytes / 2, total);
    return word_value(total);
}

float work_distance(const void *a, const void *b, size_t count)
{
    unsigned long long *largest = zeroed_word();
    distance<<<BLOCKS, THREADS>>>(
        static_cast<const uint16_t *>(a), static_cast<const uint16_t *>(b), count, largest);

    union {
        uint32_t bits;
        float value;
    } result = {static_cast<uint32_t>(word_value(largest))};

    return result.value;
}

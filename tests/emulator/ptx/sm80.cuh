/*
 * The instructions of compute capability 8.0 that the kernels use, as the emulator does them: the same
 * functions as in kernels/device/ptx/sm80.cuh. tests/emulator/emulator.h says what is checked.
 *
 * Approximate functions are the exact ones, rounded; subnormal arguments and results are 0.
 */
#pragma once

#include <math.h>
#include <stdint.h>

#include "cuda_runtime_api.h"
#include "machine.h"
#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define PTX_FUNCTION static __device__ __forceinline__
#define PTX_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct ptx_words2 {
    uint32_t word[2];
};

struct ptx_words4 {
    uint32_t word[4];
};

/* -- places -------------------------------------------------------------------------------------- */

PTX_FUNCTION uint32_t ptx_thread(void)
{
    return machine_thread();
}

PTX_FUNCTION uint32_t ptx_block(void)
{
    return machine_block();
}

PTX_FUNCTION char *ptx_shared_memory(void)
{
    return machine_shared_memory();
}

PTX_FUNCTION uint32_t ptx_shared_address(const void *shared, PTX_PLACE)
{
    return machine_shared_address(shared, {file, line});
}

/* -- threads together ---------------------------------------------------------------------------- */

PTX_FUNCTION void ptx_barrier(PTX_PLACE)
{
    machine_barrier({file, line});
}

PTX_FUNCTION float ptx_shuffle_xor(float value, uint32_t mask, PTX_PLACE)
{
    struct machine_part part = {bits_of_float(value), mask, nullptr, {0, 0}, nullptr};
    machine_together(MACHINE_SHUFFLE_XOR, &part, {file, line});
    return float_of_bits(static_cast<uint32_t>(part.value));
}

PTX_FUNCTION int64_t ptx_shuffle_up(int64_t value, uint32_t lanes, PTX_PLACE)
{
    struct machine_part part = {static_cast<uint64_t>(value), lanes, nullptr, {0, 0}, nullptr};
    machine_together(MACHINE_SHUFFLE_UP, &part, {file, line});
    return static_cast<int64_t>(part.value);
}

PTX_FUNCTION bool ptx_all(bool here, PTX_PLACE)
{
    struct machine_part part = {here ? 1U : 0U, 0, nullptr, {0, 0}, nullptr};
    machine_together(MACHINE_ALL, &part, {file, line});
    return part.value != 0;
}

/* -- asynchronous copies, global to shared -------------------------------------------------------- */

PTX_FUNCTION void ptx_copy_16(uint32_t shared, const void *global, uint32_t bytes, PTX_PLACE)
{
    machine_copy(shared, global, bytes, {file, line});
}

PTX_FUNCTION void ptx_copy_commit(void)
{
    machine_copy_commit();
}

template <int Pending>
PTX_FUNCTION void ptx_copy_wait(void)
{
    machine_copy_wait(Pending);
}

/* -- matrices ------------------------------------------------------------------------------------ */

PTX_FUNCTION struct ptx_words4 ptx_load_matrices(uint32_t shared, PTX_PLACE)
{
    struct ptx_words4 m;
    struct machine_part part = {0, shared, m.word, {0, 0}, nullptr};
    machine_together(MACHINE_LOAD_MATRICES, &part, {file, line});
    return m;
}

PTX_FUNCTION struct ptx_words4 ptx_load_matrices_transposed(uint32_t shared, PTX_PLACE)
{
    struct ptx_words4 m;
    struct machine_part part = {0, shared, m.word, {0, 0}, nullptr};
    machine_together(MACHINE_LOAD_TRANSPOSED, &part, {file, line});
    return m;
}

PTX_FUNCTION void ptx_multiply_fp16(
    float (&d)[4], struct ptx_words4 a, uint32_t b0, uint32_t b1, PTX_PLACE)
{
    struct machine_part part = {0, 0, a.word, {b0, b1}, d};
    machine_together(MACHINE_MULTIPLY_FP16, &part, {file, line});
}

PTX_FUNCTION void ptx_multiply_bf16(
    float (&d)[4], struct ptx_words4 a, uint32_t b0, uint32_t b1, PTX_PLACE)
{
    struct machine_part part = {0, 0, a.word, {b0, b1}, d};
    machine_together(MACHINE_MULTIPLY_BF16, &part, {file, line});
}

/* -- arithmetic ---------------------------------------------------------------------------------- */

PTX_FUNCTION float ptx_no_subnormal(float x)
{
    return fabsf(x) < 0x1p-126F ? copysignf(0, x) : x;
}

PTX_FUNCTION float ptx_exp2(float x)
{
    return ptx_no_subnormal(exp2f(ptx_no_subnormal(x)));
}

PTX_FUNCTION uint32_t ptx_opaque(uint32_t x)
{
    return x;
}

PTX_FUNCTION float ptx_maximum(float x, float y)
{
    return fmaxf(x, y);
}

PTX_FUNCTION float ptx_log2(float x)
{
    float argument = ptx_no_subnormal(x);
    return argument == 0 ? -INFINITY : log2f(argument);
}

PTX_FUNCTION float ptx_reciprocal(float x)
{
    float argument = ptx_no_subnormal(x);
    return argument == 0 ? copysignf(INFINITY, argument) : ptx_no_subnormal(1 / argument);
}

PTX_FUNCTION uint32_t ptx_pack_fp16(float low, float high)
{
    return fp16_of_float(low) | static_cast<uint32_t>(fp16_of_float(high)) << 16;
}

PTX_FUNCTION uint32_t ptx_pack_bf16(float low, float high)
{
    return bf16_of_float(low) | static_cast<uint32_t>(bf16_of_float(high)) << 16;
}

PTX_FUNCTION float ptx_float_of_fp16(uint16_t x)
{
    return float_of_fp16(x);
}

PTX_FUNCTION float ptx_float_of_bits(uint32_t x)
{
    return float_of_bits(x);
}

PTX_FUNCTION uint32_t ptx_bits_of_float(float x)
{
    return bits_of_float(x);
}

/* -- global memory ------------------------------------------------------------------------------- */

PTX_FUNCTION int32_t ptx_read_once(const int32_t *global, PTX_PLACE)
{
    machine_align(global, 4, "a number is read", {file, line});
    return __atomic_load_n(global, __ATOMIC_RELAXED);
}

PTX_FUNCTION struct ptx_words4 ptx_load_16(const void *from, PTX_PLACE)
{
    struct ptx_words4 words;
    machine_align(from, 16, "16 bytes are read", {file, line});
    __builtin_memcpy(&words, from, sizeof words);
    return words;
}

PTX_FUNCTION void ptx_store_16(void *to, struct ptx_words4 words, PTX_PLACE)
{
    machine_align(to, 16, "16 bytes are written", {file, line});
    __builtin_memcpy(to, &words, sizeof words);
}

PTX_FUNCTION void ptx_add(float *global, float value, PTX_PLACE)
{
    machine_align(global, 4, "a number is added to", {file, line});
    *global += value;
}

/*
 * The instructions of compute capability 8.0 that the kernels use, one to a function, and what a
 * thread knows of its place. Everything in device code that is not plain C++ is here, so that other
 * versions of this file can run the kernels elsewhere: include it in angle brackets.
 *
 * Operands of matrix instructions are registers as the PTX manual's fragments have them: two 16-bit
 * values in one word, the one of the lower column or row in the lower half.
 */
#pragma once

#include <stdint.h>

#define PTX_FUNCTION static __device__ __forceinline__

struct ptx_words2 {
    uint32_t word[2];
};

struct ptx_words4 {
    uint32_t word[4];
};

/* -- places -------------------------------------------------------------------------------------- */

PTX_FUNCTION uint32_t ptx_thread(void)
{
    return threadIdx.x;
}

PTX_FUNCTION uint32_t ptx_block(void)
{
    return blockIdx.x;
}

/* The block's dynamic shared memory, aligned to 128 bytes. */
PTX_FUNCTION char *ptx_shared_memory(void)
{
    extern __shared__ __align__(128) char ptx_shared_bytes[];
    return ptx_shared_bytes;
}

PTX_FUNCTION uint32_t ptx_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* -- threads together ---------------------------------------------------------------------------- */

PTX_FUNCTION void ptx_barrier(void)
{
    __syncthreads();
}

PTX_FUNCTION float ptx_shuffle_xor(float value, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffU, value, (int)mask);
}

PTX_FUNCTION int64_t ptx_shuffle_up(int64_t value, uint32_t lanes)
{
    return __shfl_up_sync(0xffffffffU, (long long)value, lanes);
}

/* Whether it is so in all threads of the warp. */
PTX_FUNCTION bool ptx_all(bool here)
{
    return __all_sync(0xffffffffU, here) != 0;
}

/* -- asynchronous copies, global to shared -------------------------------------------------------- */

/* 16 bytes, of which the first `bytes` are read and the rest becomes 0. Both addresses are multiples
 * of 16; past the first level of the cache. */
PTX_FUNCTION void ptx_copy_16(uint32_t shared, const void *global, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes)
                 : "memory");
}

PTX_FUNCTION void ptx_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `Pending` of this thread's groups are under way. */
template <int Pending>
PTX_FUNCTION void ptx_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/* -- matrices ------------------------------------------------------------------------------------ */

/* Four 8x8 matrices: lanes 8 n .. 8 n + 7 hold the shared addresses of matrix n's rows. */
PTX_FUNCTION struct ptx_words4 ptx_load_matrices(uint32_t shared)
{
    struct ptx_words4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.word[0]), "=r"(m.word[1]), "=r"(m.word[2]), "=r"(m.word[3])
                 : "r"(shared)
                 : "memory");
    return m;
}

/* The same, each matrix transposed. */
PTX_FUNCTION struct ptx_words4 ptx_load_matrices_transposed(uint32_t shared)
{
    struct ptx_words4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.word[0]), "=r"(m.word[1]), "=r"(m.word[2]), "=r"(m.word[3])
                 : "r"(shared)
                 : "memory");
    return m;
}

/* d += a b; a is 16x16, b 16x8, d 16x8. */
PTX_FUNCTION void ptx_multiply_fp16(float (&d)[4], struct ptx_words4 a, uint32_t b0, uint32_t b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

PTX_FUNCTION void ptx_multiply_bf16(float (&d)[4], struct ptx_words4 a, uint32_t b0, uint32_t b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b0), "r"(b1));
}

/* -- arithmetic ---------------------------------------------------------------------------------- */

PTX_FUNCTION float ptx_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The same number, of which the compiler does not know that: what is computed from it is computed
 * anew each time, and not kept in registers meanwhile. */
PTX_FUNCTION uint32_t ptx_opaque(uint32_t x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* The greater one; a NaN only of two. */
PTX_FUNCTION float ptx_maximum(float x, float y)
{
    return fmaxf(x, y);
}

PTX_FUNCTION float ptx_log2(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

PTX_FUNCTION float ptx_reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Rounded to nearest even, `low` in the lower half. */
PTX_FUNCTION uint32_t ptx_pack_fp16(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

PTX_FUNCTION uint32_t ptx_pack_bf16(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

PTX_FUNCTION float ptx_float_of_fp16(uint16_t x)
{
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

PTX_FUNCTION float ptx_float_of_bits(uint32_t x)
{
    return __uint_as_float(x);
}

PTX_FUNCTION uint32_t ptx_bits_of_float(float x)
{
    return __float_as_uint(x);
}

/* -- global memory ------------------------------------------------------------------------------- */

/* Written by others meanwhile: read once, as a whole. */
PTX_FUNCTION int32_t ptx_read_once(const int32_t *global)
{
    int32_t value;
    asm volatile("ld.relaxed.sys.global.s32 %0, [%1];"
                 : "=r"(value)
                 : "l"(__cvta_generic_to_global(global))
                 : "memory");
    return value;
}

/* 16 bytes at a multiple of 16, generic addresses. */
PTX_FUNCTION struct ptx_words4 ptx_load_16(const void *from)
{
    uint4 v = *static_cast<const uint4 *>(from);
    struct ptx_words4 words = {{v.x, v.y, v.z, v.w}};
    return words;
}

PTX_FUNCTION void ptx_store_16(void *to, struct ptx_words4 words)
{
    *static_cast<uint4 *>(to) =
        make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
}

/* Adds to global memory without waiting for the result. */
PTX_FUNCTION void ptx_add(float *global, float value)
{
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(global)),
                 "f"(value)
                 : "memory");
}

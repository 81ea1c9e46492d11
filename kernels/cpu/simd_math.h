/*
 * Numbers one at a time, written so that compilers vectorise loops over them: bits, e^x, tanh and the
 * 16-bit formats. Part of simd.c, compiled once per level. A NaN stays a NaN.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))

static inline uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/*
 * e^x = power * (1 + the result), for x within -87.4 .. 89. The polynomial for (e^r - 1 - r) / r^2
 * makes the largest relative error of e^r, 3.1e-9, as small as its degree allows.
 */
static ALWAYS_INLINE float reduced_exponential(float x, float *power)
{
    const float rounder = 0x1.8p23F;     /* the last bit of such a number is worth 1 */
    const float ln2_head = 0x1.62e4p-1F; /* short: its product with n is exact */
    const float ln2_tail = 0x1.7f7d1cp-20F;
    float shifted = x * 0x1.715476p0F + rounder;
    float n = shifted - rounder;
    float r = x - n * ln2_head;
    float y = 0x1.6a23cap-10F;

    r = r - n * ln2_tail;
    y = y * r + 0x1.123a22p-7F;
    y = y * r + 0x1.5558f4p-5F;
    y = y * r + 0x1.555492p-3F;
    y = y * r + 0x1.fffffcp-2F;
    *power = float_of((bits_of(shifted) << 23) + 0x3f800000U);
    return y * (r * r) + r;
}

/* Within 1.1 ulp; below the smallest normal number 0, near the largest and above inf. */
static ALWAYS_INLINE float exponential(float x)
{
    const float low = -87.33F;
    const float high = 89.0F;
    float clamped = x < low ? low : x;
    float power;
    float y;

    clamped = clamped > high ? high : clamped;
    y = (reduced_exponential(clamped, &power) + 1.0F) * power;
    return x < low ? 0.0F : y;
}

/* (e^2|x| - 1) / (e^2|x| + 1), where small x keep all their digits; 1 from 9.2 on. */
static ALWAYS_INLINE float hyperbolic_tangent(float x)
{
    const float high = 9.2F;
    float magnitude = float_of(bits_of(x) & 0x7fffffffU);
    float power;
    float y;

    magnitude = magnitude > high ? high : magnitude;
    y = reduced_exponential(2.0F * magnitude, &power);
    y = y * power + (power - 1.0F);
    y = y / (y + 2.0F);
    return float_of(bits_of(y) | (bits_of(x) & 0x80000000U));
}

static ALWAYS_INLINE float from_bf16(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

static ALWAYS_INLINE float from_fp16(uint16_t half)
{
    uint32_t magnitude = half & 0x7fffU;
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    uint32_t value = bits_of(float_of(magnitude << 13) * 0x1p112F);

    return float_of(sign | (magnitude >= 0x7c00U ? 0x7f800000U | magnitude << 13 : value));
}

/* To nearest, ties to even, in all three ranges; the addition of 0.5 rounds what becomes subnormal. */
static ALWAYS_INLINE uint16_t to_fp16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t sign = bits >> 16 & 0x8000U;
    uint32_t magnitude = bits & 0x7fffffffU;
    uint32_t normal = (magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1U)) >> 13;
    uint32_t small = bits_of(float_of(magnitude) + 0.5F) - 0x3f000000U;
    uint32_t large = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
    uint32_t half = magnitude < 0x38800000U ? small : normal;

    return (uint16_t)(sign | (magnitude >= 0x47800000U ? large : half));
}

static ALWAYS_INLINE uint16_t to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
    uint32_t nan = bits >> 16 | 0x40U;

    return (uint16_t)((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
}

/*
 * Numbers of 16 bits as the device converts them: to fp32 exactly, from fp32 to the nearest, ties to
 * even, beyond the largest to infinity. Stateless.
 */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of_bf16(uint16_t x)
{
    return float_of_bits(static_cast<uint32_t>(x) << 16);
}

/* Exponents move by a product, which makes fp16's subnormal numbers normal ones. */
static inline float float_of_fp16(uint16_t x)
{
    uint32_t magnitude = x & 0x7fffU;
    uint32_t sign = static_cast<uint32_t>(x & 0x8000U) << 16;
    uint32_t finite = bits_of_float(float_of_bits(magnitude << 13) * 0x1p112F);
    uint32_t special = 0x7f800000U | magnitude << 13;

    return float_of_bits(sign | (magnitude < 0x7c00U ? finite : special));
}

static inline uint16_t bf16_of_float(float x)
{
    uint32_t bits = bits_of_float(x);

    if ((bits & 0x7fffffffU) > 0x7f800000U) {
        return 0x7fffU;
    }
    return static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

static inline uint16_t fp16_of_float(float x)
{
    uint32_t bits = bits_of_float(x);
    uint32_t sign = bits >> 16 & 0x8000U;
    uint32_t magnitude = bits & 0x7fffffffU;

    if (magnitude > 0x7f800000U) {
        return 0x7fffU;
    }
    if (magnitude >= 0x477ff000U) { /* 65520 */
        return static_cast<uint16_t>(sign | 0x7c00U);
    }
    if (magnitude < 0x38800000U) { /* 2^-14: below lie steps of 2^-24, those of 0.5 in fp32 */
        uint32_t steps = bits_of_float(float_of_bits(magnitude) + 0.5F) - 0x3f000000U;
        return static_cast<uint16_t>(sign | steps);
    }
    uint32_t rounded = magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1U);
    return static_cast<uint16_t>(sign | rounded >> 13);
}

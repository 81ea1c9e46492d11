/*
 * Which probabilities dropout keeps, for every family: a function of coordinates alone.
 *
 * Philox4x32-10 (Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011). A draw
 * makes eight values of 16 bits, for the elements {i, i + 8} x {j, j + 1, j + 8, j + 9} of a pattern
 * of 16 x 16. Plain C that is CUDA as well; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define PHILOX_FUNCTION static __host__ __device__ inline
#else
#define PHILOX_FUNCTION static inline
#endif

/* Value n is in bits 16 * (n % 2) .. of word n / 2. */
struct philox_values {
    uint32_t word[4];
};

struct philox_stream {
    uint64_t seed;
    uint32_t offset;
    uint32_t head; /* batch * heads_q + head */
};

PHILOX_FUNCTION uint32_t philox_query(int64_t i)
{
    return (uint32_t)((i >> 4) * 8 + (i & 7));
}

PHILOX_FUNCTION uint32_t philox_key(int64_t j)
{
    return (uint32_t)((j >> 4) * 4 + ((j & 7) >> 1));
}

/* query and key are those of philox_query() and philox_key(). */
PHILOX_FUNCTION struct philox_values philox_draw(
    struct philox_stream stream, uint32_t query, uint32_t key)
{
    uint32_t low = (uint32_t)stream.seed;
    uint32_t high = (uint32_t)(stream.seed >> 32);
    uint32_t a = query;
    uint32_t b = key;
    uint32_t c = stream.head;
    uint32_t d = stream.offset;

    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)0xd2511f53U * a;
        uint64_t second = (uint64_t)0xcd9e8d57U * c;
        a = (uint32_t)(second >> 32) ^ b ^ low;
        c = (uint32_t)(first >> 32) ^ d ^ high;
        b = (uint32_t)second;
        d = (uint32_t)first;
        low += 0x9e3779b9U;
        high += 0xbb67ae85U;
    }
    struct philox_values draw = {{a, b, c, d}};
    return draw;
}

/* The decision for one element, from its coordinates. */
PHILOX_FUNCTION bool philox_keeps(
    struct philox_stream stream, int64_t i, int64_t j, uint32_t threshold)
{
    struct philox_values draw = philox_draw(stream, philox_query(i), philox_key(j));
    unsigned number = (unsigned)(4 * ((i >> 3) & 1) + 2 * ((j >> 3) & 1) + (j & 1));

    return (draw.word[number / 2] >> 16 * (number % 2) & 0xffffU) >= threshold;
}

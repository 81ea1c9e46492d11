/*
 * What a trainer does on its streams between two calls: small kernels over bf16 tensors. Every function
 * but the last two only enqueues. A stream is a cudaStream_t.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The tensors of one self-attention, all of the same number of elements. */
struct work_tensors {
    uint16_t *q;
    uint16_t *k;
    uint16_t *v;
    uint16_t *out;
    uint16_t *dq; /* NULL: forward alone */
    uint16_t *dk;
    uint16_t *dv;
};

/* Numbers from -1 to 1 that follow from the seed. */
void work_fill(void *stream, uint16_t *values, size_t count, uint32_t seed);

/* New q, k and v from the results, so that the slightest difference grows; results become NaN. */
void work_stir(void *stream, const struct work_tensors *tensors, size_t count, uint32_t step);

/* Keeps one multiprocessor busy that long. */
void work_spin(void *stream, uint64_t ns);

/* Writes where nothing is: the process's context is lost. */
void work_fault(void *stream);

/* Fills bytes with 0xff: NaN in every dtype. */
void work_poison(void *stream, void *memory, size_t bytes);

/* How many 16-bit words differ; waits for the device. */
uint64_t work_differences(const void *a, const void *b, size_t bytes);

/* max |a - b| of bf16 numbers, infinity with NaNs; waits for the device. */
float work_distance(const void *a, const void *b, size_t count);

#ifdef __cplusplus
}
#endif

/*
 * A shape's tensors in memory, and both directions' problems over them: what is launched and timed.
 *
 * Inputs are normal random numbers, the same for equal shapes. One thread.
 */
#pragma once

#include "shape.h"
#include "tensor.h"

struct subject {
    const struct shape *shape; /* borrowed */
    struct attn_problem forward;
    struct attn_problem backward;
    void *memory[TENSOR_COUNT]; /* owned, as all below */
    size_t bytes[TENSOR_COUNT];
    int32_t *cu_seqlens_q;
    int32_t *cu_seqlens_k;
    int32_t *seqlens_k;
};

void subject_init(struct subject *subject, const struct shape *shape);
void subject_finish(struct subject *subject);

/* Gives tensor id its random numbers (again). */
void subject_fill(struct subject *subject, enum tensor_id id);

/* Makes every byte of tensor id that value; 0xff makes all elements NaN. */
void subject_set_bytes(struct subject *subject, enum tensor_id id, int value);

/* Problems without memory, for asking a family about them. */
void subject_sketch(struct subject *subject, const struct shape *shape);

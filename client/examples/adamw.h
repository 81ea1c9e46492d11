/*
 * AdamW with clipping of the gradient's length, over one flat array of parameters in a device's
 * memory. The caller owns parameters and gradients; this owns the two moments.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "device.h"

struct adamw {
    struct device *device; /* borrowed */
    float *mean;           /* owned; running mean of the gradient */
    float *squares;        /* owned; and of its square */
    double mean_weight;    /* beta1^steps, what the zeros at the start still weigh */
    double squares_weight; /* beta2^steps */
};

/* One step's numbers, the same for every parameter. */
struct adamw_step {
    float rate;
    float clip; /* factor of the gradient */
};

/* A piece of the flat array; decay shrinks each value by rate * decay a step. */
struct adamw_piece {
    size_t first;
    size_t count;
    float decay;
};

/* false: no memory */
bool adamw_init(struct adamw *adamw, struct device *device, size_t count);
void adamw_finish(struct adamw *adamw);

/* Begins a step with this learning rate; the length of the gradient, of `count`, is clipped to
 * longest. false: the device failed. */
bool adamw_begin(struct adamw *adamw, const float *gradient, size_t count, float rate,
    float longest, struct adamw_step *step);

/* Moves one piece; every piece exactly once in a step. */
void adamw_move(const struct adamw *adamw, const struct adamw_step *step,
    const struct adamw_piece *piece, const float *gradient, float *values);

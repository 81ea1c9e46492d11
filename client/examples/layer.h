/*
 * The parts of a transformer other than attention, as descriptions that a device (device.h) computes
 * with: rows of floats in its memory. No functions.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* y = x weight^T + bias: x (rows, inputs), weight (outputs, inputs), bias (outputs) or NULL. */
struct layer_linear {
    const float *x;
    const float *weight;
    const float *bias;
    size_t rows;
    size_t inputs;
    size_t outputs;
};

/* LayerNorm over each row of `channels`. mean and scale (1 / deviation) have one number a row;
 * the forward writes them for the backward. */
struct layer_norm {
    const float *x;
    const float *gain;
    const float *bias;
    float *mean;
    float *scale;
    size_t rows;
    size_t channels;
};

/* x[row] = token_table[token] + position_table[row % context] */
struct layer_embedding {
    const uint8_t *tokens;
    size_t rows;
    size_t context;
    size_t channels;
};

/* One step of AdamW over arrays of `count`; the step's numbers are the same for all of them. */
struct layer_adamw {
    const float *gradient;
    float *values;
    float *mean;    /* running mean of the gradient */
    float *squares; /* and of its square */
    size_t count;
    float beta1;
    float beta2;
    float mean_scale; /* 1 / what of the running numbers is no longer their start's zero */
    float squares_scale;
    float rate;
    float clip;  /* factor of the gradient */
    float decay; /* shrinks each value by rate * decay */
};

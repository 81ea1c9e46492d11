/*
 * The parts of a transformer other than attention, forward and backward, over rows of floats.
 * Matrix products go through CBLAS, the rest is plain C. No state, no allocation. Gradients of
 * parameters are added to what is there; other gradients say at each function what they do.
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

void layer_linear_forward(const struct layer_linear *linear, float *y);
void layer_linear_input_gradient(const struct layer_linear *linear, const float *dy, float *dx);
void layer_linear_weight_gradient(
    const struct layer_linear *linear, const float *dy, float *dweight, float *dbias);

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

void layer_norm_forward(const struct layer_norm *norm, float *y);
/* Adds to dx, which the residual connection has begun. */
void layer_norm_backward(
    const struct layer_norm *norm, const float *dy, float *dx, float *dgain, float *dbias);

/* y = gelu(y) in place, slope = its derivative there. */
void layer_gelu_forward(float *y, float *slope, size_t count);

/* dy becomes the gradient of what gelu read. */
void layer_gelu_backward(float *dy, const float *slope, size_t count);

/* x[row] = token_table[token] + position_table[row % context] */
struct layer_embedding {
    const uint8_t *tokens;
    size_t rows;
    size_t context;
    size_t channels;
};

void layer_embedding_forward(const struct layer_embedding *embedding, const float *token_table,
    const float *position_table, float *x);
void layer_embedding_backward(const struct layer_embedding *embedding, const float *dx,
    float *dtoken_table, float *dposition_table);

/* Mean over the rows of -ln softmax(logits)[target]; logits become the gradient of that mean. */
double layer_cross_entropy(float *logits, const uint8_t *targets, size_t rows, size_t classes);

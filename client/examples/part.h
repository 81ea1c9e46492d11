/*
 * The arithmetic of a transformer's parts other than attention and matrix products, a row, a column
 * or an element at a time: written once, run by loops on the CPU and by threads on a GPU. No state.
 * Functions of different rows, columns or elements write to different places.
 */
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "layer.h"

#ifdef __CUDACC__
#define PART static __device__ __host__ inline
#else
#define PART static inline
#endif

/* bfloat16 is the upper half of a float32; to the nearest, ties to even. */
PART uint16_t part_narrow(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof(bits));
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
        return (uint16_t)(bits >> 16U | 0x40U); /* a NaN stays one */
    }
    return (uint16_t)((bits + 0x7FFFU + (bits >> 16U & 1U)) >> 16U);
}

PART float part_widen(uint16_t narrow)
{
    uint32_t bits = (uint32_t)narrow << 16U;
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

PART void part_norm_forward(const struct layer_norm *norm, float *y, size_t row)
{
    const float epsilon = 1e-5F;
    size_t channels = norm->channels;
    const float *x = norm->x + row * channels;
    float sum = 0.0F;
    for (size_t c = 0; c < channels; c++) {
        sum += x[c];
    }
    float mean = sum / (float)channels;
    float squares = 0.0F;
    for (size_t c = 0; c < channels; c++) {
        squares += (x[c] - mean) * (x[c] - mean);
    }
    float scale = 1.0F / sqrtf(squares / (float)channels + epsilon);
    for (size_t c = 0; c < channels; c++) {
        y[row * channels + c] = (x[c] - mean) * scale * norm->gain[c] + norm->bias[c];
    }
    norm->mean[row] = mean;
    norm->scale[row] = scale;
}

/* With n = (x - mean) * scale and g = dy * gain: dx += scale * (g - mean(g) - n * mean(g * n)). */
PART void part_norm_input(const struct layer_norm *norm, const float *dy, float *dx, size_t row)
{
    size_t channels = norm->channels;
    const float *x = norm->x + row * channels;
    float mean = norm->mean[row];
    float scale = norm->scale[row];
    float sum_g = 0.0F;
    float sum_gn = 0.0F;
    dy += row * channels;
    dx += row * channels;
    for (size_t c = 0; c < channels; c++) {
        float g = dy[c] * norm->gain[c];
        sum_g += g;
        sum_gn += g * (x[c] - mean) * scale;
    }
    float mean_g = sum_g / (float)channels;
    float mean_gn = sum_gn / (float)channels;
    for (size_t c = 0; c < channels; c++) {
        float n = (x[c] - mean) * scale;
        dx[c] += scale * (dy[c] * norm->gain[c] - mean_g - n * mean_gn);
    }
}

PART void part_norm_parameters(
    const struct layer_norm *norm, const float *dy, float *dgain, float *dbias, size_t column)
{
    float gain = 0.0F;
    float bias = 0.0F;
    for (size_t row = 0; row < norm->rows; row++) {
        size_t at = row * norm->channels + column;
        gain += dy[at] * (norm->x[at] - norm->mean[row]) * norm->scale[row];
        bias += dy[at];
    }
    dgain[column] += gain;
    dbias[column] += bias;
}

/* gelu(x) = x * P(X <= x) of a normal X; its derivative is P(X <= x) + x * density(x). */
PART void part_gelu(float *y, float *slope, size_t at)
{
    const float root_half = 0.70710678F;
    const float density_at_0 = 0.39894228F;
    float x = y[at];
    float below = 0.5F * (1.0F + erff(x * root_half));
    y[at] = x * below;
    slope[at] = below + x * density_at_0 * expf(-0.5F * x * x);
}

PART void part_embed(const struct layer_embedding *embedding, const float *token_table,
    const float *position_table, float *x, size_t row)
{
    size_t channels = embedding->channels;
    const float *token = token_table + embedding->tokens[row] * channels;
    const float *position = position_table + row % embedding->context * channels;
    for (size_t c = 0; c < channels; c++) {
        x[row * channels + c] = token[c] + position[c];
    }
}

/* One channel of both tables, whose rows many tokens share. */
PART void part_embed_tables(const struct layer_embedding *embedding, const float *dx,
    float *dtoken_table, float *dposition_table, size_t column)
{
    size_t channels = embedding->channels;
    for (size_t row = 0; row < embedding->rows; row++) {
        float gradient = dx[row * channels + column];
        dtoken_table[embedding->tokens[row] * channels + column] += gradient;
        dposition_table[row % embedding->context * channels + column] += gradient;
    }
}

/* The row's -ln softmax(logits)[target]; logits become the gradient of the mean over all rows. In
 * double: finite differences of the mean need more than float's digits. */
PART double part_cross_entropy(
    float *logits, const uint8_t *targets, size_t rows, size_t classes, size_t row)
{
    float *line = logits + row * classes;
    float largest = line[0];
    for (size_t c = 1; c < classes; c++) {
        largest = fmaxf(largest, line[c]);
    }
    double sum = 0.0;
    double target = (double)line[targets[row]] - (double)largest;
    for (size_t c = 0; c < classes; c++) {
        line[c] = expf(line[c] - largest);
        sum += (double)line[c];
    }
    float share = (float)(1.0 / (sum * (double)rows));
    for (size_t c = 0; c < classes; c++) {
        line[c] *= share;
    }
    line[targets[row]] -= 1.0F / (float)rows;
    return log(sum) - target;
}

PART void part_adamw(const struct layer_adamw *adamw, size_t at)
{
    const float epsilon = 1e-8F;
    float g = adamw->gradient[at] * adamw->clip;
    float mean = adamw->beta1 * adamw->mean[at] + (1.0F - adamw->beta1) * g;
    float square = adamw->beta2 * adamw->squares[at] + (1.0F - adamw->beta2) * g * g;
    adamw->mean[at] = mean;
    adamw->squares[at] = square;
    float move = mean * adamw->mean_scale / (sqrtf(square * adamw->squares_scale) + epsilon);
    adamw->values[at] -= adamw->rate * (move + adamw->decay * adamw->values[at]);
}

#include "layer.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include <cblas.h>

static int blas_int(size_t n)
{
    assert(n <= INT_MAX);
    return (int)n;
}

void layer_linear_forward(const struct layer_linear *linear, float *y)
{
    int rows = blas_int(linear->rows);
    int inputs = blas_int(linear->inputs);
    int outputs = blas_int(linear->outputs);
    if (linear->bias != NULL) {
        for (size_t row = 0; row < linear->rows; row++) {
            memcpy(y + row * linear->outputs, linear->bias, linear->outputs * sizeof(*y));
        }
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, outputs, inputs, 1.0F, linear->x,
        inputs, linear->weight, inputs, linear->bias != NULL ? 1.0F : 0.0F, y, outputs);
}

void layer_linear_input_gradient(const struct layer_linear *linear, const float *dy, float *dx)
{
    int inputs = blas_int(linear->inputs);
    int outputs = blas_int(linear->outputs);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_int(linear->rows), inputs, outputs,
        1.0F, dy, outputs, linear->weight, inputs, 0.0F, dx, inputs);
}

void layer_linear_weight_gradient(
    const struct layer_linear *linear, const float *dy, float *dweight, float *dbias)
{
    int inputs = blas_int(linear->inputs);
    int outputs = blas_int(linear->outputs);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, outputs, inputs, blas_int(linear->rows),
        1.0F, dy, outputs, linear->x, inputs, 1.0F, dweight, inputs);
    if (dbias == NULL) {
        return;
    }
    for (size_t row = 0; row < linear->rows; row++) {
        cblas_saxpy(outputs, 1.0F, dy + row * linear->outputs, 1, dbias, 1);
    }
}

void layer_norm_forward(const struct layer_norm *norm, float *y)
{
    const float epsilon = 1e-5F;
    size_t channels = norm->channels;
    for (size_t row = 0; row < norm->rows; row++) {
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
}

/* With n = (x - mean) * scale and g = dy * gain: dx = scale * (g - mean(g) - n * mean(g * n)). */
void layer_norm_backward(
    const struct layer_norm *norm, const float *dy, float *dx, float *dgain, float *dbias)
{
    size_t channels = norm->channels;
    for (size_t row = 0; row < norm->rows; row++, dy += channels, dx += channels) {
        const float *x = norm->x + row * channels;
        float mean = norm->mean[row];
        float scale = norm->scale[row];
        float sum_g = 0.0F;
        float sum_gn = 0.0F;
        for (size_t c = 0; c < channels; c++) {
            float n = (x[c] - mean) * scale;
            float g = dy[c] * norm->gain[c];
            dgain[c] += dy[c] * n;
            dbias[c] += dy[c];
            sum_g += g;
            sum_gn += g * n;
        }
        float mean_g = sum_g / (float)channels;
        float mean_gn = sum_gn / (float)channels;
        for (size_t c = 0; c < channels; c++) {
            float n = (x[c] - mean) * scale;
            dx[c] += scale * (dy[c] * norm->gain[c] - mean_g - n * mean_gn);
        }
    }
}

/* gelu(x) = x * P(X <= x) of a normal X; its derivative is P(X <= x) + x * density(x). */
void layer_gelu_forward(float *y, float *slope, size_t count)
{
    const float root_half = 0.70710678F;
    const float density_at_0 = 0.39894228F;
    for (size_t i = 0; i < count; i++) {
        float x = y[i];
        float below = 0.5F * (1.0F + erff(x * root_half));
        y[i] = x * below;
        slope[i] = below + x * density_at_0 * expf(-0.5F * x * x);
    }
}

void layer_gelu_backward(float *dy, const float *slope, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        dy[i] *= slope[i];
    }
}

void layer_embedding_forward(const struct layer_embedding *embedding, const float *token_table,
    const float *position_table, float *x)
{
    size_t channels = embedding->channels;
    for (size_t row = 0; row < embedding->rows; row++, x += channels) {
        const float *token = token_table + embedding->tokens[row] * channels;
        const float *position = position_table + row % embedding->context * channels;
        for (size_t c = 0; c < channels; c++) {
            x[c] = token[c] + position[c];
        }
    }
}

void layer_embedding_backward(const struct layer_embedding *embedding, const float *dx,
    float *dtoken_table, float *dposition_table)
{
    size_t channels = embedding->channels;
    for (size_t row = 0; row < embedding->rows; row++, dx += channels) {
        float *token = dtoken_table + embedding->tokens[row] * channels;
        float *position = dposition_table + row % embedding->context * channels;
        for (size_t c = 0; c < channels; c++) {
            token[c] += dx[c];
            position[c] += dx[c];
        }
    }
}

/* Losses are summed in double: finite differences of the mean need more than float's digits. */
double layer_cross_entropy(float *logits, const uint8_t *targets, size_t rows, size_t classes)
{
    double total = 0.0;
    for (size_t row = 0; row < rows; row++) {
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
        total += log(sum) - target;
        float share = (float)(1.0 / (sum * (double)rows));
        for (size_t c = 0; c < classes; c++) {
            line[c] *= share;
        }
        line[targets[row]] -= 1.0F / (float)rows;
    }
    return total / (double)rows;
}

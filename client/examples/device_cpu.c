#include "device.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cblas.h>

#include "part.h"

struct device_cpu {
    struct device device;
    struct timespec stamps[DEVICE_STAMPS];
};

static int blas_int(size_t n)
{
    assert(n <= INT_MAX);
    return (int)n;
}

static void on_close(struct device *device)
{
    free(device); /* the first member of a device_cpu */
}

static void *on_allocate(struct device *device, size_t bytes)
{
    (void)device;
    return calloc(bytes > 0 ? bytes : 1, 1);
}

static void on_release(struct device *device, void *memory)
{
    (void)device;
    free(memory);
}

static void on_upload(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    memcpy(to, from, bytes);
}

static bool on_download(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    memcpy(to, from, bytes);
    return true;
}

static void on_zero(struct device *device, float *numbers, size_t count)
{
    (void)device;
    memset(numbers, 0, count * sizeof(*numbers));
}

static void on_add(struct device *device, float *sum, const float *other, size_t count)
{
    (void)device;
    for (size_t i = 0; i < count; i++) {
        sum[i] += other[i];
    }
}

static void on_narrow(struct device *device, uint16_t *to, const float *from, size_t count)
{
    (void)device;
    for (size_t i = 0; i < count; i++) {
        to[i] = part_narrow(from[i]);
    }
}

static void on_widen(struct device *device, float *to, const uint16_t *from, size_t count)
{
    (void)device;
    for (size_t i = 0; i < count; i++) {
        to[i] = part_widen(from[i]);
    }
}

static void on_linear_forward(struct device *device, const struct layer_linear *linear, float *y)
{
    (void)device;
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

static void on_linear_input(
    struct device *device, const struct layer_linear *linear, const float *dy, float *dx)
{
    (void)device;
    int inputs = blas_int(linear->inputs);
    int outputs = blas_int(linear->outputs);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_int(linear->rows), inputs, outputs,
        1.0F, dy, outputs, linear->weight, inputs, 0.0F, dx, inputs);
}

static void on_linear_parameters(struct device *device, const struct layer_linear *linear,
    const float *dy, float *dweight, float *dbias)
{
    (void)device;
    int inputs = blas_int(linear->inputs);
    int outputs = blas_int(linear->outputs);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, outputs, inputs, blas_int(linear->rows),
        1.0F, dy, outputs, linear->x, inputs, 1.0F, dweight, inputs);
    for (size_t row = 0; dbias != NULL && row < linear->rows; row++) {
        cblas_saxpy(outputs, 1.0F, dy + row * linear->outputs, 1, dbias, 1);
    }
}

static void on_norm_forward(struct device *device, const struct layer_norm *norm, float *y)
{
    (void)device;
    for (size_t row = 0; row < norm->rows; row++) {
        part_norm_forward(norm, y, row);
    }
}

static void on_norm_backward(struct device *device, const struct layer_norm *norm, const float *dy,
    float *dx, float *dgain, float *dbias)
{
    (void)device;
    for (size_t row = 0; row < norm->rows; row++) {
        part_norm_input(norm, dy, dx, row);
    }
    for (size_t column = 0; column < norm->channels; column++) {
        part_norm_parameters(norm, dy, dgain, dbias, column);
    }
}

static void on_gelu_forward(struct device *device, float *y, float *slope, size_t count)
{
    (void)device;
    for (size_t i = 0; i < count; i++) {
        part_gelu(y, slope, i);
    }
}

static void on_gelu_backward(struct device *device, float *dy, const float *slope, size_t count)
{
    (void)device;
    for (size_t i = 0; i < count; i++) {
        dy[i] *= slope[i];
    }
}

static void on_embedding_forward(struct device *device, const struct layer_embedding *embedding,
    const float *token_table, const float *position_table, float *x)
{
    (void)device;
    for (size_t row = 0; row < embedding->rows; row++) {
        part_embed(embedding, token_table, position_table, x, row);
    }
}

static void on_embedding_backward(struct device *device, const struct layer_embedding *embedding,
    const float *dx, float *dtoken_table, float *dposition_table)
{
    (void)device;
    for (size_t column = 0; column < embedding->channels; column++) {
        part_embed_tables(embedding, dx, dtoken_table, dposition_table, column);
    }
}

static bool on_cross_entropy(struct device *device, float *logits, const uint8_t *targets,
    size_t rows, size_t classes, double *loss)
{
    (void)device;
    double total = 0.0;
    for (size_t row = 0; row < rows; row++) {
        total += part_cross_entropy(logits, targets, rows, classes, row);
    }
    *loss = total / (double)rows;
    return true;
}

static bool on_length(struct device *device, const float *numbers, size_t count, double *length)
{
    (void)device;
    double squares = 0.0;
    for (size_t i = 0; i < count; i++) {
        squares += (double)numbers[i] * (double)numbers[i];
    }
    *length = sqrt(squares);
    return true;
}

static void on_adamw(struct device *device, const struct layer_adamw *adamw)
{
    (void)device;
    for (size_t i = 0; i < adamw->count; i++) {
        part_adamw(adamw, i);
    }
}

static void on_stamp(struct device *device, size_t stamp)
{
    struct device_cpu *cpu = (struct device_cpu *)device;
    assert(stamp < DEVICE_STAMPS);
    clock_gettime(CLOCK_MONOTONIC, &cpu->stamps[stamp]);
}

static double on_between_us(struct device *device, size_t from, size_t to)
{
    const struct device_cpu *cpu = (const struct device_cpu *)device;
    const struct timespec *a = &cpu->stamps[from];
    const struct timespec *b = &cpu->stamps[to];
    return (double)(b->tv_sec - a->tv_sec) * 1e6 + (double)(b->tv_nsec - a->tv_nsec) * 1e-3;
}

static const struct device_ops OPS = {
    .close = on_close,
    .allocate = on_allocate,
    .release = on_release,
    .upload = on_upload,
    .download = on_download,
    .zero = on_zero,
    .add = on_add,
    .narrow = on_narrow,
    .widen = on_widen,
    .linear_forward = on_linear_forward,
    .linear_input = on_linear_input,
    .linear_parameters = on_linear_parameters,
    .norm_forward = on_norm_forward,
    .norm_backward = on_norm_backward,
    .gelu_forward = on_gelu_forward,
    .gelu_backward = on_gelu_backward,
    .embedding_forward = on_embedding_forward,
    .embedding_backward = on_embedding_backward,
    .cross_entropy = on_cross_entropy,
    .length = on_length,
    .adamw = on_adamw,
    .stamp = on_stamp,
    .between_us = on_between_us,
};

struct device *device_cpu_open(void)
{
    struct device_cpu *cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL) {
        return NULL;
    }
    cpu->device = (struct device){.ops = &OPS, .place = {.device_type = kDLCPU}};
    openblas_set_num_threads(1);
    return &cpu->device;
}

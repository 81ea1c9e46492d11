/*
 * What computes the parts of the trainer's model other than attention: the CPU, or a GPU. All arrays
 * lie in the device's memory, which on the CPU is the process's own. Work runs in order; on a GPU it
 * is only enqueued, into `stream`, and the calls that return a bool wait until all of it is done.
 *
 * Gradients of parameters are added to what is there; other gradients say at each function what they
 * do. A failure is remembered: device->error is a sentence, and every later call that can says false.
 * One thread.
 */
#pragma once

#include <dlpack/dlpack.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DEVICE_STAMPS = 64,
    DEVICE_ERROR_BYTES = 256,
};

struct device;

struct device_ops {
    void (*close)(struct device *device);

    /* Zeroed memory. NULL: there is none left. release() accepts NULL. */
    void *(*allocate)(struct device *device, size_t bytes);
    void (*release)(struct device *device, void *memory);
    /* The source may change once it returns. */
    void (*upload)(struct device *device, void *to, const void *from, size_t bytes);
    bool (*download)(struct device *device, void *to, const void *from, size_t bytes);

    void (*zero)(struct device *device, float *numbers, size_t count);
    void (*add)(struct device *device, float *sum, const float *other, size_t count);
    /* From and to bfloat16. */
    void (*narrow)(struct device *device, uint16_t *to, const float *from, size_t count);
    void (*widen)(struct device *device, float *to, const uint16_t *from, size_t count);

    void (*linear_forward)(struct device *device, const struct layer_linear *linear, float *y);
    void (*linear_input)(
        struct device *device, const struct layer_linear *linear, const float *dy, float *dx);
    /* dbias may be NULL. */
    void (*linear_parameters)(struct device *device, const struct layer_linear *linear,
        const float *dy, float *dweight, float *dbias);

    void (*norm_forward)(struct device *device, const struct layer_norm *norm, float *y);
    /* Adds to dx, which the residual connection has begun. */
    void (*norm_backward)(struct device *device, const struct layer_norm *norm, const float *dy,
        float *dx, float *dgain, float *dbias);

    /* y = gelu(y) in place, slope = its derivative there. */
    void (*gelu_forward)(struct device *device, float *y, float *slope, size_t count);
    /* dy becomes the gradient of what gelu read. */
    void (*gelu_backward)(struct device *device, float *dy, const float *slope, size_t count);

    void (*embedding_forward)(struct device *device, const struct layer_embedding *embedding,
        const float *token_table, const float *position_table, float *x);
    void (*embedding_backward)(struct device *device, const struct layer_embedding *embedding,
        const float *dx, float *dtoken_table, float *dposition_table);

    /* Mean over the rows of -ln softmax(logits)[target]; logits become the gradient of that mean. */
    bool (*cross_entropy)(struct device *device, float *logits, const uint8_t *targets, size_t rows,
        size_t classes, double *loss);

    /* The length of a vector, the root of the sum of its squares. */
    bool (*length)(struct device *device, const float *numbers, size_t count, double *length);
    void (*adamw)(struct device *device, const struct layer_adamw *adamw);

    /* Notes when the work so far is done, as number `stamp` below DEVICE_STAMPS. */
    void (*stamp)(struct device *device, size_t stamp);
    /* Between two stamps; waits for them. */
    double (*between_us)(struct device *device, size_t from, size_t to);
};

struct device {
    const struct device_ops *ops;
    DLDevice place; /* of its memory, as tensors say it */
    bool shares;    /* the daemon sees memory from allocate() where it is */
    void *stream;   /* NULL: calls of attention wait for their result */
    char error[DEVICE_ERROR_BYTES];
};

/* The CPU; products by BLAS, on one thread: many trainers share the machine. NULL: no memory. */
struct device *device_cpu_open(void);

/* The GPU that CUDA calls the first. On failure NULL with a sentence in error. */
struct device *device_cuda_open(char error[DEVICE_ERROR_BYTES]);

#ifdef __cplusplus
}
#endif

/*
 * The trainer's device for GPUs, its loops run by this processor, against the one for CPUs: every
 * operation on the same random numbers.
 */
#include "device.h"
#include "rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROWS = 37,
    INPUTS = 24,
    OUTPUTS = 40,
    CONTEXT = 10,
    MOST = ROWS * OUTPUTS,
    ARRAYS = 6,
};

/* Both devices hold the same arrays; an operation runs on each, and all arrays are compared. */
struct twin {
    struct device *device[2];
    float *array[2][ARRAYS];
    uint8_t *tokens[2];
    int failures;
};

static void fail(struct twin *twin, const char *what, const char *how)
{
    fprintf(stderr, "%s: %s\n", what, how);
    twin->failures++;
}

static void *need(void *memory)
{
    if (memory == NULL) {
        fprintf(stderr, "no memory\n");
        exit(EXIT_FAILURE);
    }
    return memory;
}

static void fill(struct twin *twin, uint64_t seed)
{
    struct rng rng;
    float numbers[MOST];
    uint8_t tokens[ROWS];
    rng_init(&rng, seed);
    for (size_t i = 0; i < ARRAYS; i++) {
        for (size_t at = 0; at < MOST; at++) {
            numbers[at] = (float)rng_normal(&rng);
        }
        for (int d = 0; d < 2; d++) {
            struct device *device = twin->device[d];
            device->ops->upload(device, twin->array[d][i], numbers, sizeof(numbers));
        }
    }
    for (size_t row = 0; row < ROWS; row++) {
        tokens[row] = (uint8_t)rng_below(&rng, INPUTS); /* many meet in one row of a table */
    }
    for (int d = 0; d < 2; d++) {
        struct device *device = twin->device[d];
        device->ops->upload(device, twin->tokens[d], tokens, sizeof(tokens));
    }
}

static void compare(struct twin *twin, const char *what)
{
    float got[2][MOST];
    for (size_t i = 0; i < ARRAYS; i++) {
        for (int d = 0; d < 2; d++) {
            struct device *device = twin->device[d];
            if (!device->ops->download(device, got[d], twin->array[d][i], sizeof(got[d]))) {
                fail(twin, what, device->error);
            }
        }
        for (size_t at = 0; at < MOST; at++) {
            float error = fabsf(got[0][at] - got[1][at]);
            if (!(error <= 1e-4F * (1.0F + fabsf(got[0][at])))) {
                char how[128];
                snprintf(how, sizeof(how), "array %zu has at %zu %.8g and %.8g", i, at,
                    (double)got[0][at], (double)got[1][at]);
                fail(twin, what, how);
                return;
            }
        }
    }
}

typedef void (*operation)(struct device *device, float *const *a, const uint8_t *tokens);

static void linear(struct device *device, float *const *a, const uint8_t *tokens)
{
    (void)tokens;
    struct layer_linear with = {a[0], a[1], a[2], ROWS, INPUTS, OUTPUTS};
    device->ops->linear_forward(device, &with, a[3]);
    struct layer_linear without = {a[0], a[1], NULL, ROWS, INPUTS, OUTPUTS};
    device->ops->linear_forward(device, &without, a[4]);
}

static void linear_backward(struct device *device, float *const *a, const uint8_t *tokens)
{
    (void)tokens;
    struct layer_linear of = {a[0], a[1], a[2], ROWS, INPUTS, OUTPUTS};
    device->ops->linear_input(device, &of, a[3], a[4]);
    device->ops->linear_parameters(device, &of, a[3], a[5], a[2]);
    device->ops->linear_parameters(device, &of, a[3], a[5], NULL);
}

static void norm(struct device *device, float *const *a, const uint8_t *tokens)
{
    (void)tokens;
    struct layer_norm of = {a[0], a[1], a[1] + INPUTS, a[2], a[2] + ROWS, ROWS, INPUTS};
    device->ops->norm_forward(device, &of, a[3]);
    device->ops->norm_backward(device, &of, a[3], a[4], a[5], a[5] + INPUTS);
}

static void gelu(struct device *device, float *const *a, const uint8_t *tokens)
{
    (void)tokens;
    device->ops->gelu_forward(device, a[0], a[1], MOST);
    device->ops->gelu_backward(device, a[2], a[1], MOST);
}

static void embedding(struct device *device, float *const *a, const uint8_t *tokens)
{
    struct layer_embedding of = {tokens, ROWS, CONTEXT, INPUTS};
    device->ops->embedding_forward(device, &of, a[0], a[1], a[2]);
    device->ops->embedding_backward(device, &of, a[2], a[3], a[4]);
}

static void simple(struct device *device, float *const *a, const uint8_t *tokens)
{
    (void)tokens;
    device->ops->add(device, a[0], a[1], MOST);
    device->ops->zero(device, a[2], MOST / 2);
    device->ops->narrow(device, (uint16_t *)a[3], a[0], MOST);
    device->ops->widen(device, a[4], (const uint16_t *)a[3], MOST);
    device->ops->zero(device, a[3], MOST); /* bits of others are no numbers */
    void *cleared = device->ops->allocate(device, 4 * sizeof(float));
    device->ops->add(device, a[5], cleared, 4);
    device->ops->release(device, cleared);
    device->ops->release(device, NULL);
}

static void adamw(struct device *device, float *const *a, const uint8_t *tokens)
{
    (void)tokens;
    device->ops->zero(device, a[3], MOST);
    struct layer_adamw of = {
        a[0], a[1], a[2], a[3], MOST - 3, 0.9F, 0.99F, 10.0F, 100.0F, 0.01F, 0.5F, 0.1F};
    device->ops->adamw(device, &of);
}

static void check(struct twin *twin, const char *what, operation run)
{
    fill(twin, strlen(what));
    for (int d = 0; d < 2; d++) {
        run(twin->device[d], twin->array[d], twin->tokens[d]);
    }
    compare(twin, what);
}

static void check_numbers(struct twin *twin)
{
    double loss[2];
    double length[2];
    fill(twin, 3);
    for (int d = 0; d < 2; d++) {
        struct device *device = twin->device[d];
        bool good = device->ops->length(device, twin->array[d][0], MOST, &length[d]) &&
                    device->ops->cross_entropy(
                        device, twin->array[d][0], twin->tokens[d], ROWS, OUTPUTS, &loss[d]);
        if (!good) {
            fail(twin, "numbers", device->error);
            return;
        }
        device->ops->stamp(device, 0);
        device->ops->stamp(device, 1);
        double us = device->ops->between_us(device, 0, 1);
        if (!(us >= 0.0 && us < 1e6)) {
            fail(twin, "stamps", "the time between two is not");
        }
    }
    compare(twin, "cross entropy");
    if (!(fabs(loss[0] - loss[1]) < 1e-6 && loss[0] > 1.0 && loss[0] < 20.0)) {
        fail(twin, "cross entropy", "the losses differ");
    }
    if (!(fabs(length[0] - length[1]) < 1e-3 && fabs(length[0] - sqrt(MOST)) < 3.0)) {
        fail(twin, "length", "the lengths differ");
    }
}

int main(void)
{
    static struct twin twin;
    char error[DEVICE_ERROR_BYTES] = "";
    twin.device[0] = need(device_cpu_open());
    twin.device[1] = device_cuda_open(error);
    if (twin.device[1] == NULL) {
        fprintf(stderr, "%s\n", error);
        return EXIT_FAILURE;
    }
    for (int d = 0; d < 2; d++) {
        const struct device_ops *ops = twin.device[d]->ops;
        for (size_t i = 0; i < ARRAYS; i++) {
            twin.array[d][i] = need(ops->allocate(twin.device[d], MOST * sizeof(float)));
        }
        twin.tokens[d] = need(ops->allocate(twin.device[d], ROWS));
    }
    check(&twin, "simple", simple);
    check(&twin, "linear", linear);
    check(&twin, "linear backward", linear_backward);
    check(&twin, "norm", norm);
    check(&twin, "gelu", gelu);
    check(&twin, "embedding", embedding);
    check(&twin, "adamw", adamw);
    check_numbers(&twin);
    for (int d = 0; d < 2; d++) {
        for (size_t i = 0; i < ARRAYS; i++) {
            twin.device[d]->ops->release(twin.device[d], twin.array[d][i]);
        }
        twin.device[d]->ops->release(twin.device[d], twin.tokens[d]);
        twin.device[d]->ops->close(twin.device[d]);
    }
    printf("trainer's devices: %d failures\n", twin.failures);
    return twin.failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

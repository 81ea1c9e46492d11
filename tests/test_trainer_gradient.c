/*
 * The whole-model gradient of the example trainer, whose attention the real daemon computes, against
 * central finite differences of the loss. Each tensor is moved along its own gradient, along random
 * directions and at single random parameters, by a step of H and of 2 H; together they cancel the
 * error of third order. What is left is rounding, which is measured first.
 */
#include "attention.h"
#include "daemon.h"
#include "model.h"
#include "rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 2,
    RANDOM_DIRECTIONS = 3,
    SINGLE_PARAMETERS = 8,
    ROUNDING_SAMPLES = 40,
    ROWS = 24,
    ALPHABET = 10, /* few tokens, so that rows of the table get gradients from several places */
};

static const struct tensor_shape SHAPE = {
    .batch = 2, .seqlen = 12, .heads_q = 4, .heads_kv = 2, .head_dim = 8};
static const double H = 0.01;        /* length of a step */
static const double RELATIVE = 2e-3; /* the error of fifth order that is left; observed: < 5e-4 */
static const double DEVIATIONS = 6.0;
static const double BLIND = 0.02; /* along its gradient, a tensor must be judged finer than this */

struct fixture {
    struct model *model;
    struct rng rng;
    uint8_t tokens[ROWS];
    uint8_t targets[ROWS];
    float *origin;    /* the parameters */
    float *gradient;  /* there */
    float *direction; /* of the span under test, of length 1 */
    double rounding;  /* deviation of the loss that stems from rounding alone */
    int failures;
};

static void *need(void *memory)
{
    if (memory == NULL) {
        fprintf(stderr, "no memory\n");
        exit(EXIT_FAILURE);
    }
    return memory;
}

static double loss_here(struct fixture *fixture)
{
    double loss;
    if (!model_forward(fixture->model, fixture->tokens, fixture->targets, &loss)) {
        fprintf(stderr, "attention failed\n");
        exit(EXIT_FAILURE);
    }
    return loss;
}

/* Larger than a trainer's first parameters: every path then carries a gradient worth measuring. */
static void stir_parameters(struct fixture *fixture)
{
    float *parameters = model_parameters(fixture->model);
    size_t count = model_parameter_count(fixture->model);
    for (size_t i = 0; i < count; i++) {
        parameters[i] += (float)(0.2 * rng_normal(&fixture->rng));
    }
    memcpy(fixture->origin, parameters, count * sizeof(*parameters));
}

/* Moves every parameter by about its own rounding error: the loss then differs by its rounding. */
static void measure_rounding(struct fixture *fixture)
{
    float *parameters = model_parameters(fixture->model);
    size_t count = model_parameter_count(fixture->model);
    double base = loss_here(fixture);
    double squares = 0.0;
    for (int sample = 0; sample < ROUNDING_SAMPLES; sample++) {
        for (size_t i = 0; i < count; i++) {
            float way = rng_below(&fixture->rng, 2) == 0 ? -INFINITY : INFINITY;
            parameters[i] = nextafterf(fixture->origin[i], way);
        }
        double difference = loss_here(fixture) - base;
        squares += difference * difference;
    }
    memcpy(parameters, fixture->origin, count * sizeof(*parameters));
    fixture->rounding = sqrt(squares / ROUNDING_SAMPLES);
}

/* L(step) - L(-step) along the direction, and in *expected the gradient's word on it, for the steps
 * that the parameters' own rounding left of it. */
static double difference(
    struct fixture *fixture, const struct model_span *span, double step, double *expected)
{
    float *parameters = model_parameters(fixture->model) + span->first;
    const float *origin = fixture->origin + span->first;
    const float *gradient = fixture->gradient + span->first;
    double losses[2];
    *expected = 0.0;
    for (int side = 0; side < 2; side++) {
        double signed_step = side == 0 ? step : -step;
        for (size_t i = 0; i < span->count; i++) {
            parameters[i] =
                (float)((double)origin[i] + signed_step * (double)fixture->direction[i]);
            double moved = (double)parameters[i] - (double)origin[i];
            *expected += (side == 0 ? moved : -moved) * (double)gradient[i];
        }
        losses[side] = loss_here(fixture);
    }
    memcpy(parameters, origin, span->count * sizeof(*parameters));
    return losses[0] - losses[1];
}

/* One direction; returns the tolerance in relation to what was expected. */
static double check(struct fixture *fixture, const struct model_span *span, const char *what)
{
    double expected_near;
    double expected_far;
    double near = difference(fixture, span, H, &expected_near);
    double far = difference(fixture, span, 2.0 * H, &expected_far);
    double found = (8.0 * near - far) / 6.0;
    double expected = (8.0 * expected_near - expected_far) / 6.0;
    double rounding = fixture->rounding * sqrt(2.0 * (64.0 + 1.0)) / 6.0;
    double tolerance = RELATIVE * fabs(expected) + DEVIATIONS * rounding;
    if (!(fabs(found - expected) <= tolerance)) {
        fprintf(stderr, "%s, %s: the loss moves by %.9g, the gradient says %.9g, tolerance %.2g\n",
            span->name, what, found, expected, tolerance);
        fixture->failures++;
    }
    return tolerance / fabs(expected);
}

static double length_of(const float *numbers, size_t count)
{
    double squares = 0.0;
    for (size_t i = 0; i < count; i++) {
        squares += (double)numbers[i] * (double)numbers[i];
    }
    return sqrt(squares);
}

static void scale_direction(struct fixture *fixture, size_t count)
{
    float factor = (float)(1.0 / length_of(fixture->direction, count));
    for (size_t i = 0; i < count; i++) {
        fixture->direction[i] *= factor;
    }
}

static void check_along_gradient(struct fixture *fixture, const struct model_span *span)
{
    const float *gradient = fixture->gradient + span->first;
    if (!(length_of(gradient, span->count) > 0.0)) {
        fprintf(stderr, "%s: the gradient is zero\n", span->name);
        fixture->failures++;
        return;
    }
    memcpy(fixture->direction, gradient, span->count * sizeof(*gradient));
    scale_direction(fixture, span->count);
    double fineness = check(fixture, span, "along its gradient");
    if (!(fineness < BLIND)) {
        fprintf(stderr, "%s: judged no finer than to %.2g of its gradient\n", span->name, fineness);
        fixture->failures++;
    }
}

static void check_random_directions(struct fixture *fixture, const struct model_span *span)
{
    for (int n = 0; n < RANDOM_DIRECTIONS; n++) {
        for (size_t i = 0; i < span->count; i++) {
            fixture->direction[i] = (float)rng_normal(&fixture->rng);
        }
        scale_direction(fixture, span->count);
        check(fixture, span, "along a random direction");
    }
}

static void check_single_parameters(struct fixture *fixture, const struct model_span *span)
{
    memset(fixture->direction, 0, span->count * sizeof(*fixture->direction));
    for (int n = 0; n < SINGLE_PARAMETERS; n++) {
        char what[64];
        size_t i = (size_t)rng_below(&fixture->rng, span->count);
        snprintf(what, sizeof(what), "parameter %zu", i);
        fixture->direction[i] = 1.0F;
        check(fixture, span, what);
        fixture->direction[i] = 0.0F;
    }
}

static void check_model(struct fixture *fixture)
{
    size_t count = model_parameter_count(fixture->model);
    fixture->origin = need(calloc(count, sizeof(float)));
    fixture->gradient = need(calloc(count, sizeof(float)));
    fixture->direction = need(calloc(count, sizeof(float)));
    for (size_t i = 0; i < ROWS; i++) {
        fixture->tokens[i] = (uint8_t)rng_below(&fixture->rng, ALPHABET);
        fixture->targets[i] = (uint8_t)rng_below(&fixture->rng, MODEL_VOCABULARY);
    }
    stir_parameters(fixture);
    double loss = loss_here(fixture);
    if (!model_backward(fixture->model)) {
        fprintf(stderr, "attention failed\n");
        exit(EXIT_FAILURE);
    }
    memcpy(fixture->gradient, model_gradient(fixture->model), count * sizeof(float));
    measure_rounding(fixture);
    printf("loss %.6f, its rounding %.2g, %zu parameters\n", loss, fixture->rounding, count);
    for (size_t i = 0; i < model_span_count(fixture->model); i++) {
        struct model_span span = model_span(fixture->model, i);
        check_along_gradient(fixture, &span);
        check_random_directions(fixture, &span);
        check_single_parameters(fixture, &span);
    }
    free(fixture->origin);
    free(fixture->gradient);
    free(fixture->direction);
}

static int check_with_daemon(const struct daemon *daemon, uint64_t seed)
{
    struct fixture fixture = {0};
    struct attention *attention;
    struct device *device = need(device_cpu_open());
    const struct attention_setup setup = {
        .address = daemon->directory, .shape = SHAPE, .layers = LAYERS};
    rng_init(&fixture.rng, seed);
    if (!attention_open(&attention, device, &setup)) {
        fprintf(stderr, "%s\n", attention != NULL ? attention_error(attention) : "no memory");
        attention_close(attention);
        return 1;
    }
    fixture.model = need(model_create(attention, LAYERS, seed));
    check_model(&fixture);
    model_destroy(fixture.model);
    attention_close(attention);
    device->ops->close(device);
    return fixture.failures;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 20240607;
    printf("seed %llu\n", (unsigned long long)seed);
    struct daemon daemon = {0};
    if (!daemon_start(&daemon, NULL)) {
        return EXIT_FAILURE;
    }
    int failures = check_with_daemon(&daemon, seed);
    bool stopped = daemon_stop(&daemon);
    printf("%d failures\n", failures);
    return failures == 0 && stopped ? EXIT_SUCCESS : EXIT_FAILURE;
}

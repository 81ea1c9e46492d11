/*
 * Trains a small language model on a text; every attention call goes to the attnd of this machine.
 */
#include "adamw.h"
#include "attention.h"
#include "device.h"
#include "exact.h"
#include "model.h"
#include "report.h"
#include "rng.h"
#include "text.h"

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    LAYERS = 4,
    BATCH = 8,
    HEADS_Q = 4,
    HEADS_KV = 2,
    HEAD_DIM = 32,
    WARM_UP_STEPS = 5,
};

static const float WEIGHT_DECAY = 0.1F;
static const float LONGEST_GRADIENT = 1.0F;
static const uint64_t HELD_OUT_SEED = 1; /* not --seed: runs are compared on the same batch */

struct settings {
    const char *address;
    const char *text;
    long steps;
    double learning_rate;
    unsigned long seed;
    unsigned long check_every;
    bool narrow;
};

struct training {
    struct settings settings;
    struct text text;
    struct text_batch batch;
    struct text_batch held_out;
    struct rng rng;
    struct device *device;
    struct attention *attention;
    struct model *model;
    struct exact *exact;
    struct adamw adamw;
};

#ifdef TRAINER_CUDA
static const bool ON_GPU = true;
#else
static const bool ON_GPU = false;
#endif

static const struct argp_option OPTIONS[] = {
    {"address", 'a', "DIR", 0, "The daemon's directory ($ATTND_ADDRESS, else the device's)", 0},
    {"type", 'y', "TYPE", 0,
        "Of attention's tensors: float32 (on the CPU alone, the usual one there) or bfloat16", 0},
    {"text", 't', "FILE", 0, "What to learn (/usr/share/common-licenses/GPL-3)", 0},
    {"steps", 'n', "N", 0, "Steps of training (60)", 0},
    {"learning-rate", 'l', "X", 0, "Peak learning rate (0.002)", 0},
    {"seed", 's', "S", 0, "Seed of parameters and batches (1)", 0},
    {"check-every", 'c', "N", 0,
        "Compare one request, drawn at random, of every N with a float64 reference (25)", 0},
    {0},
};

static void parse_whole(struct argp_state *state, const char *name, const char *arg, long *value)
{
    char *end;
    errno = 0;
    long number = strtol(arg, &end, 10);
    if (errno != 0 || end == arg || *end != '\0' || number < 1 || number > 1000000000) {
        argp_error(
            state, "--%s is '%s'; it must be a whole number from 1 to 1000000000", name, arg);
    }
    *value = number;
}

static void parse_unsigned(
    struct argp_state *state, const char *name, const char *arg, unsigned long *value)
{
    long number = 0;
    parse_whole(state, name, arg, &number);
    *value = (unsigned long)number;
}

static void parse_rate(struct argp_state *state, const char *arg, double *value)
{
    char *end;
    double number = strtod(arg, &end);
    if (end == arg || *end != '\0' || !(number > 0.0 && number <= 1.0)) {
        argp_error(state, "--learning-rate is '%s'; it must be a number above 0, at most 1", arg);
    }
    *value = number;
}

static void parse_type(struct argp_state *state, const char *arg, bool *narrow)
{
    bool bfloat16 = strcmp(arg, "bfloat16") == 0;
    if (!bfloat16 && (ON_GPU || strcmp(arg, "float32") != 0)) {
        argp_error(
            state, "--type is '%s'; it must be %sbfloat16", arg, ON_GPU ? "" : "float32 or ");
    }
    *narrow = bfloat16;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct settings *settings = state->input;
    switch (key) {
    case 'a':
        settings->address = arg;
        return 0;
    case 't':
        settings->text = arg;
        return 0;
    case 'n':
        parse_whole(state, "steps", arg, &settings->steps);
        return 0;
    case 'l':
        parse_rate(state, arg, &settings->learning_rate);
        return 0;
    case 's':
        parse_unsigned(state, "seed", arg, &settings->seed);
        return 0;
    case 'c':
        parse_unsigned(state, "check-every", arg, &settings->check_every);
        return 0;
    case 'y':
        parse_type(state, arg, &settings->narrow);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool complain(const char *sentence)
{
    fprintf(stderr, "attnd-trainer: %s\n", sentence);
    return false;
}

static bool prepare_text(struct training *training)
{
    char error[TEXT_ERROR_BYTES];
    if (!text_load(&training->text, training->settings.text, TEXT_CONTEXT, error)) {
        return complain(error);
    }
    if (!text_batch_init(&training->batch, BATCH, TEXT_CONTEXT) ||
        !text_batch_init(&training->held_out, BATCH, TEXT_CONTEXT)) {
        return complain("no memory for batches");
    }
    struct rng held_out;
    rng_init(&held_out, HELD_OUT_SEED);
    text_draw_held_out(&training->text, &held_out, &training->held_out);
    return true;
}

/* Another one in every run, so that runs with equal seeds do not check the same requests for ever. */
static uint64_t fresh_seed(void)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed)) {
        seed = (uint64_t)getpid();
    }
    return seed;
}

static bool prepare_device(struct training *training)
{
#ifdef TRAINER_CUDA
    char error[DEVICE_ERROR_BYTES];
    training->device = device_cuda_open(error);
    return training->device != NULL || complain(error);
#else
    training->device = device_cpu_open();
    return training->device != NULL || complain("no memory for the device");
#endif
}

static bool prepare_model(struct training *training)
{
    const struct settings *settings = &training->settings;
    const struct attention_setup setup = {
        .address = settings->address,
        .shape = {.batch = BATCH,
            .seqlen = TEXT_CONTEXT,
            .heads_q = HEADS_Q,
            .heads_kv = HEADS_KV,
            .head_dim = HEAD_DIM},
        .layers = LAYERS,
        .narrow = settings->narrow,
    };
    if (!attention_open(&training->attention, training->device, &setup)) {
        return complain(training->attention != NULL ? attention_error(training->attention)
                                                    : "no memory for attention");
    }
    training->model = model_create(training->attention, LAYERS, settings->seed);
    training->exact = exact_create(training->attention, settings->check_every, fresh_seed());
    if (training->model == NULL || training->exact == NULL ||
        !adamw_init(&training->adamw, training->device, model_parameter_count(training->model))) {
        return complain("no memory for the model");
    }
    rng_init(&training->rng, settings->seed);
    return true;
}

/* Up in a straight line, then down to a tenth along a cosine. */
static float rate_at(const struct settings *settings, long step)
{
    const double pi = 3.141592653589793;
    double warm_up = fmin(1.0, (double)(step + 1) / WARM_UP_STEPS);
    double done = (double)step / (double)settings->steps;
    return (float)(settings->learning_rate * warm_up * (0.55 + 0.45 * cos(pi * done)));
}

static bool move_parameters(struct training *training, long step)
{
    const struct model *model = training->model;
    const float *gradient = model_gradient(model);
    struct adamw_step move;
    if (!adamw_begin(&training->adamw, gradient, model_parameter_count(model),
            rate_at(&training->settings, step), LONGEST_GRADIENT, &move)) {
        return false;
    }
    for (size_t i = 0; i < model_span_count(model); i++) {
        struct model_span span = model_span(model, i);
        struct adamw_piece piece = {span.first, span.count, span.matrix ? WEIGHT_DECAY : 0.0F};
        adamw_move(&training->adamw, &move, &piece, gradient, model_parameters(model));
    }
    return true;
}

static bool evaluate(struct training *training, double *loss)
{
    const struct text_batch *batch = &training->held_out;
    return model_forward(training->model, batch->tokens, batch->targets, loss);
}

static bool train_step(struct training *training, long step)
{
    struct text_batch *batch = &training->batch;
    struct report_step report = {
        .step = (int)step + 1,
        .steps = (int)training->settings.steps,
    };
    text_draw_training(&training->text, &training->rng, batch);
    if (!model_forward(training->model, batch->tokens, batch->targets, &report.loss) ||
        !model_backward(training->model) || !move_parameters(training, step)) {
        return false;
    }
    report_print_step(stdout, &report);
    return true;
}

static bool train(struct training *training, struct report_result *result)
{
    if (!evaluate(training, &result->first_loss)) {
        return false;
    }
    for (long step = 0; step < training->settings.steps; step++) {
        if (!train_step(training, step)) {
            return false;
        }
    }
    struct attention_summary calls;
    if (!evaluate(training, &result->last_loss) ||
        !attention_summarize(training->attention, &calls)) {
        return false;
    }
    struct exact_summary checks = exact_summarize(training->exact);
    result->calls = calls.calls;
    result->p50_us = calls.p50_us;
    result->p99_us = calls.p99_us;
    result->mean_group = calls.mean_group;
    result->checked = checks.checked;
    result->failed = checks.failed;
    result->max_rel_error = checks.max_rel_error;
    return true;
}

static void finish(struct training *training)
{
    exact_destroy(training->exact);
    adamw_finish(&training->adamw);
    model_destroy(training->model);
    attention_close(training->attention);
    if (training->device != NULL) {
        training->device->ops->close(training->device);
    }
    text_batch_finish(&training->batch);
    text_batch_finish(&training->held_out);
    text_finish(&training->text);
}

static bool run(struct training *training)
{
    struct report_result result;
    if (!prepare_text(training) || !prepare_device(training) || !prepare_model(training)) {
        finish(training);
        return false;
    }
    if (!train(training, &result)) {
        /* Closing waits for requests that run; a daemon that failed us may never end them. The end
         * of the process releases everything as well. */
        complain(attention_error(training->attention));
        exit(EXIT_FAILURE);
    }
    report_print_result(stdout, &result);
    if (result.failed > 0) {
        complain(exact_failure(training->exact));
    }
    finish(training);
    return result.failed == 0;
}

int main(int argc, char **argv)
{
    static const struct argp parser = {OPTIONS, parse_option, NULL,
        "Trains a small GPT over bytes, with attention computed by attnd.", NULL, NULL, NULL};
    struct training training = {
        .settings = {.text = "/usr/share/common-licenses/GPL-3",
            .steps = 60,
            .learning_rate = 0.002,
            .seed = 1,
            .check_every = 25,
            .narrow = ON_GPU},
    };
    argp_parse(&parser, argc, argv, 0, NULL, &training.settings);
    return run(&training) ? EXIT_SUCCESS : EXIT_FAILURE;
}

/*
 * A small GPT over bytes: token and position embeddings, pre-norm blocks of causal attention with
 * grouped query heads and an MLP, a final norm and an output projection; all gradients by hand.
 * Owns parameters, gradients and activations, all in the memory of attention's device; attention is
 * borrowed from the caller. One thread.
 */
#pragma once

#include "attention.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MODEL_VOCABULARY = 256,
};

/* One entry for each kind of tensor; those from NORM1_GAIN to DOWN_BIAS exist once a layer. */
enum model_tensor {
    MODEL_TOKEN_TABLE,
    MODEL_POSITION_TABLE,
    MODEL_NORM1_GAIN,
    MODEL_NORM1_BIAS,
    MODEL_QKV_WEIGHT,
    MODEL_QKV_BIAS,
    MODEL_OUT_WEIGHT,
    MODEL_OUT_BIAS,
    MODEL_NORM2_GAIN,
    MODEL_NORM2_BIAS,
    MODEL_UP_WEIGHT,
    MODEL_UP_BIAS,
    MODEL_DOWN_WEIGHT,
    MODEL_DOWN_BIAS,
    MODEL_FINAL_GAIN,
    MODEL_FINAL_BIAS,
    MODEL_HEAD_WEIGHT,
    MODEL_TENSORS,
};

/* Where a tensor lies in the flat arrays. */
struct model_span {
    const char *name;
    size_t first;
    size_t count;
    bool matrix; /* takes part in weight decay */
};

struct model;

/* Batch, context and heads come from the attention's shape; channels = heads_q * head_dim. The same
 * seed gives the same parameters. NULL: no memory. */
struct model *model_create(struct attention *attention, size_t layers, uint64_t seed);
void model_destroy(struct model *model); /* accepts NULL */

size_t model_parameter_count(const struct model *model);
float *model_parameters(const struct model *model);
float *model_gradient(const struct model *model);

/* All tensors of the model, layer by layer where they exist once a layer. */
size_t model_span_count(const struct model *model);
struct model_span model_span(const struct model *model, size_t index);

/* Mean cross-entropy of predicting targets from tokens, both (batch, context), in nats.
 * false: attention or the device failed, and attention_error() says why. */
bool model_forward(
    struct model *model, const uint8_t *tokens, const uint8_t *targets, double *loss);

/* Gradient of the last forward's loss, once after each forward. */
bool model_backward(struct model *model);

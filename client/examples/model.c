#include "model.h"

#include "device.h"
#include "rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

enum {
    MLP_FACTOR = 4,
};

/* The parameters of one layer, or their gradients: pointers into a flat array. */
struct weights {
    float *tensor[MODEL_TENSORS];
};

/* What the backward needs of a layer's forward, beside attention's own buffers. */
struct activations {
    float *in;     /* residual stream before the layer */
    float *middle; /* and between attention and MLP */
    float *norm1;
    float *norm1_mean;
    float *norm1_scale;
    float *norm2;
    float *norm2_mean;
    float *norm2_scale;
    float *hidden; /* of the MLP, after gelu */
    float *slope;  /* of gelu there */
};

struct model {
    struct attention *attention; /* borrowed, like its device */
    struct device *device;
    const struct device_ops *ops; /* the device's */
    size_t layers;
    size_t rows; /* batch * context */
    size_t context;
    size_t channels;
    size_t counts[MODEL_TENSORS]; /* numbers in one tensor of each kind */
    size_t parameter_count;
    float *parameters;         /* owned */
    float *gradient;           /* owned */
    float *memory;             /* owned; all activations lie in it */
    uint8_t *tokens;           /* owned; of the forward, then its targets */
    struct activations *layer; /* owned; layers + 1, the last one holds what the final norm reads */
    float *logits;             /* their gradient after the forward */
    float *dstream;            /* gradient of the residual stream */
    float *dnorm;
    float *dhidden;
};

static const char *const NAMES[MODEL_TENSORS] = {
    [MODEL_TOKEN_TABLE] = "token_table",
    [MODEL_POSITION_TABLE] = "position_table",
    [MODEL_NORM1_GAIN] = "norm1_gain",
    [MODEL_NORM1_BIAS] = "norm1_bias",
    [MODEL_QKV_WEIGHT] = "qkv_weight",
    [MODEL_QKV_BIAS] = "qkv_bias",
    [MODEL_OUT_WEIGHT] = "out_weight",
    [MODEL_OUT_BIAS] = "out_bias",
    [MODEL_NORM2_GAIN] = "norm2_gain",
    [MODEL_NORM2_BIAS] = "norm2_bias",
    [MODEL_UP_WEIGHT] = "up_weight",
    [MODEL_UP_BIAS] = "up_bias",
    [MODEL_DOWN_WEIGHT] = "down_weight",
    [MODEL_DOWN_BIAS] = "down_bias",
    [MODEL_FINAL_GAIN] = "final_gain",
    [MODEL_FINAL_BIAS] = "final_bias",
    [MODEL_HEAD_WEIGHT] = "head_weight",
};

static bool per_layer(enum model_tensor tensor)
{
    return tensor >= MODEL_NORM1_GAIN && tensor <= MODEL_DOWN_BIAS;
}

static bool is_matrix(enum model_tensor tensor)
{
    return tensor == MODEL_QKV_WEIGHT || tensor == MODEL_OUT_WEIGHT || tensor == MODEL_UP_WEIGHT ||
           tensor == MODEL_DOWN_WEIGHT || tensor == MODEL_HEAD_WEIGHT;
}

static bool is_gain(enum model_tensor tensor)
{
    return tensor == MODEL_NORM1_GAIN || tensor == MODEL_NORM2_GAIN || tensor == MODEL_FINAL_GAIN;
}

static void count_parameters(struct model *model)
{
    size_t channels = model->channels;
    size_t hidden = MLP_FACTOR * channels;
    size_t qkv = tensor_qkv_width(attention_get_shape(model->attention));
    size_t *counts = model->counts;
    for (size_t t = 0; t < MODEL_TENSORS; t++) {
        counts[t] = channels; /* gains, and the biases of what is not named below */
    }
    counts[MODEL_TOKEN_TABLE] = MODEL_VOCABULARY * channels;
    counts[MODEL_POSITION_TABLE] = model->context * channels;
    counts[MODEL_QKV_WEIGHT] = qkv * channels;
    counts[MODEL_QKV_BIAS] = qkv;
    counts[MODEL_OUT_WEIGHT] = channels * channels;
    counts[MODEL_UP_WEIGHT] = hidden * channels;
    counts[MODEL_UP_BIAS] = hidden;
    counts[MODEL_DOWN_WEIGHT] = channels * hidden;
    counts[MODEL_HEAD_WEIGHT] = MODEL_VOCABULARY * channels;
    for (size_t t = 0; t < MODEL_TENSORS; t++) {
        model->parameter_count += counts[t] * (per_layer((enum model_tensor)t) ? model->layers : 1);
    }
}

/* Tensors lie in the enum's order, each kind's layers side by side. */
static size_t place_of(const struct model *model, enum model_tensor tensor, size_t layer)
{
    size_t place = 0;
    for (size_t t = 0; t < (size_t)tensor; t++) {
        place += model->counts[t] * (per_layer((enum model_tensor)t) ? model->layers : 1);
    }
    return place + (per_layer(tensor) ? layer * model->counts[tensor] : 0);
}

static struct weights weights_of(const struct model *model, float *flat, size_t layer)
{
    struct weights weights;
    for (size_t t = 0; t < MODEL_TENSORS; t++) {
        weights.tensor[t] = flat + place_of(model, (enum model_tensor)t, layer);
    }
    return weights;
}

/* Hands out pieces of one allocation; with base NULL it only counts. */
struct carver {
    float *base;
    size_t used;
};

static float *carve(struct carver *carver, size_t count)
{
    float *piece = carver->base != NULL ? carver->base + carver->used : NULL;
    carver->used += count;
    return piece;
}

static void carve_layer(struct carver *carver, const struct model *model, struct activations *act)
{
    size_t stream = model->rows * model->channels;
    act->in = carve(carver, stream);
    act->middle = carve(carver, stream);
    act->norm1 = carve(carver, stream);
    act->norm1_mean = carve(carver, model->rows);
    act->norm1_scale = carve(carver, model->rows);
    act->norm2 = carve(carver, stream);
    act->norm2_mean = carve(carver, model->rows);
    act->norm2_scale = carve(carver, model->rows);
    act->hidden = carve(carver, MLP_FACTOR * stream);
    act->slope = carve(carver, MLP_FACTOR * stream);
}

/* Before there is memory this only counts. */
static size_t carve_all(struct model *model)
{
    struct carver carver = {.base = model->memory};
    size_t stream = model->rows * model->channels;
    for (size_t i = 0; i <= model->layers; i++) {
        carve_layer(&carver, model, &model->layer[i]);
    }
    model->logits = carve(&carver, model->rows * MODEL_VOCABULARY);
    model->dstream = carve(&carver, stream);
    model->dnorm = carve(&carver, stream);
    model->dhidden = carve(&carver, MLP_FACTOR * stream);
    return carver.used;
}

static bool allocate(struct model *model)
{
    struct device *device = model->device;
    model->layer = calloc(model->layers + 1, sizeof(*model->layer));
    model->parameters = model->ops->allocate(device, model->parameter_count * sizeof(float));
    model->gradient = model->ops->allocate(device, model->parameter_count * sizeof(float));
    model->tokens = model->ops->allocate(device, 2 * model->rows);
    if (model->layer == NULL || model->parameters == NULL || model->gradient == NULL ||
        model->tokens == NULL) {
        return false;
    }
    model->memory = model->ops->allocate(device, carve_all(model) * sizeof(float));
    if (model->memory == NULL) {
        return false;
    }
    carve_all(model);
    return true;
}

/* Small normal numbers; those that add to the residual stream are smaller the more layers do so. */
static void draw_parameters(const struct model *model, uint64_t seed, float *at)
{
    const double deviation = 0.02;
    double into_stream = deviation / sqrt(2.0 * (double)model->layers);
    struct rng rng;
    rng_init(&rng, seed);
    for (size_t t = 0; t < MODEL_TENSORS; t++) {
        enum model_tensor tensor = (enum model_tensor)t;
        size_t count = model->counts[t] * (per_layer(tensor) ? model->layers : 1);
        bool table = tensor == MODEL_TOKEN_TABLE || tensor == MODEL_POSITION_TABLE;
        bool adds = tensor == MODEL_OUT_WEIGHT || tensor == MODEL_DOWN_WEIGHT;
        for (size_t i = 0; i < count; i++) {
            if (table || is_matrix(tensor)) {
                at[i] = (float)(rng_normal(&rng) * (adds ? into_stream : deviation));
            } else {
                at[i] = is_gain(tensor) ? 1.0F : 0.0F;
            }
        }
        at += count;
    }
}

static bool set_parameters(struct model *model, uint64_t seed)
{
    size_t bytes = model->parameter_count * sizeof(float);
    float *drawn = malloc(bytes);
    if (drawn == NULL) {
        return false;
    }
    draw_parameters(model, seed, drawn);
    model->ops->upload(model->device, model->parameters, drawn, bytes);
    free(drawn);
    return true;
}

static struct layer_norm norm1_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_norm){act->in, w->tensor[MODEL_NORM1_GAIN], w->tensor[MODEL_NORM1_BIAS],
        act->norm1_mean, act->norm1_scale, model->rows, model->channels};
}

static struct layer_norm norm2_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_norm){act->middle, w->tensor[MODEL_NORM2_GAIN],
        w->tensor[MODEL_NORM2_BIAS], act->norm2_mean, act->norm2_scale, model->rows,
        model->channels};
}

static struct layer_norm final_norm_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_norm){act->in, w->tensor[MODEL_FINAL_GAIN], w->tensor[MODEL_FINAL_BIAS],
        act->norm1_mean, act->norm1_scale, model->rows, model->channels};
}

static struct layer_linear qkv_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_linear){act->norm1, w->tensor[MODEL_QKV_WEIGHT], w->tensor[MODEL_QKV_BIAS],
        model->rows, model->channels, model->counts[MODEL_QKV_BIAS]};
}

static struct layer_linear out_of(
    const struct model *model, const struct weights *w, const float *attention_out)
{
    return (struct layer_linear){attention_out, w->tensor[MODEL_OUT_WEIGHT],
        w->tensor[MODEL_OUT_BIAS], model->rows, model->channels, model->channels};
}

static struct layer_linear up_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_linear){act->norm2, w->tensor[MODEL_UP_WEIGHT], w->tensor[MODEL_UP_BIAS],
        model->rows, model->channels, MLP_FACTOR * model->channels};
}

static struct layer_linear down_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_linear){act->hidden, w->tensor[MODEL_DOWN_WEIGHT],
        w->tensor[MODEL_DOWN_BIAS], model->rows, MLP_FACTOR * model->channels, model->channels};
}

static struct layer_linear head_of(
    const struct model *model, const struct weights *w, const struct activations *act)
{
    return (struct layer_linear){act->norm1, w->tensor[MODEL_HEAD_WEIGHT], NULL, model->rows,
        model->channels, MODEL_VOCABULARY};
}

static struct layer_embedding embedding_of(const struct model *model)
{
    return (struct layer_embedding){model->tokens, model->rows, model->context, model->channels};
}

/* stream += attention(norm1(stream)); stream += mlp(norm2(stream)) */
static bool layer_forward(struct model *model, size_t index)
{
    struct weights w = weights_of(model, model->parameters, index);
    struct activations *act = &model->layer[index];
    const struct attention_layer *shared = attention_get_layer(model->attention, index);
    size_t stream = model->rows * model->channels;

    struct layer_norm norm1 = norm1_of(model, &w, act);
    model->ops->norm_forward(model->device, &norm1, act->norm1);
    struct layer_linear qkv = qkv_of(model, &w, act);
    model->ops->linear_forward(model->device, &qkv, shared->qkv);
    if (!attention_forward(model->attention, index)) {
        return false;
    }
    struct layer_linear out = out_of(model, &w, shared->out);
    model->ops->linear_forward(model->device, &out, act->middle);
    model->ops->add(model->device, act->middle, act->in, stream);

    struct layer_norm norm2 = norm2_of(model, &w, act);
    model->ops->norm_forward(model->device, &norm2, act->norm2);
    struct layer_linear up = up_of(model, &w, act);
    model->ops->linear_forward(model->device, &up, act->hidden);
    model->ops->gelu_forward(model->device, act->hidden, act->slope, MLP_FACTOR * stream);
    struct layer_linear down = down_of(model, &w, act);
    float *next = model->layer[index + 1].in;
    model->ops->linear_forward(model->device, &down, next);
    model->ops->add(model->device, next, act->middle, stream);
    return true;
}

static void mlp_backward(struct model *model, size_t index)
{
    struct weights w = weights_of(model, model->parameters, index);
    struct weights d = weights_of(model, model->gradient, index);
    struct activations *act = &model->layer[index];
    struct layer_linear down = down_of(model, &w, act);
    model->ops->linear_input(model->device, &down, model->dstream, model->dhidden);
    model->ops->linear_parameters(model->device, &down, model->dstream, d.tensor[MODEL_DOWN_WEIGHT],
        d.tensor[MODEL_DOWN_BIAS]);
    model->ops->gelu_backward(model->device, model->dhidden, act->slope, down.rows * down.inputs);
    struct layer_linear up = up_of(model, &w, act);
    model->ops->linear_input(model->device, &up, model->dhidden, model->dnorm);
    model->ops->linear_parameters(
        model->device, &up, model->dhidden, d.tensor[MODEL_UP_WEIGHT], d.tensor[MODEL_UP_BIAS]);
    struct layer_norm norm2 = norm2_of(model, &w, act);
    model->ops->norm_backward(model->device, &norm2, model->dnorm, model->dstream,
        d.tensor[MODEL_NORM2_GAIN], d.tensor[MODEL_NORM2_BIAS]);
}

/* While the daemon works on dqkv, this process makes the gradient of the matrix after attention. */
static bool attention_part_backward(struct model *model, size_t index)
{
    struct weights w = weights_of(model, model->parameters, index);
    struct weights d = weights_of(model, model->gradient, index);
    struct activations *act = &model->layer[index];
    const struct attention_layer *shared = attention_get_layer(model->attention, index);
    struct layer_linear out = out_of(model, &w, shared->out);
    model->ops->linear_input(model->device, &out, model->dstream, attention_dout(model->attention));
    if (!attention_backward_begin(model->attention, index)) {
        return false;
    }
    model->ops->linear_parameters(
        model->device, &out, model->dstream, d.tensor[MODEL_OUT_WEIGHT], d.tensor[MODEL_OUT_BIAS]);
    if (!attention_backward_end(model->attention)) {
        return false;
    }
    const float *dqkv = attention_dqkv(model->attention);
    struct layer_linear qkv = qkv_of(model, &w, act);
    model->ops->linear_input(model->device, &qkv, dqkv, model->dnorm);
    model->ops->linear_parameters(
        model->device, &qkv, dqkv, d.tensor[MODEL_QKV_WEIGHT], d.tensor[MODEL_QKV_BIAS]);
    struct layer_norm norm1 = norm1_of(model, &w, act);
    model->ops->norm_backward(model->device, &norm1, model->dnorm, model->dstream,
        d.tensor[MODEL_NORM1_GAIN], d.tensor[MODEL_NORM1_BIAS]);
    return true;
}

static void head_backward(struct model *model)
{
    struct weights w = weights_of(model, model->parameters, 0);
    struct weights d = weights_of(model, model->gradient, 0);
    struct activations *last = &model->layer[model->layers];
    struct layer_linear head = head_of(model, &w, last);
    model->ops->linear_input(model->device, &head, model->logits, model->dnorm);
    model->ops->linear_parameters(
        model->device, &head, model->logits, d.tensor[MODEL_HEAD_WEIGHT], NULL);
    struct layer_norm norm = final_norm_of(model, &w, last);
    model->ops->zero(model->device, model->dstream, model->rows * model->channels);
    model->ops->norm_backward(model->device, &norm, model->dnorm, model->dstream,
        d.tensor[MODEL_FINAL_GAIN], d.tensor[MODEL_FINAL_BIAS]);
}

struct model *model_create(struct attention *attention, size_t layers, uint64_t seed)
{
    struct model *model = calloc(1, sizeof(*model));
    if (model == NULL) {
        return NULL;
    }
    const struct tensor_shape *shape = attention_get_shape(attention);
    model->attention = attention;
    model->device = attention_get_device(attention);
    model->ops = model->device->ops;
    model->layers = layers;
    model->context = shape->seqlen;
    model->rows = shape->batch * shape->seqlen;
    model->channels = tensor_out_width(shape);
    count_parameters(model);
    if (!allocate(model) || !set_parameters(model, seed)) {
        model_destroy(model);
        return NULL;
    }
    return model;
}

void model_destroy(struct model *model)
{
    if (model == NULL) {
        return;
    }
    model->ops->release(model->device, model->parameters);
    model->ops->release(model->device, model->gradient);
    model->ops->release(model->device, model->memory);
    model->ops->release(model->device, model->tokens);
    free(model->layer);
    free(model);
}

size_t model_parameter_count(const struct model *model)
{
    return model->parameter_count;
}

float *model_parameters(const struct model *model)
{
    return model->parameters;
}

float *model_gradient(const struct model *model)
{
    return model->gradient;
}

size_t model_span_count(const struct model *model)
{
    size_t count = 0;
    for (size_t t = 0; t < MODEL_TENSORS; t++) {
        count += per_layer((enum model_tensor)t) ? model->layers : 1;
    }
    return count;
}

struct model_span model_span(const struct model *model, size_t index)
{
    enum model_tensor tensor = MODEL_TOKEN_TABLE;
    size_t layers = 1;
    while (index >= layers) {
        index -= layers;
        tensor++;
        layers = per_layer(tensor) ? model->layers : 1;
    }
    assert(tensor < MODEL_TENSORS);
    return (struct model_span){
        NAMES[tensor], place_of(model, tensor, index), model->counts[tensor], is_matrix(tensor)};
}

bool model_forward(struct model *model, const uint8_t *tokens, const uint8_t *targets, double *loss)
{
    struct weights w = weights_of(model, model->parameters, 0);
    struct layer_embedding embedding = embedding_of(model);
    model->ops->upload(model->device, model->tokens, tokens, model->rows);
    model->ops->upload(model->device, model->tokens + model->rows, targets, model->rows);
    model->ops->embedding_forward(model->device, &embedding, w.tensor[MODEL_TOKEN_TABLE],
        w.tensor[MODEL_POSITION_TABLE], model->layer[0].in);
    for (size_t i = 0; i < model->layers; i++) {
        if (!layer_forward(model, i)) {
            return false;
        }
    }
    struct activations *last = &model->layer[model->layers];
    struct layer_norm norm = final_norm_of(model, &w, last);
    model->ops->norm_forward(model->device, &norm, last->norm1);
    struct layer_linear head = head_of(model, &w, last);
    model->ops->linear_forward(model->device, &head, model->logits);
    return model->ops->cross_entropy(model->device, model->logits, model->tokens + model->rows,
               model->rows, MODEL_VOCABULARY, loss) &&
           attention_settle(model->attention);
}

bool model_backward(struct model *model)
{
    model->ops->zero(model->device, model->gradient, model->parameter_count);
    head_backward(model);
    for (size_t i = model->layers; i-- > 0;) {
        mlp_backward(model, i);
        if (!attention_part_backward(model, i)) {
            return false;
        }
    }
    struct weights d = weights_of(model, model->gradient, 0);
    struct layer_embedding embedding = embedding_of(model);
    model->ops->embedding_backward(model->device, &embedding, model->dstream,
        d.tensor[MODEL_TOKEN_TABLE], d.tensor[MODEL_POSITION_TABLE]);
    return true;
}

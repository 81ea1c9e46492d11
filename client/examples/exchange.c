#include "activations.h"

#include "part.h"

#include <stdlib.h>

enum {
    ALIGNMENT = 256,
};

static size_t count_tokens(const struct activations *activations)
{
    return activations->shape.batch * activations->shape.seqlen;
}

static size_t count_qkv(const struct activations *activations)
{
    return count_tokens(activations) * tensor_qkv_width(&activations->shape);
}

static size_t count_out(const struct activations *activations)
{
    return count_tokens(activations) * tensor_out_width(&activations->shape);
}

static size_t count_lse(const struct activations *activations)
{
    return count_tokens(activations) * activations->shape.heads_q;
}

/* Hands out pieces of one allocation; with base NULL it only counts. */
struct carver {
    char *base;
    size_t used;
};

static void *carve(struct carver *carver, size_t bytes)
{
    void *piece = carver->base != NULL ? carver->base + carver->used : NULL;
    carver->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

struct carvers {
    struct carver own;
    struct carver shared;
};

/* A tensor for the model and the same, or a place for its copy, for the daemon. */
static float *carve_both(struct carvers *carvers, bool narrow, size_t count, void **sent)
{
    if (narrow) {
        *sent = carve(&carvers->shared, count * sizeof(uint16_t));
        return carve(&carvers->own, count * sizeof(float));
    }
    *sent = carve(&carvers->shared, count * sizeof(float));
    return *sent;
}

static struct carvers carve_all(struct activations *activations, void *shared)
{
    struct carvers carvers = {{activations->own, 0}, {shared, 0}};
    bool narrow = activations->narrow;
    size_t qkv = count_qkv(activations);
    size_t out = count_out(activations);
    for (size_t i = 0; i < activations->layer_count; i++) {
        struct attention_layer *layer = &activations->layers[i];
        struct activations_sent *sent = &activations->sent[i];
        layer->qkv = carve_both(&carvers, narrow, qkv, &sent->qkv);
        layer->out = carve_both(&carvers, narrow, out, &sent->out);
        layer->lse = carve(&carvers.shared, count_lse(activations) * sizeof(float));
    }
    activations->dqkv = carve_both(&carvers, narrow, qkv, &activations->gradient.qkv);
    activations->dout = carve_both(&carvers, narrow, out, &activations->gradient.out);
    return carvers;
}

static void send(
    const struct activations *activations, void *sent, const float *numbers, size_t count)
{
    if (activations->narrow) {
        activations->device->ops->narrow(activations->device, sent, numbers, count);
    }
}

static void take(
    const struct activations *activations, float *numbers, const void *sent, size_t count)
{
    if (activations->narrow) {
        activations->device->ops->widen(activations->device, numbers, sent, count);
    }
}

bool activations_init(
    struct activations *activations, struct device *device, const struct attention_setup *setup)
{
    *activations = (struct activations){
        .device = device,
        .shape = setup->shape,
        .narrow = setup->narrow,
        .layer_count = setup->layers,
        .layers = calloc(setup->layers, sizeof(*activations->layers)),
        .sent = calloc(setup->layers, sizeof(*activations->sent)),
    };
    activations->words = calloc(count_qkv(activations), sizeof(*activations->words));
    if (activations->layers == NULL || activations->sent == NULL || activations->words == NULL) {
        return false;
    }
    struct carvers sizes = carve_all(activations, NULL);
    activations->shared_bytes = sizes.shared.used;
    activations->own = device->ops->allocate(device, sizes.own.used);
    return activations->own != NULL;
}

void activations_finish(struct activations *activations)
{
    if (activations->own != NULL) {
        activations->device->ops->release(activations->device, activations->own);
    }
    free(activations->words);
    free(activations->layers);
    free(activations->sent);
}

void activations_share(struct activations *activations, void *shared)
{
    carve_all(activations, shared);
}

void activations_send_qkv(const struct activations *activations, size_t layer)
{
    send(activations, activations->sent[layer].qkv, activations->layers[layer].qkv,
        count_qkv(activations));
}

void activations_send_dout(const struct activations *activations)
{
    send(activations, activations->gradient.out, activations->dout, count_out(activations));
}

void activations_take_out(const struct activations *activations, size_t layer)
{
    take(activations, activations->layers[layer].out, activations->sent[layer].out,
        count_out(activations));
}

void activations_take_dqkv(const struct activations *activations)
{
    take(activations, activations->dqkv, activations->gradient.qkv, count_qkv(activations));
}

bool activations_read(const struct activations *activations, enum attention_tensor tensor,
    size_t layer, float *numbers)
{
    struct device *device = activations->device;
    const struct activations_sent *sent = &activations->sent[layer];

    const struct {
        const void *memory;
        size_t count;
    } places[] = {
        [ATTENTION_QKV] = {sent->qkv, count_qkv(activations)},
        [ATTENTION_OUT] = {sent->out, count_out(activations)},
        [ATTENTION_LSE] = {activations->layers[layer].lse, count_lse(activations)},
        [ATTENTION_DQKV] = {activations->gradient.qkv, count_qkv(activations)},
        [ATTENTION_DOUT] = {activations->gradient.out, count_out(activations)},
    };

    const void *memory = places[tensor].memory;
    size_t count = places[tensor].count;
    if (!activations->narrow || tensor == ATTENTION_LSE) {
        return device->ops->download(device, numbers, memory, count * sizeof(*numbers));
    }
    if (!device->ops->download(device, activations->words, memory, count * sizeof(uint16_t))) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        numbers[i] = part_widen(activations->words[i]);
    }
    return true;
}

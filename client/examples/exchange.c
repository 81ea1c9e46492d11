#include "exchange.h"

#include "part.h"

#include <stdlib.h>

enum {
    ALIGNMENT = 256,
};

static size_t count_tokens(const struct exchange *exchange)
{
    return exchange->shape.batch * exchange->shape.seqlen;
}

static size_t count_qkv(const struct exchange *exchange)
{
    return count_tokens(exchange) * tensor_qkv_width(&exchange->shape);
}

static size_t count_out(const struct exchange *exchange)
{
    return count_tokens(exchange) * tensor_out_width(&exchange->shape);
}

static size_t count_lse(const struct exchange *exchange)
{
    return count_tokens(exchange) * exchange->shape.heads_q;
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

static struct carvers carve_all(struct exchange *exchange, void *shared)
{
    struct carvers carvers = {{exchange->own, 0}, {shared, 0}};
    bool narrow = exchange->narrow;
    size_t qkv = count_qkv(exchange);
    size_t out = count_out(exchange);
    for (size_t i = 0; i < exchange->layer_count; i++) {
        struct attention_layer *layer = &exchange->layers[i];
        struct exchange_sent *sent = &exchange->sent[i];
        layer->qkv = carve_both(&carvers, narrow, qkv, &sent->qkv);
        layer->out = carve_both(&carvers, narrow, out, &sent->out);
        layer->lse = carve(&carvers.shared, count_lse(exchange) * sizeof(float));
    }
    exchange->dqkv = carve_both(&carvers, narrow, qkv, &exchange->gradient.qkv);
    exchange->dout = carve_both(&carvers, narrow, out, &exchange->gradient.out);
    return carvers;
}

static void send(const struct exchange *exchange, void *sent, const float *numbers, size_t count)
{
    if (exchange->narrow) {
        exchange->device->ops->narrow(exchange->device, sent, numbers, count);
    }
}

static void take(const struct exchange *exchange, float *numbers, const void *sent, size_t count)
{
    if (exchange->narrow) {
        exchange->device->ops->widen(exchange->device, numbers, sent, count);
    }
}

bool exchange_init(
    struct exchange *exchange, struct device *device, const struct attention_setup *setup)
{
    *exchange = (struct exchange){
        .device = device,
        .shape = setup->shape,
        .narrow = setup->narrow,
        .layer_count = setup->layers,
        .layers = calloc(setup->layers, sizeof(*exchange->layers)),
        .sent = calloc(setup->layers, sizeof(*exchange->sent)),
    };
    exchange->words = calloc(count_qkv(exchange), sizeof(*exchange->words));
    if (exchange->layers == NULL || exchange->sent == NULL || exchange->words == NULL) {
        return false;
    }
    struct carvers sizes = carve_all(exchange, NULL);
    exchange->shared_bytes = sizes.shared.used;
    exchange->own = device->ops->allocate(device, sizes.own.used);
    return exchange->own != NULL;
}

void exchange_finish(struct exchange *exchange)
{
    if (exchange->own != NULL) {
        exchange->device->ops->release(exchange->device, exchange->own);
    }
    free(exchange->words);
    free(exchange->layers);
    free(exchange->sent);
}

void exchange_share(struct exchange *exchange, void *shared)
{
    carve_all(exchange, shared);
}

void exchange_send_qkv(const struct exchange *exchange, size_t layer)
{
    send(exchange, exchange->sent[layer].qkv, exchange->layers[layer].qkv, count_qkv(exchange));
}

void exchange_send_dout(const struct exchange *exchange)
{
    send(exchange, exchange->gradient.out, exchange->dout, count_out(exchange));
}

void exchange_take_out(const struct exchange *exchange, size_t layer)
{
    take(exchange, exchange->layers[layer].out, exchange->sent[layer].out, count_out(exchange));
}

void exchange_take_dqkv(const struct exchange *exchange)
{
    take(exchange, exchange->dqkv, exchange->gradient.qkv, count_qkv(exchange));
}

bool exchange_read(
    const struct exchange *exchange, enum attention_tensor tensor, size_t layer, float *numbers)
{
    struct device *device = exchange->device;
    const struct exchange_sent *sent = &exchange->sent[layer];

    const struct {
        const void *memory;
        size_t count;
    } places[] = {
        [ATTENTION_QKV] = {sent->qkv, count_qkv(exchange)},
        [ATTENTION_OUT] = {sent->out, count_out(exchange)},
        [ATTENTION_LSE] = {exchange->layers[layer].lse, count_lse(exchange)},
        [ATTENTION_DQKV] = {exchange->gradient.qkv, count_qkv(exchange)},
        [ATTENTION_DOUT] = {exchange->gradient.out, count_out(exchange)},
    };

    const void *memory = places[tensor].memory;
    size_t count = places[tensor].count;
    if (!exchange->narrow || tensor == ATTENTION_LSE) {
        return device->ops->download(device, numbers, memory, count * sizeof(*numbers));
    }
    if (!device->ops->download(device, exchange->words, memory, count * sizeof(uint16_t))) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        numbers[i] = part_widen(exchange->words[i]);
    }
    return true;
}

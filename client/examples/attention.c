#include "attention.h"

#include "attnd.h"
#include "part.h"
#include "tensor.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    ERROR_BYTES = 512,
    FIRST_LATENCIES = 1024,
    PENDING = DEVICE_STAMPS / 2, /* each has two; fewer than a stream's limit of 64 */
    ALIGNMENT = 256,
};

/* A call takes milliseconds; a daemon that is silent for so long is stuck or stopped. */
static const int64_t LONGEST_CALL_NS = INT64_C(60) * 1000 * 1000 * 1000;

/* What the daemon reads and writes: the model's numbers, or bfloat16 copies. */
struct sent {
    void *qkv;
    void *out;
};

struct pending {
    attnd_ticket ticket;
    bool backward;
};

struct attention {
    struct device *device; /* borrowed */
    struct attnd *client;  /* owned */
    struct tensor_shape shape;
    bool narrow;
    struct attention_layer *layers; /* owned, like the next */
    struct sent *sent;
    size_t layer_count;
    float *dqkv;
    float *dout;
    struct sent gradient; /* of qkv and out */
    void *shared;         /* what the daemon sees; owned if the device shares, else the client's */
    void *own;            /* owned; the model's numbers where the daemon sees copies */
    uint16_t *words;      /* owned; one tensor of copies, on its way to a reader */
    attention_watch_fn watch;
    void *watch_context;
    size_t backward_layer; /* between begin and end */
    struct pending pending[PENDING];
    size_t pendings;
    float *latencies_us; /* owned; of every call that has ended */
    size_t latencies;
    size_t latency_room;
    char error[ERROR_BYTES];
};

/* Says what failed, in our words and the library's. */
static bool fail(struct attention *attention, const char *what, enum attnd_status status)
{
    snprintf(attention->error, sizeof(attention->error), "%s: %s (%s)", what, attnd_message(),
        attnd_status_name(status));
    return false;
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

static size_t count_qkv(const struct tensor_shape *shape)
{
    return shape->batch * shape->seqlen * tensor_qkv_width(shape);
}

static size_t count_out(const struct tensor_shape *shape)
{
    return shape->batch * shape->seqlen * tensor_out_width(shape);
}

static size_t count_lse(const struct tensor_shape *shape)
{
    return shape->batch * shape->seqlen * shape->heads_q;
}

static struct carvers carve_all(struct attention *attention)
{
    struct carvers carvers = {{attention->own, 0}, {attention->shared, 0}};
    bool narrow = attention->narrow;
    size_t qkv = count_qkv(&attention->shape);
    size_t out = count_out(&attention->shape);
    for (size_t i = 0; i < attention->layer_count; i++) {
        struct attention_layer *layer = &attention->layers[i];
        struct sent *sent = &attention->sent[i];
        layer->qkv = carve_both(&carvers, narrow, qkv, &sent->qkv);
        layer->out = carve_both(&carvers, narrow, out, &sent->out);
        layer->lse = carve(&carvers.shared, count_lse(&attention->shape) * sizeof(float));
    }
    attention->dqkv = carve_both(&carvers, narrow, qkv, &attention->gradient.qkv);
    attention->dout = carve_both(&carvers, narrow, out, &attention->gradient.out);
    return carvers;
}

static bool allocate_shared(struct attention *attention, size_t bytes)
{
    struct device *device = attention->device;
    if (!device->shares) {
        enum attnd_status status = attnd_alloc(attention->client, bytes, &attention->shared);
        return status == ATTND_OK || fail(attention, "no shared memory", status);
    }
    attention->shared = device->ops->allocate(device, bytes);
    return attention->shared != NULL;
}

static bool allocate_buffers(struct attention *attention)
{
    struct device *device = attention->device;
    struct carvers sizes = carve_all(attention);
    size_t words = count_qkv(&attention->shape);
    attention->words = calloc(words, sizeof(*attention->words));
    attention->own = device->ops->allocate(device, sizes.own.used);
    if (attention->words == NULL || attention->own == NULL ||
        !allocate_shared(attention, sizes.shared.used)) {
        if (attention->error[0] == '\0') {
            snprintf(attention->error, sizeof(attention->error), "no memory for activations");
        }
        return false;
    }
    carve_all(attention);
    return true;
}

static bool connect(struct attention *attention, const char *address)
{
    struct attnd_open_options options = {.size = sizeof(options), .address = address};
    enum attnd_status status = attnd_open(&options, &attention->client);
    return status == ATTND_OK || fail(attention, "cannot reach the daemon", status);
}

/* A full array that cannot grow keeps its numbers and takes no more: no reason to stop training. */
static void note_latency(struct attention *attention, double us)
{
    if (attention->latencies == attention->latency_room) {
        size_t room =
            attention->latency_room > 0 ? attention->latency_room * 2 : (size_t)FIRST_LATENCIES;
        float *grown = realloc(attention->latencies_us, room * sizeof(*grown));
        if (grown == NULL) {
            return;
        }
        attention->latencies_us = grown;
        attention->latency_room = room;
    }
    attention->latencies_us[attention->latencies++] = (float)us;
}

/* A call that was just submitted. Without a stream its end is noticed, and timed, by waiting for it. */
static void remember(struct attention *attention, attnd_ticket ticket, bool backward)
{
    struct device *device = attention->device;
    assert(attention->pendings < PENDING);
    if (device->stream != NULL) {
        device->ops->stamp(device, 2 * attention->pendings + 1);
    }
    attention->pending[attention->pendings++] = (struct pending){ticket, backward};
}

static struct tensor_memory memory_of(const struct attention *attention)
{
    return (struct tensor_memory){&attention->shape, attention->device->place, attention->narrow};
}

static const char *call_name(bool backward)
{
    return backward ? "attention backward" : "attention forward";
}

static bool settle_one(struct attention *attention, size_t index)
{
    struct device *device = attention->device;
    const struct pending *pending = &attention->pending[index];
    enum attnd_status status = attnd_wait(attention->client, pending->ticket, LONGEST_CALL_NS);
    if (status != ATTND_OK) {
        return fail(attention, call_name(pending->backward), status);
    }
    if (device->stream == NULL) {
        device->ops->stamp(device, 2 * index + 1);
    }
    note_latency(attention, device->ops->between_us(device, 2 * index, 2 * index + 1));
    return true;
}

/* Before a submission: there is room for one more, and its clock starts. */
static bool begin_call(struct attention *attention)
{
    struct device *device = attention->device;
    if (attention->pendings == PENDING && !attention_settle(attention)) {
        return false;
    }
    device->ops->stamp(device, 2 * attention->pendings);
    return true;
}

/* Behind a submission, in time without a stream and in order with one, its outputs are there. */
static bool end_call(struct attention *attention, bool backward, size_t layer)
{
    struct device *device = attention->device;
    if (device->stream == NULL && !attention_settle(attention)) {
        return false;
    }
    if (attention->narrow && backward) {
        device->ops->widen(
            device, attention->dqkv, attention->gradient.qkv, count_qkv(&attention->shape));
    } else if (attention->narrow) {
        device->ops->widen(device, attention->layers[layer].out, attention->sent[layer].out,
            count_out(&attention->shape));
    }
    if (attention->watch != NULL) {
        attention->watch(attention->watch_context, backward, layer);
    }
    return true;
}

/* The daemon counts a request a moment after its outputs are there: waits until it has, for a second
 * at most. */
static enum attnd_status ask_statistics(struct attnd *client, struct attnd_stats *stats)
{
    const struct timespec pause = {.tv_nsec = 1000 * 1000L};
    enum attnd_status status = attnd_get_stats(client, stats);
    for (int i = 0; i < 1000 && status == ATTND_OK && stats->client.in_flight > 0; i++) {
        nanosleep(&pause, NULL);
        status = attnd_get_stats(client, stats);
    }
    return status;
}

static int compare_floats(const void *left, const void *right)
{
    const float *a = left;
    const float *b = right;
    return (*a > *b) - (*a < *b);
}

static double percentile_us(const struct attention *attention, double share)
{
    if (attention->latencies == 0) {
        return 0.0;
    }
    double place = share * (double)(attention->latencies - 1);
    return (double)attention->latencies_us[(size_t)(place + 0.5)];
}

bool attention_open(
    struct attention **attention, struct device *device, const struct attention_setup *setup)
{
    struct attention *made = calloc(1, sizeof(*made));
    *attention = made;
    if (made == NULL) {
        return false;
    }
    made->device = device;
    made->shape = setup->shape;
    made->narrow = setup->narrow;
    made->layer_count = setup->layers;
    made->layers = calloc(setup->layers, sizeof(*made->layers));
    made->sent = calloc(setup->layers, sizeof(*made->sent));
    if (made->layers == NULL || made->sent == NULL) {
        snprintf(made->error, sizeof(made->error), "no memory for %zu layers", setup->layers);
        return false;
    }
    return connect(made, setup->address) && allocate_buffers(made);
}

void attention_close(struct attention *attention)
{
    if (attention == NULL) {
        return;
    }
    struct device *device = attention->device;
    attnd_close(attention->client);
    if (device->shares) {
        device->ops->release(device, attention->shared);
    }
    device->ops->release(device, attention->own);
    free(attention->words);
    free(attention->layers);
    free(attention->sent);
    free(attention->latencies_us);
    free(attention);
}

const char *attention_error(const struct attention *attention)
{
    return attention->error[0] != '\0' ? attention->error : attention->device->error;
}

struct device *attention_get_device(const struct attention *attention)
{
    return attention->device;
}

const struct tensor_shape *attention_get_shape(const struct attention *attention)
{
    return &attention->shape;
}

bool attention_is_narrow(const struct attention *attention)
{
    return attention->narrow;
}

const struct attention_layer *attention_get_layer(const struct attention *attention, size_t layer)
{
    assert(layer < attention->layer_count);
    return &attention->layers[layer];
}

float *attention_dqkv(const struct attention *attention)
{
    return attention->dqkv;
}

float *attention_dout(const struct attention *attention)
{
    return attention->dout;
}

void attention_watch(struct attention *attention, attention_watch_fn watch, void *context)
{
    attention->watch = watch;
    attention->watch_context = context;
}

bool attention_forward(struct attention *attention, size_t layer)
{
    struct device *device = attention->device;
    const struct attention_layer *at = attention_get_layer(attention, layer);
    const struct sent *sent = &attention->sent[layer];
    struct tensor_packed in;
    struct tensor out;
    struct tensor lse;
    struct tensor_memory memory = memory_of(attention);
    tensor_packed(&in, &memory, sent->qkv);
    tensor_out(&out, &memory, sent->out);
    tensor_lse(&lse, &memory, at->lse);
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.causal = true;
    attnd_ticket ticket;
    if (attention->narrow) {
        device->ops->narrow(device, sent->qkv, at->qkv, count_qkv(&attention->shape));
    }
    if (!begin_call(attention)) {
        return false;
    }
    enum attnd_status status = attnd_forward(attention->client, device->stream, &in.q.dl, &in.k.dl,
        &in.v.dl, &out.dl, &lse.dl, &options, &ticket);
    if (status != ATTND_OK) {
        return fail(attention, call_name(false), status);
    }
    remember(attention, ticket, false);
    return end_call(attention, false, layer);
}

bool attention_backward_begin(struct attention *attention, size_t layer)
{
    struct device *device = attention->device;
    const struct attention_layer *at = attention_get_layer(attention, layer);
    const struct sent *sent = &attention->sent[layer];
    struct tensor_packed in;
    struct tensor_packed gradient;
    struct tensor out;
    struct tensor lse;
    struct tensor dout;
    struct tensor_memory memory = memory_of(attention);
    tensor_packed(&in, &memory, sent->qkv);
    tensor_packed(&gradient, &memory, attention->gradient.qkv);
    tensor_out(&out, &memory, sent->out);
    tensor_out(&dout, &memory, attention->gradient.out);
    tensor_lse(&lse, &memory, at->lse);
    struct attnd_gradients gradients = {.size = sizeof(gradients),
        .dout = &dout.dl,
        .dq = &gradient.q.dl,
        .dk = &gradient.k.dl,
        .dv = &gradient.v.dl};
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.causal = true;
    attnd_ticket ticket;
    if (attention->narrow) {
        device->ops->narrow(
            device, attention->gradient.out, attention->dout, count_out(&attention->shape));
    }
    if (!begin_call(attention)) {
        return false;
    }
    enum attnd_status status = attnd_backward(attention->client, device->stream, &in.q.dl, &in.k.dl,
        &in.v.dl, &out.dl, &lse.dl, &gradients, &options, &ticket);
    if (status != ATTND_OK) {
        return fail(attention, call_name(true), status);
    }
    attention->backward_layer = layer;
    remember(attention, ticket, true);
    return true;
}

bool attention_backward_end(struct attention *attention)
{
    return end_call(attention, true, attention->backward_layer);
}

bool attention_settle(struct attention *attention)
{
    size_t count = attention->pendings;
    attention->pendings = 0;
    for (size_t i = 0; i < count; i++) {
        if (!settle_one(attention, i)) {
            return false;
        }
    }
    return true;
}

bool attention_read(
    struct attention *attention, enum attention_tensor tensor, size_t layer, float *numbers)
{
    struct device *device = attention->device;
    const struct sent *sent = &attention->sent[layer];
    size_t qkv = count_qkv(&attention->shape);
    size_t out = count_out(&attention->shape);
    size_t lse = count_lse(&attention->shape);

    const struct {
        const void *memory;
        size_t count;
    } places[] = {
        [ATTENTION_QKV] = {sent->qkv, qkv},
        [ATTENTION_OUT] = {sent->out, out},
        [ATTENTION_LSE] = {attention->layers[layer].lse, lse},
        [ATTENTION_DQKV] = {attention->gradient.qkv, qkv},
        [ATTENTION_DOUT] = {attention->gradient.out, out},
    };

    size_t count = places[tensor].count;
    if (!attention->narrow || tensor == ATTENTION_LSE) {
        return device->ops->download(
            device, numbers, places[tensor].memory, count * sizeof(*numbers));
    }
    if (!device->ops->download(
            device, attention->words, places[tensor].memory, count * sizeof(uint16_t))) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        numbers[i] = part_widen(attention->words[i]);
    }
    return true;
}

bool attention_summarize(struct attention *attention, struct attention_summary *summary)
{
    struct attnd_stats stats = {.size = sizeof(stats)};
    if (!attention_settle(attention)) {
        return false;
    }
    enum attnd_status status = ask_statistics(attention->client, &stats);
    if (status != ATTND_OK) {
        return fail(attention, "statistics", status);
    }
    qsort(attention->latencies_us, attention->latencies, sizeof(*attention->latencies_us),
        compare_floats);
    uint64_t requests = stats.client.requests;
    *summary = (struct attention_summary){
        .calls = requests,
        .p50_us = percentile_us(attention, 0.5),
        .p99_us = percentile_us(attention, 0.99),
        .mean_group = requests > 0 ? (double)stats.client.group_members / (double)requests : 0.0,
    };
    return true;
}

#include "attention.h"

#include "attnd.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    DIMENSIONS = 4,
    ERROR_BYTES = 512,
    FIRST_LATENCIES = 1024,
};

/* A call takes milliseconds; a daemon that is silent for so long is stuck or stopped. */
static const int64_t LONGEST_CALL_NS = INT64_C(60) * 1000 * 1000 * 1000;

struct attention {
    struct attnd *client;           /* owned */
    struct attention_layer *layers; /* owned; the buffers belong to the client */
    size_t layer_count;
    struct attention_shape shape;
    float *dqkv;
    float *dout;
    attention_watch_fn watch;
    void *watch_context;
    attnd_ticket ticket; /* of the backward between begin and end */
    size_t ticket_layer;
    int64_t begun_ns;
    float *latencies_us; /* owned; of every call that has ended */
    size_t latencies;
    size_t latency_room;
    char error[ERROR_BYTES];
};

/* A DLTensor and what it points to. */
struct view {
    DLTensor tensor;
    int64_t shape[DIMENSIONS];
    int64_t strides[DIMENSIONS];
};

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void view_init(struct view *view, void *data, int dimensions)
{
    view->tensor = (DLTensor){
        .data = data,
        .device = {.device_type = kDLCPU},
        .ndim = dimensions,
        .dtype = {.code = kDLFloat, .bits = 32, .lanes = 1},
        .shape = view->shape,
        .strides = view->strides,
    };
}

/* (batch, seqlen, heads, head_dim) inside rows of `width` numbers a token. */
static void view_heads(
    struct view *view, float *data, const struct attention_shape *shape, size_t heads, size_t width)
{
    view_init(view, data, DIMENSIONS);
    view->shape[0] = (int64_t)shape->batch;
    view->shape[1] = (int64_t)shape->seqlen;
    view->shape[2] = (int64_t)heads;
    view->shape[3] = (int64_t)shape->head_dim;
    view->strides[0] = (int64_t)(shape->seqlen * width);
    view->strides[1] = (int64_t)width;
    view->strides[2] = (int64_t)shape->head_dim;
    view->strides[3] = 1;
}

static void view_lse(struct view *view, float *data, const struct attention_shape *shape)
{
    view_init(view, data, 3);
    view->shape[0] = (int64_t)shape->batch;
    view->shape[1] = (int64_t)shape->heads_q;
    view->shape[2] = (int64_t)shape->seqlen;
    view->strides[0] = (int64_t)(shape->heads_q * shape->seqlen);
    view->strides[1] = (int64_t)shape->seqlen;
    view->strides[2] = 1;
}

struct packed_views {
    struct view q;
    struct view k;
    struct view v;
};

static void view_packed(struct packed_views *views, float *qkv, const struct attention_shape *shape)
{
    size_t width = attention_qkv_width(shape);
    float *k = qkv + shape->heads_q * shape->head_dim;
    float *v = k + shape->heads_kv * shape->head_dim;
    view_heads(&views->q, qkv, shape, shape->heads_q, width);
    view_heads(&views->k, k, shape, shape->heads_kv, width);
    view_heads(&views->v, v, shape, shape->heads_kv, width);
}

/* Says what failed, in our words and the library's. */
static bool fail(struct attention *attention, const char *what, enum attnd_status status)
{
    snprintf(attention->error, sizeof(attention->error), "%s: %s (%s)", what, attnd_message(),
        attnd_status_name(status));
    return false;
}

static bool allocate(struct attention *attention, size_t count, float **memory)
{
    void *bytes;
    enum attnd_status status = attnd_alloc(attention->client, count * sizeof(float), &bytes);
    if (status != ATTND_OK) {
        return fail(attention, "no shared memory", status);
    }
    *memory = bytes;
    return true;
}

static bool allocate_buffers(struct attention *attention)
{
    const struct attention_shape *shape = &attention->shape;
    size_t tokens = shape->batch * shape->seqlen;
    size_t qkv = tokens * attention_qkv_width(shape);
    size_t out = tokens * attention_out_width(shape);
    bool good =
        allocate(attention, qkv, &attention->dqkv) && allocate(attention, out, &attention->dout);
    for (size_t i = 0; good && i < attention->layer_count; i++) {
        struct attention_layer *layer = &attention->layers[i];
        good = allocate(attention, qkv, &layer->qkv) && allocate(attention, out, &layer->out) &&
               allocate(attention, tokens * shape->heads_q, &layer->lse);
    }
    return good;
}

static bool connect(struct attention *attention, const char *address)
{
    struct attnd_open_options options = {.size = sizeof(options), .address = address};
    enum attnd_status status = attnd_open(&options, &attention->client);
    return status == ATTND_OK || fail(attention, "cannot reach the daemon", status);
}

/* A full array that cannot grow keeps its numbers and takes no more: no reason to stop training. */
static void note_latency(struct attention *attention, int64_t ns)
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
    attention->latencies_us[attention->latencies++] = (float)ns * 1e-3F;
}

static bool wait_for(struct attention *attention, attnd_ticket ticket, bool backward, size_t layer)
{
    enum attnd_status status = attnd_wait(attention->client, ticket, LONGEST_CALL_NS);
    if (status != ATTND_OK) {
        return fail(attention, backward ? "attention backward" : "attention forward", status);
    }
    note_latency(attention, now_ns() - attention->begun_ns);
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

size_t attention_qkv_width(const struct attention_shape *shape)
{
    return (shape->heads_q + 2 * shape->heads_kv) * shape->head_dim;
}

size_t attention_out_width(const struct attention_shape *shape)
{
    return shape->heads_q * shape->head_dim;
}

bool attention_open(struct attention **attention, const char *address,
    const struct attention_shape *shape, size_t layers)
{
    struct attention *made = calloc(1, sizeof(*made));
    *attention = made;
    if (made == NULL) {
        return false;
    }
    made->shape = *shape;
    made->layer_count = layers;
    made->layers = calloc(layers, sizeof(*made->layers));
    if (made->layers == NULL) {
        snprintf(made->error, sizeof(made->error), "no memory for %zu layers", layers);
        return false;
    }
    return connect(made, address) && allocate_buffers(made);
}

void attention_close(struct attention *attention)
{
    if (attention == NULL) {
        return;
    }
    attnd_close(attention->client);
    free(attention->layers);
    free(attention->latencies_us);
    free(attention);
}

const char *attention_error(const struct attention *attention)
{
    return attention->error;
}

const struct attention_shape *attention_get_shape(const struct attention *attention)
{
    return &attention->shape;
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
    const struct attention_layer *at = attention_get_layer(attention, layer);
    const struct attention_shape *shape = &attention->shape;
    struct packed_views in;
    struct view out;
    struct view lse;
    view_packed(&in, at->qkv, shape);
    view_heads(&out, at->out, shape, shape->heads_q, attention_out_width(shape));
    view_lse(&lse, at->lse, shape);
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.causal = true;
    attnd_ticket ticket;
    attention->begun_ns = now_ns();
    enum attnd_status status = attnd_forward(attention->client, NULL, &in.q.tensor, &in.k.tensor,
        &in.v.tensor, &out.tensor, &lse.tensor, &options, &ticket);
    if (status != ATTND_OK) {
        return fail(attention, "attention forward", status);
    }
    return wait_for(attention, ticket, false, layer);
}

bool attention_backward_begin(struct attention *attention, size_t layer)
{
    const struct attention_layer *at = attention_get_layer(attention, layer);
    const struct attention_shape *shape = &attention->shape;
    size_t out_width = attention_out_width(shape);
    struct packed_views in;
    struct packed_views gradient;
    struct view out;
    struct view lse;
    struct view dout;
    view_packed(&in, at->qkv, shape);
    view_packed(&gradient, attention->dqkv, shape);
    view_heads(&out, at->out, shape, shape->heads_q, out_width);
    view_heads(&dout, attention->dout, shape, shape->heads_q, out_width);
    view_lse(&lse, at->lse, shape);
    struct attnd_gradients gradients = {.size = sizeof(gradients),
        .dout = &dout.tensor,
        .dq = &gradient.q.tensor,
        .dk = &gradient.k.tensor,
        .dv = &gradient.v.tensor};
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.causal = true;
    assert(attention->ticket == 0);
    attention->begun_ns = now_ns();
    enum attnd_status status = attnd_backward(attention->client, NULL, &in.q.tensor, &in.k.tensor,
        &in.v.tensor, &out.tensor, &lse.tensor, &gradients, &options, &attention->ticket);
    if (status != ATTND_OK) {
        return fail(attention, "attention backward", status);
    }
    attention->ticket_layer = layer;
    return true;
}

bool attention_backward_end(struct attention *attention)
{
    attnd_ticket ticket = attention->ticket;
    assert(ticket != 0);
    attention->ticket = 0;
    return wait_for(attention, ticket, true, attention->ticket_layer);
}

bool attention_summarize(struct attention *attention, struct attention_summary *summary)
{
    struct attnd_stats stats = {.size = sizeof(stats)};
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

#include "attention.h"

#include "attnd.h"
#include "exchange.h"
#include "latencies.h"
#include "tensor.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    ERROR_BYTES = 512,
    PENDING = DEVICE_STAMPS / 2, /* each has two; fewer than a stream's limit of 64 */
};

/* A call takes milliseconds; a daemon that is silent for so long is stuck or stopped. */
static const int64_t LONGEST_CALL_NS = INT64_C(60) * 1000 * 1000 * 1000;

struct pending {
    attnd_ticket ticket;
    bool backward;
};

struct attention {
    struct device *device; /* borrowed */
    struct attnd *client;  /* owned */
    void *shared;          /* what the daemon sees; owned if the device shares, else the client's */
    struct exchange exchange;
    attention_watch_fn watch;
    void *watch_context;
    size_t backward_layer; /* between begin and end */
    struct pending pending[PENDING];
    size_t pendings;
    struct latencies latencies; /* of every call that has ended */
    char error[ERROR_BYTES];
};

/* Says what failed, in our words and the library's. */
static bool fail(struct attention *attention, const char *what, enum attnd_status status)
{
    snprintf(attention->error, sizeof(attention->error), "%s: %s (%s)", what, attnd_message(),
        attnd_status_name(status));
    return false;
}

static const char *call_name(bool backward)
{
    return backward ? "attention backward" : "attention forward";
}

/* -- opening -------------------------------------------------------------------------------------- */

static bool connect(struct attention *attention, const char *address)
{
    struct attnd_open_options options = {.size = sizeof(options), .address = address};
    enum attnd_status status = attnd_open(&options, &attention->client);
    return status == ATTND_OK || fail(attention, "cannot reach the daemon", status);
}

static bool fail_memory(struct attention *attention)
{
    snprintf(attention->error, sizeof(attention->error), "no memory for activations");
    return false;
}

/* A GPU's memory is the daemon's to see wherever it comes from; a CPU's must come from the library. */
static bool allocate_shared(struct attention *attention, size_t bytes)
{
    struct device *device = attention->device;
    if (!device->shares) {
        enum attnd_status status = attnd_alloc(attention->client, bytes, &attention->shared);
        return status == ATTND_OK || fail(attention, "no shared memory", status);
    }
    attention->shared = device->ops->allocate(device, bytes);
    return attention->shared != NULL || fail_memory(attention);
}

/* -- a call --------------------------------------------------------------------------------------- */

/* What forward and backward of a layer have in common. */
struct call {
    struct tensor_packed in;
    struct tensor out;
    struct tensor lse;
    struct attnd_options options;
    attnd_ticket ticket;
};

static struct tensor_memory memory_of(const struct attention *attention)
{
    const struct exchange *exchange = &attention->exchange;
    return (struct tensor_memory){&exchange->shape, attention->device->place, exchange->narrow};
}

/* The call stays where it is: its tensors point into it. */
static void describe(const struct attention *attention, size_t layer, struct call *call)
{
    const struct exchange_sent *sent = &attention->exchange.sent[layer];
    struct tensor_memory memory = memory_of(attention);
    tensor_packed(&call->in, &memory, sent->qkv);
    tensor_out(&call->out, &memory, sent->out);
    tensor_lse(&call->lse, &memory, attention_get_layer(attention, layer)->lse);
    call->options = (struct attnd_options)ATTND_OPTIONS_INIT;
    call->options.causal = true;
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

/* Behind a submission, in time without a stream and in order with one, its outputs are there. */
static bool end_call(struct attention *attention, bool backward, size_t layer)
{
    if (attention->device->stream == NULL && !attention_settle(attention)) {
        return false;
    }
    if (backward) {
        exchange_take_dqkv(&attention->exchange);
    } else {
        exchange_take_out(&attention->exchange, layer);
    }
    if (attention->watch != NULL) {
        attention->watch(attention->watch_context, backward, layer);
    }
    return true;
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
    latencies_note(
        &attention->latencies, device->ops->between_us(device, 2 * index, 2 * index + 1));
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

/* -- public --------------------------------------------------------------------------------------- */

bool attention_open(
    struct attention **attention, struct device *device, const struct attention_setup *setup)
{
    struct attention *made = calloc(1, sizeof(*made));
    *attention = made;
    if (made == NULL) {
        return false;
    }
    made->device = device;
    if (!connect(made, setup->address)) {
        return false;
    }
    if (!exchange_init(&made->exchange, device, setup)) {
        return fail_memory(made);
    }
    if (!allocate_shared(made, made->exchange.shared_bytes)) {
        return false;
    }
    exchange_share(&made->exchange, made->shared);
    return true;
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
    exchange_finish(&attention->exchange);
    latencies_finish(&attention->latencies);
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
    return &attention->exchange.shape;
}

bool attention_is_narrow(const struct attention *attention)
{
    return attention->exchange.narrow;
}

const struct attention_layer *attention_get_layer(const struct attention *attention, size_t layer)
{
    assert(layer < attention->exchange.layer_count);
    return &attention->exchange.layers[layer];
}

float *attention_dqkv(const struct attention *attention)
{
    return attention->exchange.dqkv;
}

float *attention_dout(const struct attention *attention)
{
    return attention->exchange.dout;
}

void attention_watch(struct attention *attention, attention_watch_fn watch, void *context)
{
    attention->watch = watch;
    attention->watch_context = context;
}

bool attention_forward(struct attention *attention, size_t layer)
{
    struct call call;
    describe(attention, layer, &call);
    exchange_send_qkv(&attention->exchange, layer);
    if (!begin_call(attention)) {
        return false;
    }
    enum attnd_status status =
        attnd_forward(attention->client, attention->device->stream, &call.in.q.dl, &call.in.k.dl,
            &call.in.v.dl, &call.out.dl, &call.lse.dl, &call.options, &call.ticket);
    if (status != ATTND_OK) {
        return fail(attention, call_name(false), status);
    }
    remember(attention, call.ticket, false);
    return end_call(attention, false, layer);
}

bool attention_backward_begin(struct attention *attention, size_t layer)
{
    struct call call;
    struct tensor_packed gradient;
    struct tensor dout;
    struct tensor_memory memory = memory_of(attention);
    describe(attention, layer, &call);
    tensor_packed(&gradient, &memory, attention->exchange.gradient.qkv);
    tensor_out(&dout, &memory, attention->exchange.gradient.out);
    struct attnd_gradients gradients = {.size = sizeof(gradients),
        .dout = &dout.dl,
        .dq = &gradient.q.dl,
        .dk = &gradient.k.dl,
        .dv = &gradient.v.dl};
    exchange_send_dout(&attention->exchange);
    if (!begin_call(attention)) {
        return false;
    }
    enum attnd_status status =
        attnd_backward(attention->client, attention->device->stream, &call.in.q.dl, &call.in.k.dl,
            &call.in.v.dl, &call.out.dl, &call.lse.dl, &gradients, &call.options, &call.ticket);
    if (status != ATTND_OK) {
        return fail(attention, call_name(true), status);
    }
    attention->backward_layer = layer;
    remember(attention, call.ticket, true);
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
    return exchange_read(&attention->exchange, tensor, layer, numbers);
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
    uint64_t requests = stats.client.requests;
    latencies_sort(&attention->latencies);
    *summary = (struct attention_summary){
        .calls = requests,
        .p50_us = latencies_percentile_us(&attention->latencies, 0.5),
        .p99_us = latencies_percentile_us(&attention->latencies, 0.99),
        .mean_group = requests > 0 ? (double)stats.client.group_members / (double)requests : 0.0,
    };
    return true;
}

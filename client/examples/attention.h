/*
 * The trainer's attention: causal, grouped query heads, computed by the daemon through attnd.h.
 * Nothing else here talks to the library. Owns the client and the buffers of all layers, of which the
 * rest of the model reads and writes its activations in place. One thread.
 *
 * q, k and v are views into one packed row per token, as one matrix product makes it:
 *     qkv (batch, seqlen, (heads_q + 2 heads_kv) * head_dim): q heads, then k heads, then v heads
 *     out (batch, seqlen, heads_q * head_dim), lse (batch, heads_q, seqlen)
 * and the gradients dqkv and dout alike. They have one buffer for all layers. The model's are float32;
 * the daemon's are the same memory, or bfloat16 copies of it.
 *
 * On a device with a stream all of this is enqueued there, the daemon's part too: no call waits.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "device.h"
#include "tensor.h"

struct attention_setup {
    const char *address; /* the daemon's directory; NULL: the usual one */
    struct tensor_shape shape;
    size_t layers;
    bool narrow; /* the daemon's tensors are bfloat16 */
};

struct attention_layer {
    float *qkv;
    float *out;
    float *lse;
};

/* What the daemon and the clock say of this client's calls so far. */
struct attention_summary {
    uint64_t calls;
    /* From the submission until the result was there; half of the calls were faster. */
    double p50_us;
    double p99_us;
    double mean_group; /* requests that ran together with one of ours, itself included */
};

/* Called behind each request, while its tensors are as it leaves them. */
typedef void (*attention_watch_fn)(void *context, bool backward, size_t layer);

enum attention_tensor {
    ATTENTION_QKV,
    ATTENTION_OUT,
    ATTENTION_LSE,
    ATTENTION_DQKV,
    ATTENTION_DOUT,
};

struct attention;

/* The device outlives it. On failure *attention still is to be asked for its error and closed, unless
 * it is NULL (no memory). */
bool attention_open(
    struct attention **attention, struct device *device, const struct attention_setup *setup);
/* Accepts NULL. Waits for running requests, for ever if the daemon never ends them. */
void attention_close(struct attention *attention);

/* A sentence about what failed last, here or in the device. */
const char *attention_error(const struct attention *attention);

struct device *attention_get_device(const struct attention *attention);
const struct tensor_shape *attention_get_shape(const struct attention *attention);
bool attention_is_narrow(const struct attention *attention);
const struct attention_layer *attention_get_layer(const struct attention *attention, size_t layer);
float *attention_dqkv(const struct attention *attention);
float *attention_dout(const struct attention *attention);

void attention_watch(struct attention *attention, attention_watch_fn watch, void *context);

/* The layer's out and lse from its qkv. */
bool attention_forward(struct attention *attention, size_t layer);

/* dqkv from dout and what the forward of this layer left. Between begin and end the caller can do
 * other work that changes none of these; one at a time. */
bool attention_backward_begin(struct attention *attention, size_t layer);
bool attention_backward_end(struct attention *attention);

/* Waits for all requests so far. false: one failed. */
bool attention_settle(struct attention *attention);

/* Copies a tensor as the daemon sees it, after what was enqueued so far. */
bool attention_read(
    struct attention *attention, enum attention_tensor tensor, size_t layer, float *numbers);

/* false: the daemon does not answer */
bool attention_summarize(struct attention *attention, struct attention_summary *summary);

/*
 * The memory that the model and the daemon share: qkv, out and lse of all layers, and one dqkv and dout.
 * The model's numbers are float32; the daemon sees the same memory or, where it is narrow, bfloat16
 * copies. Owns all but what the daemon sees, which it is given. Talks to nobody. One thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "device.h"
#include "tensor.h"

/* What the daemon reads and writes. */
struct exchange_sent {
    void *qkv;
    void *out;
};

struct exchange {
    struct device *device; /* borrowed */
    struct tensor_shape shape;
    bool narrow;
    size_t layer_count;
    struct attention_layer *layers; /* owned, like the next */
    struct exchange_sent *sent;
    float *dqkv;
    float *dout;
    struct exchange_sent gradient; /* of qkv and out */
    size_t shared_bytes;           /* that exchange_share() wants */
    void *own;                     /* owned; the model's numbers where the daemon sees copies */
    uint16_t *words;               /* owned; one tensor of copies, on its way to a reader */
};

/* false: no memory. Was it zeroed before, finish may be called in any case. */
bool exchange_init(
    struct exchange *exchange, struct device *device, const struct attention_setup *setup);
void exchange_finish(struct exchange *exchange);

/* Puts what the daemon sees there, and all pointers in place. */
void exchange_share(struct exchange *exchange, void *shared);

/* Enqueue the copies, to the daemon and from it, of a layer or of the gradient; where there are none
 * they do nothing. */
void exchange_send_qkv(const struct exchange *exchange, size_t layer);
void exchange_send_dout(const struct exchange *exchange);
void exchange_take_out(const struct exchange *exchange, size_t layer);
void exchange_take_dqkv(const struct exchange *exchange);

/* Copies a tensor as the daemon sees it. */
bool exchange_read(
    const struct exchange *exchange, enum attention_tensor tensor, size_t layer, float *numbers);

/*
 * A client of a real daemon and the tensors of one small attention call in its memory, for the tests
 * of libattnd. What goes wrong here ends the test.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "daemon.h"

enum client_tensor {
    CLIENT_Q,
    CLIENT_K,
    CLIENT_V,
    CLIENT_OUT,
    CLIENT_DOUT,
    CLIENT_DQ,
    CLIENT_DK,
    CLIENT_DV,
    CLIENT_LSE,
    CLIENT_DLSE,
    CLIENT_TENSORS,
};

/* float32, self-attention; all tensors compact, one after another, filled with small numbers. */
struct client_set {
    int64_t shape[4];     /* (batch, seqlen, heads, head_dim) */
    int64_t row_shape[3]; /* (batch, heads, seqlen) */
    size_t bytes;         /* of each tensor, rounded up */
    unsigned char *memory;
    DLTensor tensor[CLIENT_TENSORS];
    struct attnd_gradients gradients;
};

struct attnd *client_open(const struct daemon *daemon);
struct attnd_stats client_stats(struct attnd *client);

/* Bytes of memory that a set of these extents needs. */
size_t client_set_bytes(int64_t batch, int64_t seqlen, int64_t heads, int64_t head_dim);

/* The set must stay where it is. */
void client_set_init(struct client_set *set, void *memory, int64_t batch, int64_t seqlen,
    int64_t heads, int64_t head_dim);

/* init in memory from attnd_alloc(). */
void client_set_alloc(struct client_set *set, struct attnd *client, int64_t batch, int64_t seqlen,
    int64_t heads, int64_t head_dim);

/* attnd_forward() and attnd_backward() of the set. */
enum attnd_status client_set_forward(struct client_set *set, struct attnd *client, void *stream,
    const struct attnd_options *options, attnd_ticket *ticket);
enum attnd_status client_set_backward(struct client_set *set, struct attnd *client, void *stream,
    const struct attnd_options *options, attnd_ticket *ticket);

float *client_set_data(const struct client_set *set, enum client_tensor tensor);

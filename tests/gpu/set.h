/*
 * The tensors of one bf16 self-attention in device memory, and calls over them on a stream.
 *
 * What goes wrong in filling ends the program; calls return their status.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "work.h"

enum set_tensor {
    SET_Q,
    SET_K,
    SET_V,
    SET_OUT,
    SET_DOUT,
    SET_DQ,
    SET_DK,
    SET_DV,
    SET_LSE,
    SET_ALL
};

struct set_extents {
    int64_t batch;
    int64_t seqlen;
    int64_t heads;
    int64_t head_dim;
};

struct set {
    int64_t shape[4];
    int64_t row_shape[3];
    size_t count; /* elements of each tensor but lse */
    size_t pitch; /* bytes from one tensor to the next */
    unsigned char *memory;
    DLTensor tensor[SET_ALL];
    struct attnd_gradients gradients;
    struct attnd_options options; /* causal, deterministic */
};

/* Bytes of memory for a set. */
size_t set_bytes(const struct set_extents *extents);

/* The set must stay where it is, as must the memory: set_bytes() on the device, not owned. */
void set_init(struct set *set, const struct set_extents *extents, void *memory);

/* init in memory from cudaMalloc(), which set_free() gives back. */
void set_alloc(struct set *set, const struct set_extents *extents);
void set_free(struct set *set);

/* New inputs that follow from the seed, results full of NaN; enqueued. */
void set_fill(struct set *set, void *stream, uint32_t seed);

/* What work_stir() works on. */
struct work_tensors set_work(const struct set *set, bool backward);

uint16_t *set_data(const struct set *set, enum set_tensor tensor);

enum attnd_status set_forward(
    struct set *set, struct attnd *client, void *stream, attnd_ticket *ticket);
enum attnd_status set_backward(
    struct set *set, struct attnd *client, void *stream, attnd_ticket *ticket);

/*
 * The tensors of one call of attention as DLPack describes them: views into packed rows, one row a
 * token. The caller owns their memory.
 */
#pragma once

#include <dlpack/dlpack.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tensor_shape {
    size_t batch;
    size_t seqlen;
    size_t heads_q;
    size_t heads_kv;
    size_t head_dim;
};

/* Numbers of one token's row of qkv and of out. */
size_t tensor_qkv_width(const struct tensor_shape *shape);
size_t tensor_out_width(const struct tensor_shape *shape);

struct tensor_memory {
    const struct tensor_shape *shape;
    DLDevice place;
    bool narrow; /* bfloat16, all but lse */
};

/* A DLTensor and what it points to: stays where it is. */
struct tensor {
    DLTensor dl;
    int64_t shape[4];
    int64_t strides[4];
};

struct tensor_packed {
    struct tensor q;
    struct tensor k;
    struct tensor v;
};

void tensor_packed(struct tensor_packed *packed, const struct tensor_memory *memory, void *numbers);
void tensor_out(struct tensor *tensor, const struct tensor_memory *memory, void *numbers);
void tensor_lse(struct tensor *tensor, const struct tensor_memory *memory, float *numbers);

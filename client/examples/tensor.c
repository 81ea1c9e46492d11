#include "tensor.h"

static void init(
    struct tensor *tensor, const struct tensor_memory *memory, void *numbers, int dimensions)
{
    tensor->dl = (DLTensor){
        .data = numbers,
        .device = memory->place,
        .ndim = dimensions,
        .dtype = {.code = kDLFloat, .bits = 32, .lanes = 1},
        .shape = tensor->shape,
        .strides = tensor->strides,
    };
}

/* (batch, seqlen, heads, head_dim) inside rows of `width` numbers a token, from number `first` on. */
static void init_heads(struct tensor *tensor, const struct tensor_memory *memory, void *numbers,
    size_t heads, size_t width, size_t first)
{
    const struct tensor_shape *shape = memory->shape;
    init(tensor, memory, numbers, 4);
    if (memory->narrow) {
        tensor->dl.dtype = (DLDataType){.code = kDLBfloat, .bits = 16, .lanes = 1};
    }
    tensor->dl.byte_offset = first * tensor->dl.dtype.bits / 8;
    tensor->shape[0] = (int64_t)shape->batch;
    tensor->shape[1] = (int64_t)shape->seqlen;
    tensor->shape[2] = (int64_t)heads;
    tensor->shape[3] = (int64_t)shape->head_dim;
    tensor->strides[0] = (int64_t)(shape->seqlen * width);
    tensor->strides[1] = (int64_t)width;
    tensor->strides[2] = (int64_t)shape->head_dim;
    tensor->strides[3] = 1;
}

size_t tensor_qkv_width(const struct tensor_shape *shape)
{
    return (shape->heads_q + 2 * shape->heads_kv) * shape->head_dim;
}

size_t tensor_out_width(const struct tensor_shape *shape)
{
    return shape->heads_q * shape->head_dim;
}

void tensor_packed(struct tensor_packed *packed, const struct tensor_memory *memory, void *numbers)
{
    const struct tensor_shape *shape = memory->shape;
    size_t width = tensor_qkv_width(shape);
    size_t k = shape->heads_q * shape->head_dim;
    size_t v = k + shape->heads_kv * shape->head_dim;
    init_heads(&packed->q, memory, numbers, shape->heads_q, width, 0);
    init_heads(&packed->k, memory, numbers, shape->heads_kv, width, k);
    init_heads(&packed->v, memory, numbers, shape->heads_kv, width, v);
}

void tensor_out(struct tensor *tensor, const struct tensor_memory *memory, void *numbers)
{
    const struct tensor_shape *shape = memory->shape;
    init_heads(tensor, memory, numbers, shape->heads_q, tensor_out_width(shape), 0);
}

void tensor_lse(struct tensor *tensor, const struct tensor_memory *memory, float *numbers)
{
    const struct tensor_shape *shape = memory->shape;
    init(tensor, memory, numbers, 3);
    tensor->shape[0] = (int64_t)shape->batch;
    tensor->shape[1] = (int64_t)shape->heads_q;
    tensor->shape[2] = (int64_t)shape->seqlen;
    tensor->strides[0] = (int64_t)(shape->heads_q * shape->seqlen);
    tensor->strides[1] = (int64_t)shape->seqlen;
    tensor->strides[2] = 1;
}

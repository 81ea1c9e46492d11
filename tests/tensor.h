/*
 * The tensors of a problem as the tests see them: shapes, and single elements as doubles.
 *
 * Conversions between double and fp16, bf16 and fp32 are written out here, slowly and plainly, so
 * that nothing of the kernels' own conversions is trusted. Stateless; any thread.
 */
#pragma once

#include <stddef.h>

#include "attn.h"

enum tensor_id {
    TENSOR_Q,
    TENSOR_K,
    TENSOR_V,
    TENSOR_BIAS,
    TENSOR_SLOPES,
    TENSOR_SINKS,
    TENSOR_DOUT,
    TENSOR_DLSE,
    TENSOR_OUT,
    TENSOR_LSE,
    TENSOR_DQ,
    TENSOR_DK,
    TENSOR_DV,
    TENSOR_DBIAS,
    TENSOR_DSLOPES,
    TENSOR_DSINKS,
    TENSOR_COUNT,
};

/* Extents of 0 are valid. A packed (varlen) tensor has batch 1 and all rows. */
struct tensor {
    struct attn_view view;
    enum attn_dtype dtype;
    int64_t batch;
    int64_t rows;
    int64_t heads;
    int64_t columns;
};

struct tensor tensor_of(const struct attn_problem *problem, enum tensor_id id);
const char *tensor_name(enum tensor_id id);

/* The view of tensor id inside the problem, to be filled in. */
struct attn_view *tensor_view(struct attn_problem *problem, enum tensor_id id);

int64_t tensor_elements(const struct tensor *tensor);

/* Element number index, counted in the order (batch, row, head, column), last fastest. */
void *tensor_at(const struct tensor *tensor, int64_t index);
double tensor_get(const struct tensor *tensor, int64_t index);
void tensor_set(const struct tensor *tensor, int64_t index, double value);

size_t dtype_bytes(enum attn_dtype dtype);
double dtype_load(enum attn_dtype dtype, const void *element);
void dtype_store(enum attn_dtype dtype, void *element, double value);

/* The nearest value of dtype, ties to even, overflow to infinity. */
double dtype_round(enum attn_dtype dtype, double value);

/*
 * Where sequence b lies: rows [first_q, first_q + seqlen_q) of the query tensors, counted from those of
 * batch 0 in tensor_at()'s order, likewise the keys. Lengths that make no sense are clamped. Rows of
 * no sequence are padding: zero in outputs, -inf in lse, without meaning in inputs.
 */
struct sequence {
    int64_t first_q;
    int64_t seqlen_q;
    int64_t first_k;
    int64_t seqlen_k;
};

struct sequence sequence_of(const struct attn_problem *problem, int32_t b);

/* Half the distance between dtype's values around this one: how far rounding may move it. */
double dtype_half_step(enum attn_dtype dtype, double value);

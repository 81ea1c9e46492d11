/*
 * Random problems in memory that notices misuse.
 *
 * Every tensor lies between guards. Memory of inputs that is not an element holds NaN and infinities,
 * outputs start as NaN; sample_intact() says afterwards whether anything but the elements of the
 * outputs was written. Everything follows from the spec, the seed included. One thread per sample.
 */
#pragma once

#include "tensor.h"

struct sample_rng {
    uint64_t state;
};

uint64_t rng_next(struct sample_rng *rng);
int64_t rng_range(struct sample_rng *rng, int64_t low, int64_t high); /* both inclusive */
bool rng_chance(struct sample_rng *rng, int64_t one_in);
double rng_normal(struct sample_rng *rng);

enum sample_layout {
    SAMPLE_COMPACT,        /* (batch, row, head, column) */
    SAMPLE_HEAD_MAJOR,     /* (batch, head, row, column) */
    SAMPLE_SEQUENCE_MAJOR, /* (row, batch, head, column) */
    SAMPLE_PADDED,         /* odd gaps after heads, rows and batches */
    SAMPLE_OUTPUT_LAYOUTS,
    SAMPLE_REVERSED = SAMPLE_OUTPUT_LAYOUTS, /* inputs only: negative row and head strides */
    SAMPLE_SHARED_ROWS,                      /* inputs only: row stride 0 */
    SAMPLE_SHARED_HEADS,
    SAMPLE_SHARED_BATCHES,
    SAMPLE_INPUT_LAYOUTS,
};

enum sample_values {
    SAMPLE_NORMAL,
    SAMPLE_EQUAL_KEYS, /* all scores of a row are the same */
    SAMPLE_ZERO_KEYS,
    SAMPLE_VALUES,
};

struct sample_spec {
    uint64_t seed;
    enum attn_dtype dtype;
    int32_t batch;
    int32_t heads_q;
    int32_t heads_kv;
    int32_t head_dim_qk;
    int32_t head_dim_v;
    int64_t seqlen_q;
    int64_t seqlen_k;
    int64_t window_left;
    int64_t window_right;
    enum attn_alignment alignment;
    float scale;
    bool packed; /* q, k, v and dq, dk, dv are parts of one tensor each; needs equal lengths */
    bool dlse;
    enum sample_layout layout[TENSOR_COUNT];
    enum sample_values values;
    double query_size; /* standard deviation of q */
    double value_size; /* of v and dout */
};

/* One allocation; packed tensors share it. */
struct sample_storage {
    unsigned char *bytes;  /* owned */
    unsigned char *before; /* owned; what bytes were at the last snapshot */
    size_t size;
};

struct sample {
    struct attn_problem problem; /* complete: inputs and outputs of both directions */
    struct sample_storage storage[TENSOR_COUNT];
};

/* A plain spec: fp32, one of everything, no mask, compact. */
struct sample_spec sample_spec_default(void);

void sample_init(struct sample *sample, const struct sample_spec *spec);
void sample_finish(struct sample *sample);

/* The problem without what only backward has. */
struct attn_problem sample_forward(const struct sample *sample);

/* Remembers all memory as it is now. */
void sample_snapshot(struct sample *sample);

/* Whether nothing was written since the snapshot but elements of the tensors written[]. */
bool sample_intact(struct sample *sample, const bool written[TENSOR_COUNT]);

extern const bool sample_forward_outputs[TENSOR_COUNT];
extern const bool sample_backward_outputs[TENSOR_COUNT];

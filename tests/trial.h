/*
 * Random problems in memory that notices misuse.
 *
 * Every tensor lies between guards. Memory of inputs that is not an element holds NaN and infinities,
 * so do their elements that no answer may depend on; outputs start as NaN; trial_intact() says
 * afterwards whether anything but the elements of the outputs was written. Everything follows from the spec, the seed included. One thread per trial.
 */
#pragma once

#include "tensor.h"

struct trial_rng {
    uint64_t state;
};

uint64_t trial_next(struct trial_rng *rng);
int64_t trial_range(struct trial_rng *rng, int64_t low, int64_t high); /* both inclusive */
bool trial_chance(struct trial_rng *rng, int64_t one_in);
double trial_normal(struct trial_rng *rng);

enum trial_layout {
    TRIAL_COMPACT,        /* (batch, row, head, column) */
    TRIAL_HEAD_MAJOR,     /* (batch, head, row, column) */
    TRIAL_SEQUENCE_MAJOR, /* (row, batch, head, column) */
    TRIAL_PADDED,         /* gaps after heads, rows and batches: odd, or of 8 elements if aligned */
    TRIAL_OUTPUT_LAYOUTS,
    TRIAL_REVERSED = TRIAL_OUTPUT_LAYOUTS, /* inputs only: negative row and head strides */
    TRIAL_SHARED_ROWS,                     /* inputs only: row stride 0 */
    TRIAL_SHARED_HEADS,
    TRIAL_SHARED_BATCHES,
    TRIAL_INPUT_LAYOUTS,
    TRIAL_SHARED_COLUMNS = TRIAL_INPUT_LAYOUTS, /* bias only: column stride 0 */
};

enum trial_values {
    TRIAL_NORMAL,
    TRIAL_EQUAL_KEYS, /* all scores of a row are the same */
    TRIAL_ZERO_KEYS,
    TRIAL_VALUES,
};

enum trial_infinities {
    TRIAL_FINITE,
    TRIAL_SCATTERED, /* a quarter of bias is -inf */
    TRIAL_WHOLE_ROWS,
    TRIAL_INFINITIES,
};

/* One piece of memory for tensors, when it has to be of a special kind. */
struct trial_arena {
    unsigned char *bytes;
    size_t size;
    size_t used;
};

struct trial_spec {
    uint64_t seed;
    enum attn_dtype dtype;
    int32_t batch;
    int32_t heads_q;
    int32_t heads_kv;
    int32_t head_dim_qk;
    int32_t head_dim_v;
    int64_t seqlen_q; /* varlen: no sequence counts as longer */
    int64_t seqlen_k;
    bool varlen_q; /* lengths are drawn, 0 and padding included */
    bool varlen_k;
    bool key_lengths;
    bool hostile; /* lengths that have to be clamped */
    int64_t window_left;
    int64_t window_right;
    enum attn_alignment alignment;
    float scale;
    float softcap;
    uint32_t dropout_threshold;
    uint32_t dropout_offset;
    uint64_t dropout_seed;
    bool deterministic;
    bool bias;
    bool bias_fp32;   /* else as the other tensors */
    bool bias_one[4]; /* which of batch, head, query and key have extent 1 */
    enum trial_infinities bias_infinities;
    double bias_size;
    bool slopes;
    bool slopes_shared; /* one row for all batches */
    bool sinks;
    bool sinks_infinite; /* some are -inf */
    bool packed; /* q, k, v and dq, dk, dv are parts of one tensor each; needs equal lengths */
    bool dlse;
    bool dbias; /* these need their input */
    bool dslopes;
    bool dsinks;
    enum trial_layout layout[TENSOR_COUNT];
    bool aligned; /* tensors start at multiples of 64 bytes, else at odd elements */
    enum trial_values values;
    double query_size; /* standard deviation of q */
    double value_size; /* of v and dout */
};

/* One allocation; packed tensors share it. */
struct trial_storage {
    unsigned char *bytes;  /* owned, unless in an arena */
    unsigned char *before; /* owned; what bytes were at the last snapshot */
    size_t size;
};

enum trial_lengths {
    TRIAL_CU_SEQLENS_Q,
    TRIAL_CU_SEQLENS_K,
    TRIAL_SEQLENS_K,
    TRIAL_LENGTHS,
};

struct trial {
    struct attn_problem problem; /* complete: inputs and outputs of both directions */
    struct trial_storage storage[TENSOR_COUNT];
    struct trial_storage lengths[TRIAL_LENGTHS];
    struct trial_arena *arena; /* borrowed; NULL: the heap */
};

/* A plain spec: fp32, one of everything, no mask, compact. */
struct trial_spec trial_spec_default(void);

void trial_init(struct trial *trial, const struct trial_spec *spec);

/* The same with all that the problem points to in the arena, which must be large enough. */
void trial_init_in(struct trial *trial, const struct trial_spec *spec, struct trial_arena *arena);
/* Inputs anew, for lengths that the caller has changed; same rows, no more than before. */
void trial_refill(struct trial *trial, const struct trial_spec *spec);

void trial_finish(struct trial *trial);

/* The problem without what only backward has. */
struct attn_problem trial_forward(const struct trial *trial);

/* Makes out and lse of padding rows meaningless, as a backward pass may find them. */
void trial_spoil_padding(struct trial *trial);

/* Remembers all memory as it is now. */
void trial_snapshot(struct trial *trial);

/* Whether nothing was written since the snapshot but elements of the tensors written[]. */
bool trial_intact(struct trial *trial, const bool written[TENSOR_COUNT]);

extern const bool trial_forward_outputs[TENSOR_COUNT];
extern const bool trial_backward_outputs[TENSOR_COUNT];

/*
 * The formulas of attention for one query row, forward and backward, in either of two arithmetics.
 *
 * Part of the reference: reference.c walks over sequences, heads and rows. Also says how far a result
 * may be moved by rounding in fp32 and by rounding probabilities and ds to the dtype, which products of
 * matrices want. No memory of its own; any thread.
 */
#pragma once

#include "tensor.h"

/* One sequence and one query head of a problem, in one of the two arithmetics. */
struct formula {
    const struct attn_problem *problem;
    double **result; /* by tensor_id, as in struct reference */
    double **noise;  /* NULL in the low pass */
    double **spread; /* squares of deviations, beside noise; NULL in the low pass */
    bool low;
    bool strict; /* low rounds what goes to memory or into a product, and nothing else */
    bool backward;

    int32_t batch;
    int64_t head;
    int64_t kv_head;
    struct sequence sequence;
    double max_key; /* the longest key vector */
    double max_value;

    const double *q; /* the problem's inputs, compact, NULL if absent */
    const double *k;
    const double *v;
    const double *dout;
    const double *dlse;
    const double *bias;
    const double *slopes;
    const double *sinks;
    struct tensor shape[TENSOR_COUNT]; /* of the three above and their gradients */
    double *k_columns;                 /* this head's k and v, transposed */
    double *v_columns;

    double *scores; /* one row, indexed by key */
    double *weights;
    double *keep; /* what dropout multiplies the weights with */
    double *dropped;
    double *slope_of_cap;
    double *dp;
};

/* Half the distance of 1 to the next fp32 number. */
#define FORMULA_UNIT32 0x1p-24

/* Keys [*begin, *end) that query row of a sequence sees; empty if begin >= end. */
void formula_visible(const struct attn_problem *problem, int64_t row, int64_t seqlen_q,
    int64_t seqlen_k, int64_t *begin, int64_t *end);

/* Philox4x32-10 of a counter, in place; the key is the seed's low word, then its high one. */
void formula_philox(uint32_t counter[4], uint64_t seed);

/* Whether dropout keeps score (row, key); lane is batch * heads_q + head. */
bool formula_kept(const struct attn_problem *problem, int64_t row, int64_t key, uint32_t lane);

double formula_length(const double *x, int64_t count);

/* Row key of the pass's sequence and head in a compact tensor. */
double *formula_key_row(
    const struct formula *pass, const double *tensor, int64_t key, int64_t columns);

/* Writes the row's out and lse; scores and weights stay in the pass for backward. */
void formula_forward_row(struct formula *pass, int64_t row, int64_t begin, int64_t end);

/* Adds the row's part of every gradient; dq and dk still lack the factor scale. */
void formula_backward_row(struct formula *pass, int64_t row, int64_t begin, int64_t end);

/* Behind all rows: a gradient's sums times `factor` become results, which the low pass rounds to memory,
 * and their noise takes the spread in. */
void formula_finish_sums(struct formula *pass, enum tensor_id id, double factor);

/* The same for out, behind the gradients' rows, which take the roundings behind its spread into account by
 * themselves. */
void formula_finish_out(struct formula *pass);

/*
 * What random problems hold: lengths and values. Part of trial.c; the tensors have their memory.
 */
#pragma once

#include "trial.h"

/* How many numbers lengths array `which` has; 0: the spec has no such array. */
int64_t trial_fill_count(const struct trial_spec *spec, enum trial_lengths which);

/* Draws the arrays that are not NULL, and how many rows packed tensors have. */
void trial_fill_lengths(const struct trial_spec *spec, int32_t *const arrays[TRIAL_LENGTHS],
    int64_t *total_q, int64_t *total_k);

/* All inputs; what no answer may depend on becomes NaN or infinite. */
void trial_fill_values(const struct attn_problem *problem, const struct trial_spec *spec);

/* Makes the padding rows of one tensor NaN and infinite. */
void trial_fill_padding(const struct attn_problem *problem, enum tensor_id id);

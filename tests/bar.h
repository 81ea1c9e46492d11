/*
 * The numeric bar: how far a result may lie from the float64 reference.
 *
 *   max |ours - exact|  <=  factor * max(max |low - exact|, max noise) + 2 * max |grid - exact|
 *
 * where low is the same formula in the tensor's dtype, grid is (exact + 0.3) - 0.3 computed in that
 * dtype, and noise what roundings that nobody can do without may add up to (reference.h): for a handful
 * of numbers, low can be right by luck. Where the reference is not finite, ours must be the same; a NaN
 * of ours never passes.
 */
#pragma once

#include "reference.h"

struct bar {
    double error; /* max |ours - exact|, INFINITY after a mismatch of non-finite values */
    double limit;
    double ratio;  /* error / limit, 0 if error is 0; passes if <= 1 */
    int64_t worst; /* the element with the largest error, -1: none */
};

struct bar bar_check(enum attn_dtype dtype, double factor, int64_t count, const double *ours,
    const double *exact, const double *low, const double *noise);

/* Compares the problem's tensor id with the reference; factor is 2 for out and lse, else 3. */
struct bar bar_tensor(
    const struct reference *reference, const struct attn_problem *problem, enum tensor_id id);

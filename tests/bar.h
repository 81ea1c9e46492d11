/*
 * The numeric bar: how far a result may lie from the float64 reference.
 *
 *   |ours - exact|  <=  factor * max(max |low - exact|, min(max noise, 4 noise)) + 2 * max |grid - exact|
 *
 * where low is the same formula in the tensor's dtype, grid is (exact + 0.3) - 0.3 computed in that
 * dtype, and noise what roundings that nobody can do without may add up to (reference.h): for a handful
 * of numbers, low can be right by luck. Noise is an element's own but for the factor 4: scores of 1e38 in
 * one row excuse nothing in another. Where the reference is not finite, ours must be the same; a NaN of
 * ours never passes.
 */
#pragma once

#include "reference.h"

struct bar {
    double error; /* max |ours - exact|, INFINITY after a mismatch of non-finite values */
    double limit;
    double ratio; /* error / limit, 0 if error is 0, never NaN; passes if <= 1 */
    int64_t
        worst; /* the element with the largest ratio, whose error and limit they are; -1: none */
};

struct bar bar_check(enum attn_dtype dtype, double factor, int64_t count, const double *ours,
    const double *exact, const double *low, const double *noise);

/* Compares the problem's tensor id with the reference; factor is 2 for out and lse, else 3. */
struct bar bar_tensor(
    const struct reference *reference, const struct attn_problem *problem, enum tensor_id id);

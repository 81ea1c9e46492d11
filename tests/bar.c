#include "bar.h"

#include <math.h>
#include <stdlib.h>

static double max_of(double a, double b)
{
    return b > a ? b : a;
}

/* What the dtype's own grid does to a value. */
static double grid_error(enum attn_dtype dtype, double exact)
{
    const double shift = dtype_round(dtype, 0.3);
    double up = dtype_round(dtype, dtype_round(dtype, exact) + shift);
    return fabs(dtype_round(dtype, up - shift) - exact);
}

/* Infinity stands for every number that rounds to it. */
static double least_infinite(enum attn_dtype dtype)
{
    switch (dtype) {
    case ATTN_FP16:
        return 65520;
    case ATTN_BF16:
        return 0x1.ffp127;
    case ATTN_FP32:
        break;
    }
    return 0x1.ffffffp127;
}

static double error_of(enum attn_dtype dtype, double ours, double exact)
{
    if (ours == exact) {
        return 0;
    }
    if (isnan(ours) || !isfinite(exact)) {
        return INFINITY;
    }
    if (isinf(ours)) {
        double edge = copysign(least_infinite(dtype), ours);
        return fabs(exact) >= fabs(edge) && exact * edge > 0 ? 0 : fabs(edge - exact);
    }
    return fabs(ours - exact);
}

struct bar bar_check(enum attn_dtype dtype, double factor, int64_t count, const double *ours,
    const double *exact, const double *low, const double *noise)
{
    struct bar bar = {.worst = -1};
    double low_error = 0;
    double grid = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = error_of(dtype, ours[i], exact[i]);
        if (error > bar.error) {
            bar.error = error;
            bar.worst = i;
        }
        if (isfinite(exact[i]) && isfinite(low[i])) {
            low_error = max_of(low_error, fabs(low[i] - exact[i]));
        }
        if (isfinite(exact[i]) && isfinite(dtype_round(dtype, exact[i]))) {
            grid = max_of(grid, grid_error(dtype, exact[i]));
        }
        low_error = max_of(low_error, noise[i]);
    }
    bar.limit = factor * low_error + 2 * grid;
    bar.ratio = bar.error > 0 ? bar.error / bar.limit : 0;
    return bar;
}

struct bar bar_tensor(
    const struct reference *reference, const struct attn_problem *problem, enum tensor_id id)
{
    struct tensor tensor = tensor_of(problem, id);
    int64_t count = reference->count[id];
    double *ours = calloc(count > 0 ? (size_t)count : 1, sizeof *ours);
    if (ours == NULL) {
        abort();
    }
    for (int64_t i = 0; i < count; i++) {
        ours[i] = tensor_get(&tensor, i);
    }
    double factor = id == TENSOR_OUT || id == TENSOR_LSE ? 2 : 3;
    struct bar bar = bar_check(tensor.dtype, factor, count, ours, reference->exact[id],
        reference->low[id], reference->noise[id]);
    free(ours);
    return bar;
}

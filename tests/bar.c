#include "bar.h"

#include <math.h>
#include <stdlib.h>

#define OTHERS \
    4 /* of a deviation: no element of millions is farther off by chance times the factor */

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

/* What holds for all elements: low's error, the grid's, and the most that noise may do. */
struct common {
    double low_error;
    double grid;
    double noise;
};

static struct common common_of(enum attn_dtype dtype, int64_t count, const double *exact,
    const double *low, const double *noise)
{
    struct common common = {0};
    for (int64_t i = 0; i < count; i++) {
        if (isfinite(exact[i]) && isfinite(low[i])) {
            common.low_error = max_of(common.low_error, fabs(low[i] - exact[i]));
        }
        if (isfinite(exact[i]) && isfinite(dtype_round(dtype, exact[i]))) {
            common.grid = max_of(common.grid, grid_error(dtype, exact[i]));
        }
        common.noise = max_of(common.noise, noise[i]);
    }
    return common;
}

/* Noise elsewhere is an excuse for no more than OTHERS times an element's own. */
static double limit_of(const struct common *common, double factor, double noise)
{
    double mine = noise * OTHERS < common->noise ? noise * OTHERS : common->noise;
    return factor * max_of(common->low_error, mine) + 2 * common->grid;
}

struct bar bar_check(enum attn_dtype dtype, double factor, int64_t count, const double *ours,
    const double *exact, const double *low, const double *noise)
{
    struct common common = common_of(dtype, count, exact, low, noise);
    struct bar bar = {.worst = -1, .limit = limit_of(&common, factor, common.noise)};
    for (int64_t i = 0; i < count; i++) {
        double error = error_of(dtype, ours[i], exact[i]);
        double limit = limit_of(&common, factor, noise[i]);
        double ratio = error > 0 ? error / limit : 0;
        ratio = isinf(error) || isnan(ratio) ? INFINITY : ratio;
        if (ratio > bar.ratio) {
            bar = (struct bar){.error = error, .limit = limit, .ratio = ratio, .worst = i};
        }
    }
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

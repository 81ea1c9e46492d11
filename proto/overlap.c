#include "overlap.h"

#include <stddef.h>
#include <stdlib.h>

/* One dimension of index arithmetic: `count` places, `stride` apart. */
struct axis {
    int64_t stride;
    int64_t count;
    uint32_t dim;
};

static int compare_axes(const void *left, const void *right)
{
    const struct axis *a = left;
    const struct axis *b = right;
    return a->stride != b->stride ? (a->stride > b->stride) - (a->stride < b->stride)
                                  : (int)a->dim - (int)b->dim;
}

/*
 * Different indices have different addresses if each stride, ascending, is larger than the span of
 * all smaller ones together. Returns the first axis that breaks this, or NULL. Strides must be
 * positive and counts at least 1.
 */
static const struct axis *find_shared_axis(const struct axis *axes, uint32_t count)
{
    int64_t reach = 1;

    for (uint32_t i = 0; i < count; i++) {
        int64_t span;
        if (axes[i].count == 1) {
            continue;
        }
        if (axes[i].stride < reach ||
            __builtin_mul_overflow(axes[i].stride, axes[i].count - 1, &span) ||
            __builtin_add_overflow(reach, span, &reach)) {
            return &axes[i];
        }
    }
    return NULL;
}

/*
 * Axes of two tensors of equal strides, descending, the last with stride 1. Axis i has `count` places
 * in the lower tensor and `other` in the upper one, which begins `shift` places further on.
 */
struct pair_axis {
    int64_t stride;
    int64_t count;
    int64_t other;
    int64_t shift;
};

/* Whether two index boxes are disjoint, in an index space that holds both and in which no two
 * places share an address. */
static bool are_boxes_apart(const struct pair_axis axes[WIRE_MAX_DIMS], uint32_t count)
{
    struct axis hull[WIRE_MAX_DIMS];
    bool apart = false;

    for (uint32_t i = 0; i < count; i++) {
        const struct pair_axis *axis = &axes[i];
        int64_t begin = axis->shift < 0 ? axis->shift : 0;
        int64_t end = axis->shift + axis->other;
        apart = apart || axis->shift >= axis->count || end <= 0;
        hull[count - 1 - i] =
            (struct axis){axis->stride, (end > axis->count ? end : axis->count) - begin, i};
    }
    return apart && find_shared_axis(hull, count) == NULL;
}

/*
 * Splits `distance` (elements) into a shift along each axis from `next` on. Along one axis there are
 * two candidates: the last place before the distance, and the next, with shifts back along the
 * smaller axes. Any split that makes the boxes disjoint is a proof.
 */
static bool is_shift_apart(
    struct pair_axis axes[WIRE_MAX_DIMS], uint32_t count, uint32_t next, int64_t distance)
{
    if (next == count) {
        return distance == 0 && are_boxes_apart(axes, count);
    }
    int64_t stride = axes[next].stride;
    int64_t down = distance / stride - (distance % stride < 0);
    for (int64_t shift = down; shift <= down + 1; shift++) {
        axes[next].shift = shift;
        if (is_shift_apart(axes, count, next + 1, distance - shift * stride)) {
            return true;
        }
    }
    return false;
}

static int compare_pair_axes(const void *left, const void *right)
{
    const struct pair_axis *a = left;
    const struct pair_axis *b = right;
    return (a->stride < b->stride) - (a->stride > b->stride);
}

/* Whether the last stride is 1, or might as well be. */
static bool is_contiguous(const struct wire_tensor *tensor)
{
    uint32_t last = tensor->dims - 1;
    return tensor->shape[last] == 1 || tensor->strides[last] == 1;
}

bool overlap_within(const struct wire_tensor *tensor, uint32_t *dim)
{
    struct axis axes[WIRE_MAX_DIMS];

    for (uint32_t i = 0; i < tensor->dims; i++) {
        axes[i] = (struct axis){tensor->strides[i], (int64_t)tensor->shape[i], i};
    }
    qsort(axes, tensor->dims, sizeof(axes[0]), compare_axes);
    const struct axis *shared = find_shared_axis(axes, tensor->dims);
    if (shared == NULL) {
        return false;
    }
    *dim = shared->dim;
    return true;
}

bool overlap_is_interleaved(
    const struct wire_tensor *a, const struct wire_tensor *b, int64_t distance)
{
    struct pair_axis axes[WIRE_MAX_DIMS];
    uint32_t count = 0;
    uint32_t last = a->dims - 1;

    if (a->dims != b->dims || a->dtype != b->dtype || !is_contiguous(a) || !is_contiguous(b)) {
        return false;
    }
    for (uint32_t dim = 0; dim < last; dim++) {
        int64_t stride = a->shape[dim] > 1 ? a->strides[dim] : b->strides[dim];
        if (a->shape[dim] == 1 && b->shape[dim] == 1) {
            continue;
        }
        if (stride <= 0 || (b->shape[dim] > 1 && b->strides[dim] != stride)) {
            return false;
        }
        axes[count++] =
            (struct pair_axis){stride, (int64_t)a->shape[dim], (int64_t)b->shape[dim], 0};
    }
    axes[count++] = (struct pair_axis){1, (int64_t)a->shape[last], (int64_t)b->shape[last], 0};
    qsort(axes, count, sizeof(axes[0]), compare_pair_axes);
    return is_shift_apart(axes, count, 0, distance);
}

#include "packed.h"

#include <inttypes.h>
#include <stddef.h>

#define LEAST_DIMS 4 /* (total, parts, heads, head_dim) */
#define MOST_DIMS 5
#define DIMS_BEHIND 2 /* of the parts: heads, head_dim */

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

static bool check(const char *name, const DLTensor *tensor, int64_t parts, struct wire_error *error)
{
    if (!tensor) {
        return fail(error, "%s is NULL", name);
    }
    if (tensor->ndim != LEAST_DIMS && tensor->ndim != MOST_DIMS) {
        return fail(error, "%s->ndim is %d, neither %d nor, packed, %d", name, tensor->ndim,
            MOST_DIMS, LEAST_DIMS);
    }
    if (!tensor->shape) {
        return fail(error, "%s->shape is NULL", name);
    }
    int dim = tensor->ndim - DIMS_BEHIND - 1;
    return tensor->shape[dim] == parts ||
           fail(error, "%s->shape[%d] is %" PRId64 ", but must be %" PRId64, name, dim,
               tensor->shape[dim], parts);
}

/* false: they overflow. */
static bool find_strides(const DLTensor *tensor, int64_t strides[MOST_DIMS])
{
    int64_t next = 1;
    bool fits = true;
    for (int dim = tensor->ndim - 1; dim >= 0; dim--) {
        int64_t extent = tensor->shape[dim] > 0 ? tensor->shape[dim] : 1;
        strides[dim] = tensor->strides ? tensor->strides[dim] : next;
        fits =
            fits && (tensor->strides || dim == 0 || !__builtin_mul_overflow(next, extent, &next));
    }
    return fits;
}

/* Where a part begins, `index` strides behind the tensor's first element. false: nowhere. */
static bool find_address(const DLTensor *tensor, int64_t stride, int64_t index, uint64_t *address)
{
    int64_t bytes;
    return !__builtin_mul_overflow(stride, index * (tensor->dtype.bits / 8), &bytes) &&
           !__builtin_add_overflow(
               (uint64_t)(uintptr_t)tensor->data, tensor->byte_offset, address) &&
           !__builtin_add_overflow(*address, bytes, address);
}

bool packed_split(const char *name, const DLTensor *tensor, int64_t parts, struct packed *packed,
    struct wire_error *error)
{
    int64_t strides[MOST_DIMS];
    if (!check(name, tensor, parts, error)) {
        return false;
    }
    if (!find_strides(tensor, strides)) {
        return fail(error, "%s->shape is that of more elements than there can be", name);
    }
    int split = tensor->ndim - DIMS_BEHIND - 1;
    for (int from = 0, to = 0; from < tensor->ndim; from++) {
        if (from != split) {
            packed->shape[to] = tensor->shape[from];
            packed->strides[to++] = strides[from];
        }
    }
    for (int64_t i = 0; i < parts; i++) {
        uint64_t address;
        DLTensor *part = &packed->part[i];
        if (!find_address(tensor, strides[split], i, &address)) {
            return fail(error,
                "%s->strides[%d] is %" PRId64 ", beyond the end of the address space", name, split,
                strides[split]);
        }
        *part = *tensor;
        part->data = tensor->data ? (void *)(uintptr_t)address : NULL;
        part->byte_offset = 0;
        part->ndim = tensor->ndim - 1;
        part->shape = packed->shape;
        part->strides = packed->strides;
    }
    return true;
}

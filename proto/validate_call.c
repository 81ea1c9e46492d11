/* The second half of validate.h: calls of a plan that is known to make sense. */
#include "validate.h"

#include "overlap.h"

#include <inttypes.h>

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

static bool is_placed(const struct wire_extent *extent)
{
    return extent->low < extent->high;
}

static bool check_place(const struct wire_tensor *tensor, const struct wire_extent *extent,
    uint64_t offset, uint64_t region_bytes, struct wire_error *error)
{
    const char *name = wire_role_name(tensor->role);
    size_t size = wire_dtype_bytes(tensor->dtype);

    if (offset % size != 0) {
        return fail(error,
            "%s.offset is %" PRIu64 ", no multiple of the %zu bytes of an %s element", name, offset,
            size, wire_dtype_name(tensor->dtype));
    }
    if (!is_placed(extent)) { /* it has an address all the same */
        return offset <= region_bytes ||
               fail(error, "%s.offset is %" PRIu64 ", outside of the region of %" PRIu64 " bytes",
                   name, offset, region_bytes);
    }
    if (offset < (uint64_t)-extent->low) {
        return fail(error,
            "%s.offset is %" PRIu64 ", but the tensor begins %" PRId64
            " bytes before it: outside of the region",
            name, offset, -extent->low);
    }
    if (offset > region_bytes || region_bytes - offset < (uint64_t)extent->high) {
        return fail(error,
            "%s.offset is %" PRIu64 ", but the tensor ends %" PRId64
            " bytes after it: outside of the region of %" PRIu64 " bytes",
            name, offset, extent->high, region_bytes);
    }
    return true;
}

static bool do_overlap(const struct wire_plan *plan, const struct wire_extent *extents,
    const struct wire_call *call, uint32_t i, uint32_t j)
{
    /* check_place has shown that these sums lie inside of a region. */
    uint64_t begin_i = call->offset[i] - (uint64_t)-extents[i].low;
    uint64_t begin_j = call->offset[j] - (uint64_t)-extents[j].low;
    uint64_t end_i = call->offset[i] + (uint64_t)extents[i].high;
    uint64_t end_j = call->offset[j] + (uint64_t)extents[j].high;

    if (begin_i >= end_j || begin_j >= end_i) {
        return false;
    }
    if (call->offset[i] > call->offset[j]) {
        uint32_t upper = i;
        i = j;
        j = upper;
    }
    uint64_t distance = call->offset[j] - call->offset[i];
    return !overlap_is_interleaved(&plan->tensor[i], &plan->tensor[j],
        (int64_t)(distance / wire_dtype_bytes(plan->tensor[i].dtype)));
}

static bool check_overlap(const struct wire_plan *plan, const struct wire_extent *extents,
    const struct wire_call *call, uint32_t output, struct wire_error *error)
{
    for (uint32_t other = 0; other < plan->tensors; other++) {
        if (other != output && is_placed(&extents[other]) &&
            call->region[other] == call->region[output] &&
            do_overlap(plan, extents, call, output, other)) {
            return fail(error, "%s overlaps %s in memory, but an output must not",
                wire_role_name(plan->tensor[output].role),
                wire_role_name(plan->tensor[other].role));
        }
    }
    return true;
}

bool validate_call(const struct wire_plan *plan, const struct wire_extent extents[WIRE_MAX_TENSORS],
    const struct wire_call *call, const uint64_t region_bytes[WIRE_MAX_TENSORS],
    struct wire_error *error)
{
    if (call->tensors != plan->tensors) {
        return fail(error, "the call has %" PRIu32 " tensors, but its plan has %" PRIu32,
            call->tensors, plan->tensors);
    }
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (!check_place(&plan->tensor[i], &extents[i], call->offset[i], region_bytes[i], error)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (is_placed(&extents[i]) && wire_role_is_output(plan->direction, plan->tensor[i].role) &&
            !check_overlap(plan, extents, call, i, error)) {
            return false;
        }
    }
    return true;
}

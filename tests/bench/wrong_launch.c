/* Kernels that are wrong: attn_launch() is wrapped (ld --wrap) and spoils one element in the last
 * row of the last head of out and dv. */
#include "tensor.h"

int __real_attn_launch(const struct attn_family *family, enum attn_direction direction,
    const struct attn_slice *slices, size_t count, const struct attn_target *target);
int __wrap_attn_launch(const struct attn_family *family, enum attn_direction direction,
    const struct attn_slice *slices, size_t count, const struct attn_target *target);

int __wrap_attn_launch(const struct attn_family *family, enum attn_direction direction,
    const struct attn_slice *slices, size_t count, const struct attn_target *target)
{
    int error = __real_attn_launch(family, direction, slices, count, target);
    struct tensor spoilt =
        tensor_of(slices[0].problem, direction == ATTN_FORWARD ? TENSOR_OUT : TENSOR_DV);
    int64_t last = tensor_elements(&spoilt) - 1;
    tensor_set(&spoilt, last, tensor_get(&spoilt, last) + 0.25);
    return error;
}

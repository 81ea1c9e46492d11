#include "elements.h"

#include <string.h>

/* Bytes to element (i0, i1, i2, 0) of a tensor padded to four dimensions in front. */
static int64_t row_offset(const struct wire_tensor *tensor, const uint64_t index[3])
{
    uint32_t pad = WIRE_MAX_DIMS - tensor->dims;
    int64_t offset = 0;
    for (uint32_t dim = pad; dim < WIRE_MAX_DIMS - 1; dim++) {
        offset += tensor->strides[dim - pad] * (int64_t)index[dim];
    }
    return offset * (int64_t)wire_dtype_bytes(tensor->dtype);
}

static void copy_row(unsigned char *to, int64_t to_stride, const unsigned char *from,
    int64_t from_stride, uint64_t count, size_t size)
{
    if ((to_stride == 1 && from_stride == 1) || count == 1) {
        memcpy(to, from, count * size);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        memcpy(to, from, size);
        to += to_stride * (int64_t)size;
        from += from_stride * (int64_t)size;
    }
}

void elements_copy(const struct wire_tensor *to, void *to_data, const struct wire_tensor *from,
    const void *from_data)
{
    uint32_t last = from->dims - 1;
    uint32_t pad = WIRE_MAX_DIMS - from->dims;
    size_t size = wire_dtype_bytes(from->dtype);
    uint64_t extent[3] = {1, 1, 1};
    for (uint32_t dim = 0; dim <= last; dim++) {
        if (from->shape[dim] == 0) {
            return;
        }
        if (dim < last) {
            extent[pad + dim] = from->shape[dim];
        }
    }
    uint64_t at[3];
    for (at[0] = 0; at[0] < extent[0]; at[0]++) {
        for (at[1] = 0; at[1] < extent[1]; at[1]++) {
            for (at[2] = 0; at[2] < extent[2]; at[2]++) {
                copy_row((unsigned char *)to_data + row_offset(to, at), to->strides[last],
                    (const unsigned char *)from_data + row_offset(from, at), from->strides[last],
                    from->shape[last], size);
            }
        }
    }
}

uint64_t elements_compact(struct wire_tensor *tensor)
{
    uint64_t stride = 1;
    uint64_t count = 1;
    for (uint32_t dim = tensor->dims; dim-- > 0;) {
        tensor->strides[dim] = (int64_t)(stride & INT64_MAX);
        stride *= tensor->shape[dim] ? tensor->shape[dim] : 1;
        count *= tensor->shape[dim];
    }
    return count * wire_dtype_bytes(tensor->dtype);
}

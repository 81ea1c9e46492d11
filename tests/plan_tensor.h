/* Tensors of plans that tests write by hand. */
#pragma once

#include <string.h>

#include "wire.h"

/* Of fp32; the plan's last one from now on. */
static inline void plan_tensor(struct wire_plan *plan, uint32_t t, enum wire_role role,
    uint32_t dims, const uint64_t *shape, const int64_t *strides)
{
    plan->tensor[t] = (struct wire_tensor){.role = role, .dtype = WIRE_FP32, .dims = dims};
    memcpy(plan->tensor[t].shape, shape, dims * sizeof *shape);
    memcpy(plan->tensor[t].strides, strides, dims * sizeof *strides);
    plan->tensors = t + 1;
}

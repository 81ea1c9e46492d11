/*
 * The kernel family that a build of the kernels' tests is about: CMake says which, and how many of
 * fp16, bf16 and fp32, in this order, it computes. Any thread.
 */
#pragma once

#include "attn.h"

static inline const struct attn_family *tested_family(void)
{
    return attn_family_find(TESTED_FAMILY);
}

/* One after another, again and again. */
static inline enum attn_dtype tested_dtype(int n)
{
    return (enum attn_dtype)(ATTN_FP16 + n % TESTED_DTYPES);
}

/*
 * The backward pass's kernels as backward.c picks them. Private to kernels/sm80/.
 */
#pragma once

#include "sm80.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Those of one head dim tile. */
struct backward_kernels {
    struct sm80_kernels columns;      /* dk and dv, and dq's sums */
    struct sm80_kernel summing[2][2]; /* and those of ds by key: not bf16, bf16; bias, general */
    struct sm80_kernel rows[2][2];    /* dq and what slopes need: not bf16, bf16; plain, general */
    struct sm80_kernel dbias[2][2];   /* that of a matrix: not bf16, bf16; bias, general */
};

extern const struct backward_kernels sm80_backward_d32;
extern const struct backward_kernels sm80_backward_d64;
extern const struct backward_kernels sm80_backward_d96;
extern const struct backward_kernels sm80_backward_d128;
extern const struct backward_kernels sm80_backward_d192;
extern const struct backward_kernels sm80_backward_d256;

/* Those of any head dim: not bf16, bf16. */
extern const struct sm80_kernel sm80_backward_delta[2];
extern const struct sm80_kernel sm80_backward_convert[2];
extern const struct sm80_kernel sm80_backward_sums[2];

#ifdef __cplusplus
}
#endif

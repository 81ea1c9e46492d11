/*
 * The sm80 family's kernels and stages, as sm80.c launches them. Private to kernels/sm80/.
 *
 * A direction is a list of stages, each a kernel over as many tiles as the problem has for it; a stage
 * needs what earlier stages of the same problem have left in its workspace. Which kernels a problem
 * takes depends on its key alone, so that problems of one key share launches.
 */
#pragma once

#include "device/args.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sm80_kernel {
    const void *function; /* its parameter is a struct device_group */
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t rows; /* of queries, in a block's tile; of whatever it counts, if it has no queries */
    uint32_t keys;
};

/* The kernels of one head dim tile: not bf16, bf16. */
struct sm80_kernels {
    struct sm80_kernel kernel[2][SCORE_KINDS];
};

struct sm80_stage {
    uint64_t (*tiles)(const struct attn_problem *problem);
    const struct sm80_kernel *(*kernel)(const struct attn_problem *problem);
};

/* A direction's stages in order; kernel_at() is for making all of them ready: NULL behind the last. */
struct sm80_direction {
    const struct sm80_stage *stages;
    size_t stage_count;
    size_t (*workspace_bytes)(const struct attn_problem *problem); /* what lengths take included */
    const struct sm80_kernel *(*kernel_at)(size_t index);
};

#define SM80_WIDTHS 6

struct sm80_key {
    bool bf16;
    unsigned width; /* which of the head dim tiles, 0 .. SM80_WIDTHS - 1 */
    enum score_kind kind;
    bool sums; /* of the gradient of a bias that is a vector of keys */
};

struct sm80_key sm80_key_of(const struct attn_problem *problem);

extern const struct sm80_direction sm80_forward;
extern const struct sm80_direction sm80_backward;

extern const struct sm80_kernels sm80_forward_d32;
extern const struct sm80_kernels sm80_forward_d64;
extern const struct sm80_kernels sm80_forward_d96;
extern const struct sm80_kernels sm80_forward_d128;
extern const struct sm80_kernels sm80_forward_d192;
extern const struct sm80_kernels sm80_forward_d256;

/* Copies and clamps lengths: first in either direction. */
extern const struct sm80_kernel sm80_lengths;
extern const struct sm80_stage lengths_stage;

/* Clears the outputs' rows that are of no sequence. */
extern const struct sm80_kernel sm80_padding_forward;
extern const struct sm80_kernel sm80_padding_backward;
extern const struct sm80_stage padding_forward_stage;
extern const struct sm80_stage padding_backward_stage;

#ifdef __cplusplus
}
#endif

/*
 * Random attention calls over the cross product of everything a call can have.
 *
 * Each case is a function of the seed and its own number, so that one can be run again alone. Counts
 * which pairs of features met in a case. No state but the caller's; any thread.
 */
#pragma once

#include "trial.h"

/* One case: what to compute and how to run it. */
struct draw {
    struct trial_spec spec;
    enum attn_direction direction;
    bool lse; /* forward returns it */
    unsigned workers;
    uint64_t tiles_per_launch;
};

struct draw draw_case(uint64_t seed, uint64_t number);

/* One of the shapes where others have found mistakes, of sequences up to 2048; fp16 and bf16. */
struct draw draw_flash_case(uint64_t seed, uint64_t number);

/* Whether a family for GPUs may refuse the case: for its dtype alone, never for a feature. */
bool draw_may_be_refused(const struct draw *draw);

/* Prints the case in one line. */
void draw_describe(const struct draw *draw);

/* What a case can have. */
enum draw_feature {
    DRAW_FP16,
    DRAW_BF16,
    DRAW_FP32,
    DRAW_FORWARD,
    DRAW_BACKWARD,
    DRAW_GROUPED_HEADS,
    DRAW_TWO_HEAD_DIMS,
    DRAW_STRIDES,
    DRAW_PACKED,
    DRAW_WINDOW_LEFT,
    DRAW_WINDOW_RIGHT,
    DRAW_TOP_LEFT, /* with a window or slopes: else it means nothing */
    DRAW_BOTTOM_RIGHT,
    DRAW_SOFTCAP,
    DRAW_DROPOUT,
    DRAW_BIAS,
    DRAW_BIAS_INFINITIES,
    DRAW_BIAS_ONE_BATCH,
    DRAW_BIAS_ONE_HEAD,
    DRAW_BIAS_ONE_QUERY,
    DRAW_BIAS_ONE_KEY,
    DRAW_DBIAS,
    DRAW_SLOPES,
    DRAW_SLOPES_PER_BATCH,
    DRAW_DSLOPES,
    DRAW_SINKS,
    DRAW_DSINKS,
    DRAW_DLSE,
    DRAW_VARLEN_Q,
    DRAW_VARLEN_K,
    DRAW_KEY_LENGTHS,
    DRAW_HOSTILE,
    DRAW_FEATURES,
};

struct draw_pairs {
    uint64_t seen[DRAW_FEATURES]; /* bit j of number i: i and j were in one case */
    bool bias_shapes[16];         /* by which of its extents were 1 */
};

void draw_count(struct draw_pairs *pairs, const struct draw *draw);

/* Prints how many of the pairs that can meet did, with names also which did not. Whether all did. */
bool draw_report(const struct draw_pairs *pairs, bool names);

/*
 * Whether a problem's results are right: the numeric bar, and exact zeros where nothing adds to them.
 *
 * Prints what is wrong. Stateless but for the caller's verdict.
 */
#pragma once

#include "reference.h"
#include "trial.h"

struct verdict {
    double ratio; /* the largest error over its limit */
    bool failed;
};

void judge_complain(struct verdict *verdict, const char *what, const char *tensor);

/* The results of one direction; only those that the problem has. */
void judge(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum attn_direction direction);

/* How to compute a trial. */
struct judge_run {
    const struct attn_family *family;
    enum attn_direction direction; /* backward: forward first */
    bool lse;                      /* forward returns it; backward needs it */
    unsigned workers;
    uint64_t tiles_per_launch; /* 0: all in one */
};

/* Computes and judges it, and what was written beside the outputs. */
void judge_trial(struct verdict *verdict, struct trial *trial, const struct judge_run *run);

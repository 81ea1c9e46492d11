/*
 * Whether a problem's results are right: the numeric bar, and exact zeros where nothing adds to them.
 *
 * Says what is wrong. Stateless but for the caller's verdict.
 */
#pragma once

#include <stdio.h>

#include "reference.h"
#include "trial.h"
#include "twin.h"

struct verdict {
    double ratio; /* the largest error over its limit */
    bool failed;
    bool broken; /* the device returned an error: no more to be expected of it */
    FILE *out;   /* where complaints go; NULL: stdout */
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
    struct twin *twin;         /* whose arena the trial lies in; NULL: none */
    bool strict;               /* by reference_create_strict() */
};

/* Computes and judges it, and what was written beside the outputs. */
void judge_trial(struct verdict *verdict, struct trial *trial, const struct judge_run *run);

/*
 * Computes the trial's spec once more, behind another problem of the same group and cut otherwise: every
 * bit is as judge_trial() left it in the trial. Only for what promises it: forward, deterministic.
 */
void judge_bits(struct verdict *verdict, const struct trial *trial, const struct trial_spec *spec,
    const struct judge_run *run);

/*
 * Whether a problem's results are right: the numeric bar, and exact zeros where nothing adds to them.
 *
 * Prints what is wrong. Stateless but for the caller's verdict.
 */
#pragma once

#include "reference.h"

struct verdict {
    double ratio; /* the largest error over its limit */
    bool failed;
};

void judge_complain(struct verdict *verdict, const char *what, const char *tensor);

/* The results of one direction; only those that the problem has. */
void judge(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum attn_direction direction);

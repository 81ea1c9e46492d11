/*
 * Whether a family computes a subject rightly: launched as it will be timed, then held against the
 * float64 reference within the numeric bar.
 *
 * Where the reference of everything would take too long, a sample is drawn of query heads, and of
 * each some rows. Forward compares these rows. For backward, dout and dlse of all other rows are
 * zero while it is checked, so that the sampled rows alone make every gradient. One thread.
 */
#pragma once

#include "subject.h"
#include "workers.h"

struct check {
    bool done;
    bool sampled;
    bool wrong;
    int heads;           /* sampled */
    int rows;            /* sampled, of each head */
    double ratio;        /* worst error / bar */
    const char *worst;   /* its tensor's name */
    char complaint[200]; /* a sentence if wrong */
};

/* Leaves outputs of all directions up to this one in the subject, and its inputs as they were.
 * sample: do not compute everything even if it is small. */
struct check check_run(struct subject *subject, const struct attn_family *family,
    struct workers *workers, enum attn_direction direction, bool sample);

/* One launch of the whole problem; 0 or the family's error number. */
int check_launch(const struct attn_family *family, struct workers *workers,
    enum attn_direction direction, const struct attn_problem *problem, void *workspace);

/*
 * Stress of a kernel family on a GPU, beside what the program draws does: one function for each kind.
 */
#pragma once

#include "executor.h"
#include "judge.h"

struct kernels {
    const struct attn_family *family;
    const char *part;
    unsigned repeats; /* of the parts that look for races */
    uint64_t only;    /* this case of the part alone; 0: all */
    uint64_t number;  /* of the case that runs, from 1 on */
    uint64_t checked;
    uint64_t failed;
    double worst; /* error over bar */
};

/* Lengths at the edges of tiles, NaN and infinities right behind them. */
void kernels_edges(struct kernels *kernels);

/* Scores up to 2e5, which overflow what exp() can take. */
void kernels_logits(struct kernels *kernels);

/* Elements more than 2^31 away from the first: the same bits as side by side. */
void kernels_far(struct kernels *kernels);

/* Alone, in a group, and cut into slices: the same bits. */
void kernels_groups(struct kernels *kernels);

/* Again and again with every multiprocessor busy: the same bits. */
void kernels_repeats(struct kernels *kernels);

/* Begins the next case. false: it is not wanted. */
bool kernels_begin(struct kernels *kernels);

/* Counts a check; says what failed, and the command that runs its case again. */
void kernels_count(struct kernels *kernels, bool good, const char *what);

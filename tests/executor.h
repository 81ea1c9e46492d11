/*
 * Launches of a kernel family: with N threads of the test's own for the cpu families, on the memory of
 * a twin for those of a device that has its own.
 *
 * Every launch gets scratch and workspace full of NaN, in heap blocks of exactly the size that was
 * asked for, so that AddressSanitizer sees one byte too many. Threads live for one run() and are
 * joined in it. One launch at a time per executor.
 */
#pragma once

#include "attn.h"
#include "twin.h"

#define EXECUTOR_MAX_WORKERS 16
#define EXECUTOR_OVERRUN (-1)

struct executor {
    struct attn_executor base;
    const struct attn_family *family;
    struct twin *twin;                   /* borrowed; NULL: problems lie where they are computed */
    void *scratch[EXECUTOR_MAX_WORKERS]; /* owned */
};

/* workers: 1 .. EXECUTOR_MAX_WORKERS; 1 runs everything on the calling thread. */
void executor_init(struct executor *executor, const struct attn_family *family, unsigned workers);
void executor_finish(struct executor *executor);

/*
 * Runs the problems as one group from first to last tile, in launches of at most tiles_per_launch
 * tiles of each (0: all in one). Problems lie in the arena of the twin, if there is one. Returns
 * attn_launch()'s result or the device's error; EXECUTOR_OVERRUN: memory beside a workspace was written.
 */
int executor_solve(struct executor *executor, enum attn_direction direction,
    const struct attn_problem *problems, size_t count, uint64_t tiles_per_launch);

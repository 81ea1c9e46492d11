/*
 * Where the sequences of a problem lie in its tensors, and how blocks of rows are numbered over them.
 * Lengths are in memory that others may write at any time: the stage that comes first clamps them into
 * the workspace, and everything here only reads that copy. Plain C that is CUDA as well; any thread.
 *
 * Sequence b of a packed side has the numbers from  start(b) / rows + b  on, where rows is a block's:
 * as many as it needs are below the next one's. So blocks of any size are found without sums of their
 * numbers; at most one number a sequence is spare.
 */
#pragma once

#include "attn.h"

#if defined(__CUDACC__)
#define LENGTHS_FUNCTION static __host__ __device__ inline
#else
#define LENGTHS_FUNCTION static inline
#endif

enum lengths_side {
    LENGTHS_QUERIES,
    LENGTHS_KEYS,
};

/* A side's part of the copy: where sequences start, the last one's end behind that, and how many of
 * their rows count. */
struct lengths_snapshot {
    int32_t *start;  /* batch + 1; of a packed side */
    int32_t *length; /* batch; of a packed side, and of keys with lengths of their own */
};

struct lengths_sequence {
    int64_t first;  /* its first row in a packed tensor, else 0 */
    int64_t batch;  /* for batch strides: 0 on a packed side */
    int32_t length; /* rows that count */
    int32_t extent; /* rows of it that outputs have: not less than length */
};

/* A block of rows: of which sequence, and which. */
struct lengths_place {
    int32_t batch; /* -1: none, the block is spare */
    int32_t row;   /* the block's first, in its sequence */
};

/* a / b of numbers that are not negative: long divisions take a device a microsecond. */
LENGTHS_FUNCTION int64_t lengths_quotient(int64_t a, int64_t b)
{
    return ((uint64_t)(a | b) >> 32) == 0 ? (int64_t)((uint32_t)a / (uint32_t)b) : a / b;
}

/* NULL: not packed. */
LENGTHS_FUNCTION const int32_t *lengths_offsets(
    const struct attn_problem *problem, enum lengths_side side)
{
    return side == LENGTHS_QUERIES ? problem->lengths.cu_seqlens_q : problem->lengths.cu_seqlens_k;
}

LENGTHS_FUNCTION bool lengths_packed(const struct attn_problem *problem, enum lengths_side side)
{
    return lengths_offsets(problem, side) != NULL;
}

/* Whether there is anything to copy. */
LENGTHS_FUNCTION bool lengths_given(const struct attn_problem *problem)
{
    return lengths_packed(problem, LENGTHS_QUERIES) || lengths_packed(problem, LENGTHS_KEYS) ||
           problem->lengths.seqlens_k != NULL;
}

LENGTHS_FUNCTION int64_t lengths_longest(const struct attn_problem *problem, enum lengths_side side)
{
    return side == LENGTHS_QUERIES ? problem->seqlen_q : problem->seqlen_k;
}

/* Rows of the side's tensors per element of their batch dimension; of all if it is packed. */
LENGTHS_FUNCTION int64_t lengths_rows(const struct attn_problem *problem, enum lengths_side side)
{
    if (!lengths_packed(problem, side)) {
        return lengths_longest(problem, side);
    }
    return side == LENGTHS_QUERIES ? problem->lengths.total_q : problem->lengths.total_k;
}

/* What the copy takes in front of the workspace, a multiple of 64. */
LENGTHS_FUNCTION size_t lengths_bytes(const struct attn_problem *problem)
{
    size_t elements = 2 * (2 * (size_t)problem->batch + 1);

    return lengths_given(problem) ? (elements * sizeof(int32_t) + 63) / 64 * 64 : 0;
}

LENGTHS_FUNCTION struct lengths_snapshot lengths_snapshot_of(
    const struct attn_problem *problem, const char *workspace, enum lengths_side side)
{
    int64_t batch = problem->batch;
    struct lengths_snapshot snapshot;

    snapshot.start = (int32_t *)(uintptr_t)workspace;
    snapshot.start += side == LENGTHS_KEYS ? 2 * batch + 1 : 0;
    snapshot.length = snapshot.start + batch + 1;
    return snapshot;
}

LENGTHS_FUNCTION struct lengths_sequence lengths_sequence_of(const struct attn_problem *problem,
    const char *workspace, enum lengths_side side, int32_t batch)
{
    struct lengths_snapshot snapshot = lengths_snapshot_of(problem, workspace, side);
    struct lengths_sequence sequence;

    if (lengths_packed(problem, side)) {
        sequence.first = snapshot.start[batch];
        sequence.batch = 0;
        sequence.length = snapshot.length[batch];
        sequence.extent = sequence.length;
        return sequence;
    }
    bool shortened = side == LENGTHS_KEYS && problem->lengths.seqlens_k != NULL;
    sequence.first = 0;
    sequence.batch = batch;
    sequence.extent = (int32_t)lengths_longest(problem, side);
    sequence.length = shortened ? snapshot.length[batch] : sequence.extent;
    return sequence;
}

/* Blocks of the longest sequence. */
LENGTHS_FUNCTION int64_t lengths_blocks_each(
    const struct attn_problem *problem, enum lengths_side side, int64_t rows)
{
    return (lengths_longest(problem, side) + rows - 1) / rows;
}

/* Whether blocks are found by the sequences' starts, because that makes less of them than as many for
 * each sequence as for the longest. */
LENGTHS_FUNCTION bool lengths_searched(
    const struct attn_problem *problem, enum lengths_side side, int64_t rows)
{
    int64_t batch = problem->batch;

    return lengths_packed(problem, side) && lengths_rows(problem, side) / rows + batch <
                                                lengths_blocks_each(problem, side, rows) * batch;
}

/* Numbers of blocks of all sequences, for one head. */
LENGTHS_FUNCTION int64_t lengths_blocks(
    const struct attn_problem *problem, enum lengths_side side, int64_t rows)
{
    int64_t batch = problem->batch;

    return lengths_searched(problem, side, rows) ? lengths_rows(problem, side) / rows + batch
                                                 : lengths_blocks_each(problem, side, rows) * batch;
}

/* The last sequence whose numbers begin at or before the block's; -1: none. A sequence's first row is
 * a block of rows 1 that begins with it. */
LENGTHS_FUNCTION int32_t lengths_search(
    const int32_t *start, int32_t batch, int64_t rows, int64_t scale, int64_t block)
{
    int32_t low = -1;
    int32_t high = batch;

    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        if (start[middle] / rows + scale * middle <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

LENGTHS_FUNCTION struct lengths_place lengths_place_of(const struct attn_problem *problem,
    const char *workspace, enum lengths_side side, int64_t rows, int64_t block)
{
    struct lengths_place place;
    int64_t number;

    if (lengths_searched(problem, side, rows)) {
        const int32_t *start = lengths_snapshot_of(problem, workspace, side).start;
        place.batch = lengths_search(start, problem->batch, rows, 1, block);
        number = place.batch < 0 ? 0 : block - (start[place.batch] / rows + place.batch);
    } else {
        int64_t each = lengths_blocks_each(problem, side, rows);
        place.batch = (int32_t)lengths_quotient(block, each);
        number = block - place.batch * each;
    }
    place.row = (int32_t)(number * rows);
    if (place.batch >= 0 &&
        number * rows >= lengths_sequence_of(problem, workspace, side, place.batch).extent) {
        place.batch = -1;
    }
    return place;
}

/* Whether a row of a packed side's tensors is of no sequence. */
LENGTHS_FUNCTION bool lengths_padding(
    const struct attn_problem *problem, const char *workspace, enum lengths_side side, int64_t row)
{
    struct lengths_snapshot snapshot = lengths_snapshot_of(problem, workspace, side);
    int32_t batch = lengths_search(snapshot.start, problem->batch, 1, 0, row);

    return batch < 0 || row >= (int64_t)snapshot.start[batch] + snapshot.length[batch];
}

/*
 * What a block of the forward kernel has to do, and how it shares that and its memory out.
 */
#pragma once

#include "forward_bias.cuh"

#include "device/group.cuh"
#include "device/lengths.h"
#include "device/score.cuh"
#include "device/tile.cuh"

/* A block's part of a problem. It is in shared memory, from where parts of it are read when they are
 * needed: accumulators leave no registers for it. */
struct forward_block {
    const struct attn_problem *problem;
    struct lengths_sequence queries;
    int32_t head;
    int32_t row; /* first query; -1: nothing to do */
    int32_t first_step;
    int32_t last_step; /* less than the first: no key is seen */
    struct score_head score;
    struct tile_rows q; /* from the first query on */
    struct tile_rows k;
    struct tile_rows v;
    const char *bias; /* of the first query, on its way through shared memory; else NULL */
};

/* Sizes depend on the kernel alone, so that a result's bits do not depend on what it is launched with. */
template <int Width, enum score_kind Kind>
struct forward_shape {
    static const bool plain = Kind == SCORE_PLAIN;
    static const int warps = Width == 256 && !plain ? 8 : 4; /* of 16 rows or 32 */
    static const int threads = 32 * warps;
    static const int blocks = warps == 4 ? 2 : 1; /* of a multiprocessor, at least */
    static const int rows = Width > 128 && warps == 4 ? 64 : 128;
    /* As many as leave no register short; of 32 columns fewer, for more blocks of a multiprocessor. */
    static const int narrow = Width == 32    ? 32
                              : Width == 128 ? 48
                                             : 64;
    static const int keys = !plain         ? narrow
                            : Width <= 64  ? 128
                            : Width == 256 ? 48
                                           : 64;
    static const int m = rows / warps / 16; /* accumulator fragments of a warp */
    static const int n = keys / 8;
    static const int d = Width / 8;
    typedef struct tile<rows, Width>
        queries;
    typedef struct tile<keys, Width>
        places;
    typedef typename forward_bias<rows, keys>::place biases;    /* of a step; PLAIN has none */
    static const int bias = queries::bytes + 2 * places::bytes; /* where it begins */
    static const int sums = bias + (plain ? 0 : biases::bytes); /* where they begin */
    /* 0: registers have room for them; shared memory has, for two blocks of an A100, none. */
    static const int sums_bytes = (rows < 128 ? 0 : 2 * m * threads) * (int)sizeof(float);
    static const int block = sums + sums_bytes;
    static const int shared_bytes = block + (int)sizeof(struct forward_block);
};

/* Which keys' steps the block makes, and where its tensors are. */
PTX_FUNCTION void forward_block_fill(struct forward_block &block, int32_t batch, int32_t rows,
    int32_t keys_of_step, struct lengths_sequence keys)
{
    const struct attn_problem &problem = *block.problem;
    struct lengths_sequence queries = block.queries;
    int32_t left = queries.length - block.row;
    int32_t last = block.row + (left < rows ? left : rows) - 1;
    int32_t head_kv = block.head / (problem.heads_q / problem.heads_kv);
    block.score = score_head_of(problem, batch, block.head, queries.length, keys.length);
    block.first_step = score_first_key(block.score, block.row) / keys_of_step;
    block.last_step = (score_end_key(block.score, last) + keys_of_step - 1) / keys_of_step - 1;
    block.q = tile_rows_of(
        problem.q, queries.batch, queries.first + block.row, block.head, left, problem.head_dim_qk);
    block.k =
        tile_rows_of(problem.k, keys.batch, keys.first, head_kv, keys.length, problem.head_dim_qk);
    block.v =
        tile_rows_of(problem.v, keys.batch, keys.first, head_kv, keys.length, problem.head_dim_v);
    block.bias = forward_bias_of(block.score, block.row);
}

/* Tiles of a problem: all blocks of rows of a kv head, and for each of them the heads that share it, so
 * that neighbours read the same keys. Within a sequence the last rows, which see the most, come first. */
PTX_FUNCTION void forward_block_init(struct forward_block &block, const struct device_place &place,
    int32_t rows, int32_t keys_of_step)
{
    const struct attn_problem *problem = &place.item->problem;
    const char *workspace = place.item->workspace;
    int64_t blocks = lengths_blocks(problem, LENGTHS_QUERIES, rows);
    int32_t shared_by = problem->heads_q / problem->heads_kv;
    int64_t number = lengths_quotient((int64_t)place.tile, shared_by);
    int64_t head_kv = lengths_quotient(number, blocks);
    struct lengths_place at =
        lengths_place_of(problem, workspace, LENGTHS_QUERIES, rows, number - head_kv * blocks);
    block.row = -1;
    if (at.batch >= 0) {
        block.problem = problem;
        block.queries = lengths_sequence_of(problem, workspace, LENGTHS_QUERIES, at.batch);
        block.head = (int32_t)(head_kv * shared_by + (int64_t)place.tile - number * shared_by);
        block.row = (block.queries.length - 1) / rows * rows - at.row;
        forward_block_fill(block, at.batch, rows, keys_of_step,
            lengths_sequence_of(problem, workspace, LENGTHS_KEYS, at.batch));
    }
}

/*
 * Clears what no sequence of packed tensors has: rows of outputs become 0, and lse -inf.
 */
#include "sm80.h"

#include "device/group.cuh"
#include "device/lengths.h"

#define THREADS 128
#define ROWS 64 /* of a tile; a warp looks at one at a time */

/* Row `row` of all heads of an output of 16-bit elements. */
PTX_FUNCTION void clear_row(
    const struct attn_view &view, int32_t heads, int32_t columns, int64_t row)
{
    for (int32_t head = 0; head < heads; head++) {
        uint16_t *element = (uint16_t *)view.data + view.row_stride * row + view.head_stride * head;
        for (int32_t i = (int32_t)(ptx_thread() % 32); i < columns; i += 32) {
            element[i] = 0;
        }
    }
}

PTX_FUNCTION void clear_lse(const struct attn_view &lse, int32_t heads, int64_t row)
{
    for (int32_t head = (int32_t)(ptx_thread() % 32); head < heads; head += 32) {
        ((float *)lse.data)[lse.row_stride * row + lse.head_stride * head] =
            ptx_float_of_bits(0xff800000U);
    }
}

/* The rows of the block's tile that this warp looks at, one after another. */
#define PADDING_ROWS(row, tile, all)                             \
    for (int64_t row = (int64_t)(tile)*ROWS + ptx_thread() / 32; \
         row < ((int64_t)(tile) + 1) * ROWS && row < (all); row += THREADS / 32)

static __global__ void __launch_bounds__(THREADS)
    padding_forward(const __grid_constant__ struct device_group group)
{
    struct device_place place = device_place_of(group, ptx_block());
    const struct attn_problem &problem = place.item->problem;
    PADDING_ROWS(row, place.tile, problem.lengths.total_q)
    {
        if (lengths_padding(&problem, place.item->workspace, LENGTHS_QUERIES, row)) {
            clear_row(problem.out, problem.heads_q, problem.head_dim_v, row);
            if (problem.lse.data != NULL) {
                clear_lse(problem.lse, problem.heads_q, row);
            }
        }
    }
}

/* Tiles of queries first, if they are packed, then those of keys. */
static __global__ void __launch_bounds__(THREADS)
    padding_backward(const __grid_constant__ struct device_group group)
{
    struct device_place place = device_place_of(group, ptx_block());
    const struct attn_problem &problem = place.item->problem;
    bool packed = lengths_packed(&problem, LENGTHS_QUERIES);
    uint64_t tiles = packed ? (uint64_t)(problem.lengths.total_q + ROWS - 1) / ROWS : 0;
    if (place.tile < tiles) {
        PADDING_ROWS(row, place.tile, problem.lengths.total_q)
        {
            if (lengths_padding(&problem, place.item->workspace, LENGTHS_QUERIES, row)) {
                clear_row(problem.dq, problem.heads_q, problem.head_dim_qk, row);
            }
        }
        return;
    }
    PADDING_ROWS(row, place.tile - tiles, problem.lengths.total_k)
    {
        if (lengths_padding(&problem, place.item->workspace, LENGTHS_KEYS, row)) {
            clear_row(problem.dk, problem.heads_kv, problem.head_dim_qk, row);
            clear_row(problem.dv, problem.heads_kv, problem.head_dim_v, row);
        }
    }
}

extern "C" const struct sm80_kernel sm80_padding_forward = {
    (const void *)padding_forward, THREADS, 0, ROWS, 0};
extern "C" const struct sm80_kernel sm80_padding_backward = {
    (const void *)padding_backward, THREADS, 0, ROWS, 0};

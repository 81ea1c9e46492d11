/*
 * The stage of the backward pass that makes dq of its fp32 sums, where these are. The sums lie as the
 * fragments that were added: here a thread has eight columns of a row.
 */
#include "sm80.h"

#include "backward_parts.cuh"

#define CONVERT_THREADS 256

/* Columns of a row, from the sums of a group's columns: element e of lane l is number 32 e + l. */
template <bool Bf16>
PTX_FUNCTION struct ptx_words4 convert_columns(const float *sums, int row, float scale)
{
    int at = row / 8 * 64 + row % 8 * 4;
    struct ptx_words4 even = ptx_load_16(sums + at);
    struct ptx_words4 odd = ptx_load_16(sums + at + 32);
    struct ptx_words4 words;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        words.word[i] = backward_pack<Bf16>(
            ptx_float_of_bits(even.word[i]) * scale, ptx_float_of_bits(odd.word[i]) * scale);
    }
    return words;
}

PTX_FUNCTION void convert_store(
    const struct tile_rows &to, int row, int column, struct ptx_words4 words)
{
    char *target = to.first + (row * to.stride + column) * 2;

    if (to.aligned && column + 8 <= to.columns) {
        ptx_store_16(target, words);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (column + i < to.columns) {
            ((uint16_t *)target)[i] = (uint16_t)(words.word[i / 2] >> 16 * (i % 2));
        }
    }
}

/* A warp has eight rows and four times eight columns at a time: what it reads and writes of each is
 * side by side. */
template <bool Bf16>
static __global__ void __launch_bounds__(CONVERT_THREADS)
    backward_convert(const __grid_constant__ struct device_group group)
{
    struct device_place tile = device_place_of(group, ptx_block());
    const struct device_item &item = *tile.item;
    const struct attn_problem &problem = item.problem;
    struct backward_place place = backward_place_of(item, tile.tile);
    if (place.batch < 0) {
        return;
    }
    struct tile_rows to = backward_rows(problem.dq, place.queries, place.head, place.row,
        place.queries.length, problem.head_dim_qk);
    int width = backward_width(&problem);
    const float *sums =
        backward_dq_sums(item, place.queries, place.batch, place.head) + (int64_t)place.row * width;
    float scale = problem.scale * backward_kept_scale(problem);
    int thread = (int)ptx_thread();
    int lane = thread % 32;

    for (int i = thread / 32; i < BACKWARD_ROWS / 8 * (width / 32); i += CONVERT_THREADS / 32) {
        int row = i / (width / 32) * 8 + lane % 8;
        int column = i % (width / 32) * 32 + lane / 8 * 8;
        if (row < to.rows && column < to.columns) {
            const float *from = sums + row / 16 * (16 * width) + column * 16;
            convert_store(to, row, column, convert_columns<Bf16>(from, row % 16, scale));
        }
    }
}

extern "C" const struct sm80_kernel sm80_backward_convert[2] = {
    {(const void *)backward_convert<false>, CONVERT_THREADS, 0, BACKWARD_ROWS, 0},
    {(const void *)backward_convert<true>, CONVERT_THREADS, 0, BACKWARD_ROWS, 0},
};

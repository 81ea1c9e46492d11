/*
 * What the stage that owns keys makes of the gradient of a bias: a matrix's elements where each is one of
 * ds, and the sums of ds by key, of which a vector of keys has its gradient.
 */
#pragma once

#include "backward_columns_walk.cuh"

/* -- sums by key --------------------------------------------------------------------------------- */

/* Sums values over the lanes whose numbers have the same remainder by 4: the i-th of these gets that of
 * value i. */
PTX_FUNCTION float columns_sum_rows(float (&value)[8])
{
    int lane = (int)(ptx_opaque(ptx_thread()) & 31);
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
        bool upper = (lane & 4 * half) != 0;
#pragma unroll
        for (int i = 0; i < half; i++) {
            float sent = upper ? value[i] : value[i + half];
            float kept = upper ? value[i + half] : value[i];
            value[i] = kept + ptx_shuffle_xor(sent, (uint32_t)(4 * half));
        }
    }
    return value[0];
}

/* Adds a step's ds to the sums of its keys: a thread has one of them, of a part of the queries. */
template <class Shape>
PTX_FUNCTION void columns_add_sums(
    const float (&ds)[Shape::score_m][Shape::score_n][4], char *shared)
{
    static_assert(Shape::score_n == 4, "a warp has as many keys as threads");
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        value[i] = 0.0F;
#pragma unroll
        for (int m = 0; m < Shape::score_m; m++) {
            value[i] += ds[m][i / 2][i % 2] + ds[m][i / 2][i % 2 + 2];
        }
    }
    int lane = (int)(ptx_opaque(ptx_thread()) & 31);
    int key = lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2; /* of the warp's */
    float *sums = (float *)(void *)(shared + Shape::sums) + columns_warp() * 32;
    sums[key] += columns_sum_rows(value);
}

/* Leaves a head's sums for another stage, and clears them. */
template <class Shape>
PTX_FUNCTION void columns_store_sums(const struct columns_walk &walk, int32_t head, char *shared)
{
    int key = (int)ptx_opaque(ptx_thread());
    if (key >= Shape::keys) {
        return;
    }
    float *sums =
        (float *)(void *)(shared + Shape::sums) + key / 32 * (Shape::score_warps * 32) + key % 32;
    float sum = 0.0F;
#pragma unroll
    for (int warp = 0; warp < Shape::score_warps; warp++) {
        sum += sums[warp * 32];
        sums[warp * 32] = 0.0F;
    }
    if (walk.key + key < walk.keys.length) {
        walk.sums[walk.sums_head * head + key] = sum * walk.score.kept_scale;
    }
}

/* Clears the sums, and leaves those of keys that nobody sees. */
template <class Shape>
PTX_FUNCTION void columns_begin_sums(const struct columns_walk &walk, char *shared)
{
    ((float *)(void *)(shared + Shape::sums))[ptx_thread()] = 0.0F;
    if (walk.row >= walk.end) {
        ptx_barrier();
        for (int32_t head = 0; head < walk.heads; head++) {
            columns_store_sums<Shape>(walk, head, shared);
        }
    }
}

/* -- a matrix ------------------------------------------------------------------------------------ */

/* The block's columns of a head's dbias, from a query on; as many as there are keys. */
PTX_FUNCTION struct tile_rows columns_dbias_rows(
    const struct columns_walk &walk, int32_t head, int32_t row)
{
    struct tile_rows rows;
    rows.first = walk.dbias + (walk.dbias_head * head + walk.dbias_row * row) * 2;
    rows.stride = walk.dbias_row;
    rows.rows = walk.queries.extent - row;
    rows.columns = walk.keys.length - walk.key;
    rows.aligned = (uintptr_t)rows.first % 16 == 0 && walk.dbias_row % 8 == 0;
    return rows;
}

/* A step's ds, without many registers: they are all taken. */
template <class Shape>
PTX_FUNCTION void columns_store_dbias(
    const struct columns_walk &walk, struct columns_step step, const char *shared)
{
    typedef struct tile<Shape::queries, Shape::keys> place;
    struct tile_rows to = columns_dbias_rows(walk, step.head, step.row);
#pragma unroll 1
    for (int i = (int)ptx_thread(); i < Shape::queries * Shape::keys / 8; i += Shape::threads) {
        int row = i / (Shape::keys / 8);
        int column = i % (Shape::keys / 8) * 8;
        const char *from = shared + place::offset(row, column);
        char *target = to.first + (row * to.stride + column) * 2;
        if (row < to.rows && to.aligned && column + 8 <= to.columns) {
            ptx_store_16(target, ptx_load_16(from));
            continue;
        }
#pragma unroll 1
        for (int c = 0; c < 8 && row < to.rows && column + c < to.columns; c++) {
            ((uint16_t *)target)[c] = ((const uint16_t *)from)[c];
        }
    }
}

/* Sets what no step writes to 0: rows before and behind the walk, and columns beyond the length. */
template <class Shape>
PTX_FUNCTION void columns_clear_dbias(const struct columns_walk &walk)
{
    int column = (int)ptx_thread() % Shape::keys;
    bool walked = walk.row < walk.end && column < walk.keys.length - walk.key;
    int32_t first = walked ? walk.row : 0;
    int32_t end =
        walked ? first + (walk.end - first + Shape::queries - 1) / Shape::queries * Shape::queries
               : 0;
    for (int32_t head = 0; head < walk.heads; head++) {
        struct tile_rows rows = columns_dbias_rows(walk, head, 0);
        int32_t columns = walk.keys.extent - walk.key;
        int32_t row = (int)ptx_thread() / Shape::keys;
        for (; row < rows.rows && column < columns; row += Shape::threads / Shape::keys) {
            row = row >= first && row < end ? end + (row - first) % (Shape::threads / Shape::keys)
                                            : row;
            if (row < rows.rows) {
                ((uint16_t *)rows.first)[row * rows.stride + column] = 0;
            }
        }
    }
}

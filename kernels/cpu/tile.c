#include "tile.h"

#include "lengths.h"

#include <string.h>

static int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The first of a packed side's blocks that belong to a sequence: leaves room for every sequence
 * before it to end with a block that is not full, and block 0 on for rows before all of them. */
static int64_t first_block(const struct tile_work *work, enum tile_side side, int64_t batch)
{
    if (batch < 0) {
        return 0;
    }
    return lengths_sequence(work, side, batch).start / TILE_LANES_MAX + batch + 1;
}

/* The last sequence whose blocks begin at or before a block. */
static int64_t batch_of_block(const struct tile_work *work, enum tile_side side, int64_t block)
{
    int64_t low = -1;
    int64_t high = work->problem->batch - 1;

    while (low < high) {
        int64_t middle = high - (high - low) / 2;
        if (first_block(work, side, middle) <= block) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static int64_t blocks_per_head(const struct attn_problem *problem, enum tile_side side)
{
    int64_t blocks = tile_blocks(lengths_rows(problem, side));

    return lengths_packed(problem, side) ? blocks + problem->batch + 1 : blocks;
}

int64_t tile_blocks(int64_t length)
{
    return length / TILE_LANES_MAX + (length % TILE_LANES_MAX != 0);
}

uint64_t tile_count(const struct attn_problem *problem, enum tile_side side, int32_t heads)
{
    uint64_t batch = lengths_packed(problem, side) ? 1 : (uint64_t)problem->batch;

    return batch * (uint64_t)heads * (uint64_t)blocks_per_head(problem, side);
}

struct tile_place tile_place(
    const struct tile_work *work, enum tile_side side, int32_t heads, uint64_t index)
{
    int64_t blocks = blocks_per_head(work->problem, side);
    int64_t outer = (int64_t)index / blocks;
    int64_t block = (int64_t)index % blocks;
    struct tile_place place = {.batch = outer / heads, .head = outer % heads};

    block = side == TILE_QUERIES ? blocks - 1 - block : block;
    if (lengths_packed(work->problem, side)) {
        place.batch = batch_of_block(work, side, block);
        block -= first_block(work, side, place.batch);
    }
    place.sequence = lengths_sequence(work, side, place.batch);
    place.first = block * TILE_LANES_MAX;
    int64_t all = max(min(TILE_LANES_MAX, place.sequence.extent - place.first), 0);
    int64_t rows = max(min(all, place.sequence.length - place.first), 0);
    place.rows = (size_t)rows;
    place.padding = (size_t)(all - rows);
    return place;
}

struct tile_place tile_block(struct tile_place place, int64_t first, int64_t end)
{
    place.first = first;
    place.rows = (size_t)min(TILE_WALK_MAX, end - first);
    return place;
}

/* Windows wider than both sequences together hide nothing; cutting them keeps the sums in range. */
struct tile_band tile_band(
    const struct attn_problem *problem, enum tile_side lanes, int64_t queries, int64_t keys)
{
    int64_t widest = queries + keys;
    int64_t left = problem->window_left == ATTN_UNBOUNDED ? widest : problem->window_left;
    int64_t right = problem->window_right == ATTN_UNBOUNDED ? widest : problem->window_right;
    int64_t offset = problem->alignment == ATTN_BOTTOM_RIGHT ? keys - queries : 0;
    int64_t low = offset - min(left, widest);
    int64_t high = offset + min(right, widest);

    return lanes == TILE_KEYS ? (struct tile_band){.low = low, .high = high}
                              : (struct tile_band){.low = -high, .high = -low};
}

struct tile_span tile_walk(struct tile_band band, const struct tile_place *place, int64_t length)
{
    int64_t begin = place->first - band.high;
    int64_t end = place->first + (int64_t)place->rows - band.low;

    begin = max(begin, 0) / SIMD_UNIT * SIMD_UNIT;
    return (struct tile_span){.begin = begin, .end = max(begin, min(end, length))};
}

bool tile_scores(struct tile_band band, int64_t lane, const struct tile_place *block, float scale,
    struct simd_scores *scores)
{
    const int64_t last_lane = SIMD_PANEL - 1;
    int64_t low = band.low - (lane - block->first);
    int64_t high = band.high - (lane - block->first);
    int64_t first = max(-high, 0) / SIMD_UNIT * SIMD_UNIT;
    int64_t rows = min(last_lane - low + 1, (int64_t)block->rows) - first;

    if (rows <= 0) {
        return false;
    }
    low += first;
    high += first;
    *scores = (struct simd_scores){
        .first = (size_t)first,
        .rows = (size_t)rows,
        .scale = scale,
        .masked = low > 1 - rows || high < last_lane,
        .low = (int32_t)max(low, -rows),
        .high = (int32_t)min(high, last_lane),
    };
    return true;
}

struct simd_matrix tile_matrix(const struct attn_problem *problem, const struct attn_view *view,
    const struct tile_place *place, size_t width)
{
    int64_t row = place->sequence.start + place->first;
    int64_t offset = view->batch_stride * place->sequence.batch + view->head_stride * place->head +
                     view->row_stride * row;
    int64_t bytes = problem->dtype == ATTN_FP32 ? 4 : 2;

    return (struct simd_matrix){
        .data = (char *)view->data + offset * bytes,
        .dtype = problem->dtype,
        .stride = view->row_stride,
        .rows = place->rows,
        .width = width,
    };
}

void tile_prefetch(const struct simd_matrix *matrix)
{
    const uintptr_t line = 64;
    uintptr_t element = matrix->dtype == ATTN_FP32 ? 4 : 2;
    uintptr_t row = (uintptr_t)matrix->data;

    for (size_t i = 0; i < matrix->rows; i++) {
        for (uintptr_t at = row; at < row + matrix->width * element; at += line) {
            __builtin_prefetch((const void *)at, 0, 2);
        }
        row += (uintptr_t)matrix->stride * element;
    }
}

void tile_load_block(const struct tile_work *work, float *block, const struct attn_view *view,
    const struct tile_place *place, int32_t width, int64_t end)
{
    int64_t next = place->first + (int64_t)place->rows;
    struct simd_matrix rows = tile_matrix(work->problem, view, place, (size_t)width);

    work->simd->load_block(block, &rows);
    if (next < end) {
        struct tile_place ahead = tile_block(*place, next, end);
        rows = tile_matrix(work->problem, view, &ahead, (size_t)width);
        tile_prefetch(&rows);
    }
}

void tile_clear(const struct tile_work *work, const struct attn_view *view,
    const struct tile_place *place, int32_t width)
{
    struct tile_place padding = *place;

    padding.first += (int64_t)place->rows;
    padding.rows = place->padding;
    struct simd_matrix rows = tile_matrix(work->problem, view, &padding, (size_t)width);
    size_t element = rows.dtype == ATTN_FP32 ? 4 : 2;
    for (size_t row = 0; row < rows.rows; row++) {
        memset((char *)rows.data + (int64_t)row * rows.stride * (int64_t)element, 0,
            rows.width * element);
    }
}

float *tile_scalar(const struct attn_view *view, const struct tile_place *place, int64_t row)
{
    return (float *)view->data + view->batch_stride * place->sequence.batch +
           view->head_stride * place->head +
           view->row_stride * (place->sequence.start + place->first + row);
}

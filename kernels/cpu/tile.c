#include "tile.h"

static int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t blocks(int64_t length)
{
    return length / TILE_LANES_MAX + (length % TILE_LANES_MAX != 0);
}

uint64_t tile_count(const struct attn_problem *problem, int32_t heads, int64_t length)
{
    return (uint64_t)problem->batch * (uint64_t)heads * (uint64_t)blocks(length);
}

struct tile_place tile_place(uint64_t index, int32_t heads, int64_t length, enum tile_order order)
{
    int64_t count = blocks(length);
    int64_t outer = (int64_t)index / count;
    int64_t block = (int64_t)index % count;
    int64_t first = (order == TILE_LAST_FIRST ? count - 1 - block : block) * TILE_LANES_MAX;

    return (struct tile_place){
        .batch = outer / heads,
        .head = outer % heads,
        .first = first,
        .rows = (size_t)min(TILE_LANES_MAX, length - first),
    };
}

struct tile_place tile_block(struct tile_place place, int64_t first, int64_t end)
{
    place.first = first;
    place.rows = (size_t)min(TILE_WALK_MAX, end - first);
    return place;
}

/* Windows wider than both sequences together hide nothing; cutting them keeps the sums in range. */
struct tile_band tile_band_of_keys(const struct attn_problem *problem)
{
    int64_t widest = problem->seqlen_q + problem->seqlen_k;
    int64_t left = problem->window_left == ATTN_UNBOUNDED ? widest : problem->window_left;
    int64_t right = problem->window_right == ATTN_UNBOUNDED ? widest : problem->window_right;
    int64_t offset =
        problem->alignment == ATTN_BOTTOM_RIGHT ? problem->seqlen_k - problem->seqlen_q : 0;

    return (struct tile_band){
        .low = offset - min(left, widest),
        .high = offset + min(right, widest),
    };
}

struct tile_band tile_band_of_queries(const struct attn_problem *problem)
{
    struct tile_band band = tile_band_of_keys(problem);

    return (struct tile_band){.low = -band.high, .high = -band.low};
}

struct tile_span tile_walk(struct tile_band band, const struct tile_place *place, int64_t length)
{
    int64_t begin = place->first - band.high;
    int64_t end = place->first + (int64_t)place->rows - band.low;

    begin = max(begin, 0);
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
    scores->first = (size_t)first;
    scores->rows = (size_t)rows;
    scores->scale = scale;
    scores->masked = low > 1 - rows || high < last_lane;
    scores->low = (int32_t)max(low, -rows);
    scores->high = (int32_t)min(high, last_lane);
    return true;
}

struct simd_matrix tile_matrix(const struct attn_problem *problem, const struct attn_view *view,
    const struct tile_place *place, size_t width)
{
    int64_t offset = view->batch_stride * place->batch + view->head_stride * place->head +
                     view->row_stride * place->first;
    int64_t bytes = problem->dtype == ATTN_FP32 ? 4 : 2;

    return (struct simd_matrix){
        .data = (char *)view->data + offset * bytes,
        .dtype = problem->dtype,
        .stride = view->row_stride,
        .rows = place->rows,
        .width = width,
    };
}

float *tile_scalar(const struct attn_view *view, const struct tile_place *place, int64_t row)
{
    return (float *)view->data + view->batch_stride * place->batch +
           view->head_stride * place->head + view->row_stride * (place->first + row);
}

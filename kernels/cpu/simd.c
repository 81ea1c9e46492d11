/*
 * Compiled several times; SIMD_TABLE is the name of the table that this pass defines.
 *
 * Matrix products are written with vector types, the rest as loops over SIMD_PANEL lanes that the
 * compiler vectorises. Comparisons are written so that a NaN stays a NaN.
 */
#include "simd.h"

#include "simd_math.h"

#include <float.h>
#include <math.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define PATCH_ROWS 8
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define PATCH_ROWS 4
#else
#define VECTOR_BYTES 16
#define PATCH_ROWS 4
#endif

/* Blocks that are turned over when lanes are packed: rows of SIDE elements in one vector. */
#if defined(__AVX2__)
#define SIDE 8
#define LOW_HALVES(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH_HALVES(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define SIDE 4
#define LOW_HALVES(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH_HALVES(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

#define VECTOR_LANES (VECTOR_BYTES / sizeof(float))
#define PATCH_VECTORS 2
#define PATCH_LANES (PATCH_VECTORS * VECTOR_LANES)

typedef float vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float side __attribute__((vector_size(SIDE * sizeof(float)), may_alias));

/* A patch of a product, held in registers while it grows. */
struct patch {
    vector sums[PATCH_ROWS][PATCH_VECTORS];
};

/* The strides of a are constants of the callers. */
static ALWAYS_INLINE void patch_multiply(struct patch *patch, const float *a, size_t row_stride,
    size_t depth_stride, const float *panel, size_t depth)
{
    *patch = (struct patch){0};
    for (size_t k = 0; k < depth; k++) {
        const vector *b = (const vector *)(panel + k * SIMD_PANEL);
        for (size_t r = 0; r < PATCH_ROWS; r++) {
            float scalar = a[r * row_stride + k * depth_stride];
            for (size_t v = 0; v < PATCH_VECTORS; v++) {
                patch->sums[r][v] += scalar * b[v];
            }
        }
    }
}

static ALWAYS_INLINE void patch_store(const struct patch *patch, float *products)
{
    for (size_t r = 0; r < PATCH_ROWS; r++) {
        vector *to = (vector *)(products + r * SIMD_PANEL);
        for (size_t v = 0; v < PATCH_VECTORS; v++) {
            to[v] = patch->sums[r][v];
        }
    }
}

static ALWAYS_INLINE void patch_add(const struct patch *patch, float *sums, const vector *factor)
{
    for (size_t r = 0; r < PATCH_ROWS; r++) {
        vector *to = (vector *)(sums + r * SIMD_PANEL);
        for (size_t v = 0; v < PATCH_VECTORS; v++) {
            to[v] = to[v] * factor[v] + patch->sums[r][v];
        }
    }
}

static void multiply(
    float *products, const float *block, const float *panel, size_t rows, size_t width)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane += PATCH_LANES) {
        for (size_t row = 0; row < rows; row += PATCH_ROWS) {
            struct patch patch;
            patch_multiply(&patch, block + row * width, width, 1, panel + lane, width);
            patch_store(&patch, products + row * SIMD_PANEL + lane);
        }
    }
}

static void accumulate(float *sums, const float *factor, const float *block, const float *weights,
    size_t rows, size_t width)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane += PATCH_LANES) {
        vector scale[PATCH_VECTORS];
        for (size_t v = 0; v < PATCH_VECTORS; v++) {
            vector one = (vector){0} + 1.0F;
            scale[v] = factor != NULL ? ((const vector *)(factor + lane))[v] : one;
        }
        for (size_t c = 0; c < width; c += PATCH_ROWS) {
            struct patch patch;
            patch_multiply(&patch, block + c, 1, width, weights + lane, rows);
            patch_add(&patch, sums + c * SIMD_PANEL + lane, scale);
        }
    }
}

static ALWAYS_INLINE void cap_row(const struct simd_scores *scores, size_t row, float *values)
{
    float inverse = 1.0F / scores->softcap;
    float *caps = scores->caps == NULL ? NULL : scores->caps + row * SIMD_PANEL;

    inverse = inverse > FLT_MAX ? FLT_MAX : inverse;
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        values[lane] = hyperbolic_tangent(values[lane] * inverse);
    }
    for (size_t lane = 0; caps != NULL && lane < SIMD_PANEL; lane++) {
        caps[lane] = 1.0F - values[lane] * values[lane];
    }
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        values[lane] *= scores->softcap;
    }
}

static ALWAYS_INLINE float distance(const struct simd_scores *scores, size_t row, int32_t lane)
{
    float first = (float)(scores->distance - (int64_t)row);

    return fabsf(first + (float)lane);
}

/* What few problems ask for, between the scale and the mask. */
static void shape_row(const struct simd_scores *scores, size_t row, float *restrict values)
{
    if (scores->softcap != 0) {
        cap_row(scores, row, values);
    }
    if (scores->row_bias != NULL) {
        float bias = scores->row_bias[row];
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            values[lane] += bias;
        }
    }
    if (scores->lane_bias != NULL) {
        const float *restrict bias = scores->lane_bias + row * scores->lane_bias_step;
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            values[lane] += bias[lane];
        }
    }
    if (scores->slope != 0) {
        for (int32_t lane = 0; lane < SIMD_PANEL; lane++) {
            values[lane] -= scores->slope * distance(scores, row, lane);
        }
    }
}

/* The one place where a product becomes a score. */
static ALWAYS_INLINE void score_row(
    const struct simd_scores *scores, size_t row, float *restrict values)
{
    int32_t low = scores->low + (int32_t)row;
    int32_t high = scores->high + (int32_t)row;

    for (int32_t lane = 0; lane < SIMD_PANEL; lane++) {
        values[lane] *= scores->scale;
    }
    if (scores->shaped) {
        shape_row(scores, row, values);
    }
    if (scores->masked) {
        for (int32_t lane = 0; lane < SIMD_PANEL; lane++) {
            values[lane] = ((lane >= low) & (lane <= high)) ? values[lane] : -INFINITY;
        }
    }
}

/* Clears bits: what is dropped is 0 whatever it was. */
static ALWAYS_INLINE void drop_row(
    const uint32_t *restrict keep, float scale, float *restrict values)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        values[lane] = float_of(bits_of(values[lane] * scale) & keep[lane]);
    }
}

static void softmax(
    const struct simd_scores *scores, float *restrict products, struct simd_softmax *restrict state)
{
    _Alignas(64) float top[SIMD_PANEL];
    _Alignas(64) float sum[SIMD_PANEL] = {0};

    memcpy(top, state->top, sizeof(top));
    for (size_t row = 0; row < scores->rows; row++) {
        float *values = products + row * SIMD_PANEL;
        score_row(scores, row, values);
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            top[lane] = values[lane] > top[lane] ? values[lane] : top[lane];
        }
    }
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        float before = state->top[lane];
        state->top[lane] = top[lane];
        /* A lane that has seen nothing: any finite base gives e^-inf = 0, -inf would give NaN. */
        top[lane] = top[lane] == -INFINITY ? 0.0F : top[lane];
        state->factor[lane] = exponential(before - top[lane]);
    }
    for (size_t row = 0; row < scores->rows; row++) {
        float *values = products + row * SIMD_PANEL;
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            values[lane] = exponential(values[lane] - top[lane]);
            sum[lane] += values[lane];
        }
    }
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        state->sum[lane] = state->sum[lane] * state->factor[lane] + sum[lane];
    }
    for (size_t row = 0; scores->keep != NULL && row < scores->rows; row++) {
        drop_row(scores->keep + row * SIMD_PANEL, 1, products + row * SIMD_PANEL);
    }
}

/* A probability of 0 stops whatever the other factor is: a query that sees nothing has gradient 0.
 * Clears bits because the compiler would make a branch of a choice, and no vectors. */
static ALWAYS_INLINE void gradient_row(const float *restrict lse, const float *restrict delta,
    float *restrict products, float *restrict gradients)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        float p = exponential(products[lane] - lse[lane]);
        float ds = p * (gradients[lane] - delta[lane]);
        products[lane] = p;
        gradients[lane] = float_of(bits_of(ds) & (p == 0.0F ? 0U : ~0U));
    }
}

static void gradient(const struct simd_scores *scores, const struct simd_stats *stats,
    float *restrict products, float *restrict gradients)
{
    _Alignas(64) float lse[SIMD_PANEL];
    _Alignas(64) float delta[SIMD_PANEL];

    memcpy(lse, stats->lse, stats->of_rows ? 0 : sizeof(lse));
    memcpy(delta, stats->delta, stats->of_rows ? 0 : sizeof(delta));
    for (size_t row = 0; row < scores->rows; row++) {
        float *p = products + row * SIMD_PANEL;
        float *ds = gradients + row * SIMD_PANEL;
        const uint32_t *keep = scores->keep == NULL ? NULL : scores->keep + row * SIMD_PANEL;
        for (size_t lane = 0; stats->of_rows && lane < SIMD_PANEL; lane++) {
            lse[lane] = stats->lse[scores->first + row];
            delta[lane] = stats->delta[scores->first + row];
        }
        score_row(scores, row, p);
        if (keep != NULL) {
            drop_row(keep, scores->kept_scale, ds);
        }
        gradient_row(lse, delta, p, ds);
        if (keep != NULL) {
            drop_row(keep, 1, p);
        }
    }
}

static void uncap(const struct simd_scores *scores, float *restrict gradients)
{
    const float *restrict caps = scores->caps;

    for (size_t i = 0; i < scores->rows * SIMD_PANEL; i++) {
        gradients[i] *= caps[i];
    }
}

static void sum_rows(float *restrict sums, const float *restrict gradients, size_t rows)
{
    for (size_t row = 0; row < rows; row++) {
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            sums[lane] += gradients[row * SIMD_PANEL + lane];
        }
    }
}

static void add_tile(
    float *restrict sums, const float *restrict gradients, size_t rows, size_t lanes)
{
    for (size_t row = 0; row < rows * SIMD_PANEL; row += SIMD_PANEL) {
        for (size_t lane = 0; lane < lanes; lane++) {
            sums[row + lane] += gradients[row + lane];
        }
    }
}

static void sum_distances(
    float *restrict sums, const struct simd_scores *scores, const float *restrict gradients)
{
    for (size_t row = 0; row < scores->rows; row++) {
        for (int32_t lane = 0; lane < SIMD_PANEL; lane++) {
            sums[lane] += gradients[row * SIMD_PANEL + (size_t)lane] * distance(scores, row, lane);
        }
    }
}

/* -- dropout -------------------------------------------------------------------------------- */

#define DRAWS 16   /* made at once */
#define PATTERN 16 /* positions of either side after which the numbers of values repeat */
#define HALF (PATTERN / 2)

struct draws {
    uint32_t query[DRAWS];
    uint32_t key[DRAWS];
    _Alignas(64) uint32_t word[4][DRAWS];
};

static void draw(struct draws *draws, struct philox_stream stream)
{
    for (size_t n = 0; n < DRAWS; n++) {
        struct philox_values made = philox_draw(stream, draws->query[n], draws->key[n]);
        draws->word[0][n] = made.word[0];
        draws->word[1][n] = made.word[1];
        draws->word[2][n] = made.word[2];
        draws->word[3][n] = made.word[3];
    }
}

/* Row `key` of a tile whose lanes are queries, from draws for all of these. */
static void keep_of_queries(
    uint32_t *restrict keep, const struct draws *draws, int64_t key, uint32_t threshold)
{
    uint32_t shift = key & 1 ? 16 : 0;
    size_t second = key >> 3 & 1;

    for (size_t lane = 0; lane < SIMD_PANEL; lane += HALF) {
        const uint32_t *word = draws->word[lane / HALF % 2 * 2 + second] + lane / PATTERN * HALF;
        for (size_t i = 0; i < HALF; i++) {
            keep[lane + i] = (word[i] >> shift & 0xffffU) >= threshold ? ~0U : 0U;
        }
    }
}

/* Row `query` of a tile whose lanes are keys, from the draws from `first` on. */
static void keep_of_keys(uint32_t *restrict keep, const struct draws *draws, size_t first,
    int64_t query, uint32_t threshold)
{
    const size_t pairs = HALF / 2;

    for (size_t lane = 0; lane < SIMD_PANEL; lane += HALF) {
        const uint32_t *word = draws->word[(query >> 3 & 1) * 2 + (int64_t)(lane / HALF % 2)] +
                               first + lane / PATTERN * pairs;
        for (size_t j = 0; j < pairs; j++) {
            keep[lane + 2 * j] = (word[j] & 0xffffU) >= threshold ? ~0U : 0U;
            keep[lane + 2 * j + 1] = word[j] >> 16 >= threshold ? ~0U : 0U;
        }
    }
}

/* All draws for rows `row`, row + 1, row + 8 and row + 9 of a tile. */
static void draw_rows(struct draws *draws, const struct simd_dropout *dropout, int64_t row)
{
    for (size_t n = 0; n < DRAWS; n++) {
        int64_t lane = dropout->lane;
        if (dropout->lanes_are_keys) {
            draws->query[n] = philox_query(row + (int64_t)(n / HALF));
            draws->key[n] = philox_key(lane) + (uint32_t)(n % HALF);
        } else {
            draws->query[n] = philox_query(lane) + (uint32_t)n;
            draws->key[n] = philox_key(row);
        }
    }
    draw(draws, dropout->stream);
}

static void draw_keep(uint32_t *keep, const struct simd_dropout *dropout, size_t rows)
{
    int64_t end = dropout->row + (int64_t)rows;
    int64_t pattern = dropout->row - dropout->row % PATTERN;
    struct draws draws;

    for (; pattern < end; pattern += PATTERN) {
        for (int64_t n = 0; n < PATTERN; n++) {
            int64_t row = pattern + n / 4 * 2 + n % 2 + n / 2 % 2 * HALF;
            if (n % 4 == 0) {
                draw_rows(&draws, dropout, row);
            }
            if (row < dropout->row || row >= end) {
                continue;
            }
            uint32_t *to = keep + (row - dropout->row) * SIMD_PANEL;
            if (dropout->lanes_are_keys) {
                keep_of_keys(to, &draws, (size_t)(row % 2) * HALF, row, dropout->threshold);
            } else {
                keep_of_queries(to, &draws, row, dropout->threshold);
            }
        }
    }
}

/* -- memory --------------------------------------------------------------------------------- */

static void load_row(float *restrict to, const struct simd_matrix *from, size_t row)
{
    int64_t start = (int64_t)row * from->stride;
    size_t width = from->width;

    if (from->dtype == ATTN_FP32) {
        memcpy(to, (const float *)from->data + start, width * sizeof(float));
    } else if (from->dtype == ATTN_BF16) {
        const uint16_t *restrict source = (const uint16_t *)from->data + start;
        for (size_t c = 0; c < width; c++) {
            to[c] = from_bf16(source[c]);
        }
    } else {
        const uint16_t *restrict source = (const uint16_t *)from->data + start;
        for (size_t c = 0; c < width; c++) {
            to[c] = from_fp16(source[c]);
        }
    }
}

static void store_row(const struct simd_matrix *to, size_t row, const float *restrict from)
{
    int64_t start = (int64_t)row * to->stride;
    size_t width = to->width;

    if (to->dtype == ATTN_FP32) {
        memcpy((float *)to->data + start, from, width * sizeof(float));
    } else if (to->dtype == ATTN_BF16) {
        uint16_t *restrict target = (uint16_t *)to->data + start;
        for (size_t c = 0; c < width; c++) {
            target[c] = to_bf16(from[c]);
        }
    } else {
        uint16_t *restrict target = (uint16_t *)to->data + start;
        for (size_t c = 0; c < width; c++) {
            target[c] = to_fp16(from[c]);
        }
    }
}

static void load_block(float *block, const struct simd_matrix *from)
{
    size_t width = simd_pad(from->width);
    size_t rows = simd_pad(from->rows);

    for (size_t row = 0; row < from->rows; row++) {
        float *to = block + row * width;
        load_row(to, from, row);
        memset(to + from->width, 0, (width - from->width) * sizeof(float));
    }
    memset(block + from->rows * width, 0, (rows - from->rows) * width * sizeof(float));
}

static void load_tile(float *tile, const struct simd_matrix *from)
{
    for (size_t row = 0; row < from->rows; row++) {
        load_row(tile + row * SIMD_PANEL, from, row);
    }
}

static void load_column(float *column, const struct simd_matrix *from)
{
    const struct simd_matrix whole = {
        .data = from->data, .dtype = from->dtype, .rows = 1, .width = from->rows};

    if (from->stride == 1) {
        load_row(column, &whole, 0);
        return;
    }
    for (size_t row = 0; row < from->rows; row++) {
        load_row(column + row, from, row);
    }
}

static void store_column(const struct simd_matrix *to, const float *column)
{
    for (size_t row = 0; row < to->rows; row++) {
        store_row(to, row, column + row);
    }
}

/* Turns SIDE x SIDE elements over: each round interleaves both halves of the rows. */
static ALWAYS_INLINE void transpose(side rows[SIDE])
{
    for (size_t width = 1; width < SIDE; width *= 2) {
        side mixed[SIDE];
        for (size_t i = 0; i < SIDE / 2; i++) {
            mixed[2 * i] = LOW_HALVES(rows[i], rows[i + SIDE / 2]);
            mixed[2 * i + 1] = HIGH_HALVES(rows[i], rows[i + SIDE / 2]);
        }
        memcpy(rows, mixed, sizeof(mixed));
    }
}

/* Where the lanes from `row` on begin in panels of `width`. */
static size_t lanes_at(size_t row, size_t width)
{
    return row / SIMD_PANEL * SIMD_PANEL * width + row % SIMD_PANEL;
}

static void load_panels(float *panels, const struct simd_matrix *from)
{
    size_t width = simd_pad(from->width);
    size_t end = (from->rows + SIMD_PANEL - 1) / SIMD_PANEL * SIMD_PANEL;
    _Alignas(64) float values[SIDE][ATTN_MAX_HEAD_DIM];

    for (size_t i = 0; i < SIDE; i++) {
        memset(values[i] + from->width, 0, (width - from->width) * sizeof(float));
    }
    for (size_t row = 0; row < end; row += SIDE) {
        float *to = panels + lanes_at(row, width);
        for (size_t i = 0; i < SIDE; i++) {
            if (row + i < from->rows) {
                load_row(values[i], from, row + i);
            } else {
                memset(values[i], 0, from->width * sizeof(float));
            }
        }
        for (size_t c = 0; c < width; c += SIDE) {
            side block[SIDE];
            for (size_t i = 0; i < SIDE; i++) {
                block[i] = *(const side *)(values[i] + c);
            }
            transpose(block);
            for (size_t i = 0; i < SIDE; i++) {
                *(side *)(to + (c + i) * SIMD_PANEL) = block[i];
            }
        }
    }
}

static void store_panels(const struct simd_matrix *to, const float *panels, const float *factor)
{
    size_t width = simd_pad(to->width);
    _Alignas(64) float values[SIDE][ATTN_MAX_HEAD_DIM];

    for (size_t row = 0; row < to->rows; row += SIDE) {
        const float *from = panels + lanes_at(row, width);
        for (size_t c = 0; c < to->width; c += SIDE) {
            side block[SIDE];
            for (size_t i = 0; i < SIDE; i++) {
                block[i] =
                    *(const side *)(from + (c + i) * SIMD_PANEL) * *(const side *)(factor + row);
            }
            transpose(block);
            for (size_t i = 0; i < SIDE; i++) {
                *(side *)(values[i] + c) = block[i];
            }
        }
        for (size_t i = 0; i < SIDE && row + i < to->rows; i++) {
            store_row(to, row + i, values[i]);
        }
    }
}

static void lane_dots(
    float *restrict dots, const float *restrict a, const float *restrict b, size_t width)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
        dots[lane] = 0;
    }
    for (size_t c = 0; c < width; c++) {
        for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
            dots[lane] += a[c * SIMD_PANEL + lane] * b[c * SIMD_PANEL + lane];
        }
    }
}

const struct simd SIMD_TABLE = {
    .multiply = multiply,
    .accumulate = accumulate,
    .softmax = softmax,
    .gradient = gradient,
    .uncap = uncap,
    .draw_keep = draw_keep,
    .sum_rows = sum_rows,
    .add_tile = add_tile,
    .sum_distances = sum_distances,
    .load_block = load_block,
    .load_panels = load_panels,
    .load_tile = load_tile,
    .load_column = load_column,
    .store_column = store_column,
    .store_panels = store_panels,
    .lane_dots = lane_dots,
};

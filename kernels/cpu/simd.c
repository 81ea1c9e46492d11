/*
 * Compiled several times; SIMD_TABLE is the name of the table that this pass defines.
 *
 * Matrix products are written with vector types, the rest as loops over SIMD_PANEL lanes that the
 * compiler vectorises. Comparisons are written so that a NaN stays a NaN.
 */
#include "simd.h"

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

#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float side __attribute__((vector_size(SIDE * sizeof(float)), may_alias));

static inline uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/*
 * e^x = 2^n * e^r within 1.1 ulp; below the smallest normal number 0, near the largest and above
 * inf. The polynomial for (e^r - 1 - r) / r^2 makes the largest relative error of e^r, 3.1e-9, as
 * small as its degree allows.
 */
static ALWAYS_INLINE float exponential(float x)
{
    const float low = -87.33F;
    const float high = 89.0F;
    const float rounder = 0x1.8p23F;     /* the last bit of such a number is worth 1 */
    const float ln2_head = 0x1.62e4p-1F; /* short: its product with n is exact */
    const float ln2_tail = 0x1.7f7d1cp-20F;
    float clamped = x < low ? low : x;
    float shifted;
    float n;
    float r;
    float y;

    clamped = clamped > high ? high : clamped;
    shifted = clamped * 0x1.715476p0F + rounder;
    n = shifted - rounder;
    r = clamped - n * ln2_head;
    r = r - n * ln2_tail;
    y = 0x1.6a23cap-10F;
    y = y * r + 0x1.123a22p-7F;
    y = y * r + 0x1.5558f4p-5F;
    y = y * r + 0x1.555492p-3F;
    y = y * r + 0x1.fffffcp-2F;
    y = y * (r * r) + r + 1.0F;
    y = y * float_of((bits_of(shifted) << 23) + 0x3f800000U);
    return x < low ? 0.0F : y;
}

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

/* The one place where a product becomes a score. */
static ALWAYS_INLINE void score_row(
    const struct simd_scores *scores, size_t row, float *restrict values)
{
    int32_t low = scores->low + (int32_t)row;
    int32_t high = scores->high + (int32_t)row;

    for (int32_t lane = 0; lane < SIMD_PANEL; lane++) {
        values[lane] *= scores->scale;
    }
    if (scores->masked) {
        for (int32_t lane = 0; lane < SIMD_PANEL; lane++) {
            values[lane] = ((lane >= low) & (lane <= high)) ? values[lane] : -INFINITY;
        }
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
        for (size_t lane = 0; stats->of_rows && lane < SIMD_PANEL; lane++) {
            lse[lane] = stats->lse[scores->first + row];
            delta[lane] = stats->delta[scores->first + row];
        }
        score_row(scores, row, products + row * SIMD_PANEL);
        gradient_row(lse, delta, products + row * SIMD_PANEL, gradients + row * SIMD_PANEL);
    }
}

static ALWAYS_INLINE float from_fp16(uint16_t half)
{
    uint32_t magnitude = half & 0x7fffU;
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16;
    uint32_t value = bits_of(float_of(magnitude << 13) * 0x1p112F);

    return float_of(sign | (magnitude >= 0x7c00U ? 0x7f800000U | magnitude << 13 : value));
}

/* To nearest, ties to even, in all three ranges; the addition of 0.5 rounds what becomes subnormal. */
static ALWAYS_INLINE uint16_t to_fp16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t sign = bits >> 16 & 0x8000U;
    uint32_t magnitude = bits & 0x7fffffffU;
    uint32_t normal = (magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1U)) >> 13;
    uint32_t small = bits_of(float_of(magnitude) + 0.5F) - 0x3f000000U;
    uint32_t large = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
    uint32_t half = magnitude < 0x38800000U ? small : normal;

    return (uint16_t)(sign | (magnitude >= 0x47800000U ? large : half));
}

static ALWAYS_INLINE uint16_t to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
    uint32_t nan = bits >> 16 | 0x40U;

    return (uint16_t)((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
}

static void load_row(float *restrict to, const struct simd_matrix *from, size_t row)
{
    int64_t start = (int64_t)row * from->stride;
    size_t width = from->width;

    if (from->dtype == ATTN_FP32) {
        memcpy(to, (const float *)from->data + start, width * sizeof(float));
    } else if (from->dtype == ATTN_BF16) {
        const uint16_t *restrict source = (const uint16_t *)from->data + start;
        for (size_t c = 0; c < width; c++) {
            to[c] = float_of((uint32_t)source[c] << 16);
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
    _Alignas(64) float values[SIDE][ATTN_MAX_HEAD_DIM] = {0};

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
    _Alignas(64) float values[SIDE][ATTN_MAX_HEAD_DIM] = {0};

    for (size_t row = 0; row < to->rows; row += SIDE) {
        const float *from = panels + lanes_at(row, width);
        for (size_t c = 0; c < width; c += SIDE) {
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
    .load_block = load_block,
    .load_panels = load_panels,
    .store_panels = store_panels,
    .lane_dots = lane_dots,
};

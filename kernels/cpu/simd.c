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
#define TILE_ROWS 8
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define TILE_ROWS 4
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 4
#endif
#define VECTOR_LANES (VECTOR_BYTES / sizeof(float))
#define TILE_VECTORS 2
#define TILE_LANES (TILE_VECTORS * VECTOR_LANES)

#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float octet __attribute__((vector_size(32), may_alias)); /* SIMD_UNIT elements */

extern const struct simd SIMD_TABLE;

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

/* e^x within 2 ulp; below the smallest normal number 0, above the largest inf. */
static ALWAYS_INLINE float exponential(float x)
{
    const float low = -87.33F;
    const float high = 89.0F;
    const float rounder = 12582912.0F; /* 1.5 * 2^23: its last mantissa bit is worth 1 */
    float clamped = x < low ? low : x;
    float shifted;
    float n;
    float r;
    float y;

    clamped = clamped > high ? high : clamped;
    shifted = clamped * 1.44269504F + rounder;
    n = shifted - rounder;
    r = clamped - n * 0.693359375F; /* ln 2 in two parts, the first short enough to be exact */
    r = r + n * 2.12194440e-4F;
    y = 1.9875691500e-4F;
    y = y * r + 1.3981999507e-3F;
    y = y * r + 8.3334519073e-3F;
    y = y * r + 4.1665795894e-2F;
    y = y * r + 1.6666665459e-1F;
    y = y * r + 5.0000001201e-1F;
    y = y * (r * r) + r + 1.0F;
    y = y * float_of((bits_of(shifted) << 23) + 0x3f800000U);
    return x < low ? 0.0F : y;
}

/* One tile of a product, TILE_ROWS x TILE_LANES, held in registers; a's strides are constants of the
 * callers. */
static ALWAYS_INLINE void tile_product(vector sums[TILE_ROWS][TILE_VECTORS], const float *a,
    size_t row_stride, size_t depth_stride, const float *panel, size_t depth)
{
    for (size_t r = 0; r < TILE_ROWS; r++) {
        for (size_t v = 0; v < TILE_VECTORS; v++) {
            sums[r][v] = (vector){0};
        }
    }
    for (size_t k = 0; k < depth; k++) {
        const vector *b = (const vector *)(panel + k * SIMD_PANEL);
        for (size_t r = 0; r < TILE_ROWS; r++) {
            float scalar = a[r * row_stride + k * depth_stride];
            for (size_t v = 0; v < TILE_VECTORS; v++) {
                sums[r][v] += scalar * b[v];
            }
        }
    }
}

static void multiply(
    float *products, const float *block, const float *panel, size_t rows, size_t width)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane += TILE_LANES) {
        for (size_t row = 0; row < rows; row += TILE_ROWS) {
            vector sums[TILE_ROWS][TILE_VECTORS];
            tile_product(sums, block + row * width, width, 1, panel + lane, width);
            for (size_t r = 0; r < TILE_ROWS; r++) {
                vector *to = (vector *)(products + (row + r) * SIMD_PANEL + lane);
                for (size_t v = 0; v < TILE_VECTORS; v++) {
                    to[v] = sums[r][v];
                }
            }
        }
    }
}

static void accumulate(float *sums, const float *factor, const float *block, const float *weights,
    size_t rows, size_t width)
{
    for (size_t lane = 0; lane < SIMD_PANEL; lane += TILE_LANES) {
        vector scale[TILE_VECTORS];
        for (size_t v = 0; v < TILE_VECTORS; v++) {
            vector one = (vector){0} + 1.0F;
            scale[v] = factor != NULL ? ((const vector *)(factor + lane))[v] : one;
        }
        for (size_t c = 0; c < width; c += TILE_ROWS) {
            vector part[TILE_ROWS][TILE_VECTORS];
            tile_product(part, block + c, 1, width, weights + lane, rows);
            for (size_t r = 0; r < TILE_ROWS; r++) {
                vector *to = (vector *)(sums + (c + r) * SIMD_PANEL + lane);
                for (size_t v = 0; v < TILE_VECTORS; v++) {
                    to[v] = to[v] * scale[v] + part[r][v];
                }
            }
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

/* A probability of 0 stops whatever the other factor is: a query that sees nothing has gradient 0. */
static ALWAYS_INLINE void gradient_element(float lse, float delta, float *value, float *gradient)
{
    float p = exponential(*value - lse);
    float ds = p * (*gradient - delta);

    *value = p;
    *gradient = p == 0.0F ? 0.0F : ds;
}

static void gradient(const struct simd_scores *scores, const struct simd_stats *stats,
    float *restrict products, float *restrict gradients)
{
    for (size_t row = 0; row < scores->rows; row++) {
        float *restrict p = products + row * SIMD_PANEL;
        float *restrict ds = gradients + row * SIMD_PANEL;
        score_row(scores, row, p);
        if (stats->of_rows) {
            float lse = stats->lse[scores->first + row];
            float delta = stats->delta[scores->first + row];
            for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
                gradient_element(lse, delta, p + lane, ds + lane);
            }
        } else {
            const float *restrict lse = stats->lse;
            const float *restrict delta = stats->delta;
            for (size_t lane = 0; lane < SIMD_PANEL; lane++) {
                gradient_element(lse[lane], delta[lane], p + lane, ds + lane);
            }
        }
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

/* Interleaving both halves of the rows three times turns 8 x 8 elements over. */
static ALWAYS_INLINE void transpose(octet rows[SIMD_UNIT])
{
    for (size_t round = 0; round < 3; round++) {
        octet mixed[SIMD_UNIT];
        for (size_t i = 0; i < 4; i++) {
            octet a = rows[i];
            octet b = rows[i + 4];
            mixed[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            mixed[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
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
    _Alignas(64) float values[SIMD_UNIT][ATTN_MAX_HEAD_DIM] = {0};

    for (size_t row = 0; row < end; row += SIMD_UNIT) {
        float *to = panels + lanes_at(row, width);
        for (size_t i = 0; i < SIMD_UNIT; i++) {
            if (row + i < from->rows) {
                load_row(values[i], from, row + i);
            } else {
                memset(values[i], 0, from->width * sizeof(float));
            }
        }
        for (size_t c = 0; c < width; c += SIMD_UNIT) {
            octet block[SIMD_UNIT];
            for (size_t i = 0; i < SIMD_UNIT; i++) {
                block[i] = *(const octet *)(values[i] + c);
            }
            transpose(block);
            for (size_t i = 0; i < SIMD_UNIT; i++) {
                *(octet *)(to + (c + i) * SIMD_PANEL) = block[i];
            }
        }
    }
}

static void store_panels(const struct simd_matrix *to, const float *panels, const float *factor)
{
    size_t width = simd_pad(to->width);
    _Alignas(64) float values[SIMD_UNIT][ATTN_MAX_HEAD_DIM];

    for (size_t row = 0; row < to->rows; row += SIMD_UNIT) {
        const float *from = panels + lanes_at(row, width);
        for (size_t c = 0; c < width; c += SIMD_UNIT) {
            octet block[SIMD_UNIT];
            for (size_t i = 0; i < SIMD_UNIT; i++) {
                block[i] =
                    *(const octet *)(from + (c + i) * SIMD_PANEL) * *(const octet *)(factor + row);
            }
            transpose(block);
            for (size_t i = 0; i < SIMD_UNIT; i++) {
                *(octet *)(values[i] + c) = block[i];
            }
        }
        for (size_t i = 0; i < SIMD_UNIT && row + i < to->rows; i++) {
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

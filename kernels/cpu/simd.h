/*
 * The inner loops of the cpu family, compiled once per level of the instruction set.
 *
 * They work on packed fp32 blocks. A tile owns lanes (queries or keys), along which everything is
 * vectorised, and walks the other side in blocks of rows. Lanes lie in panels: element (c, lane) of
 * a panel is at [c * SIMD_PANEL + lane]. Lanes never mix, so what fills unused ones does not matter.
 * Nothing here knows of heads, batches or which side is which.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attn.h"
#include "device/philox.h"

#define SIMD_PANEL 32 /* lanes of a panel: two vectors of the widest level */
#define SIMD_UNIT 8   /* packed rows and widths are multiples of this, filled up with zeros */

/* Rows of a tensor in the caller's memory. */
struct simd_matrix {
    void *data; /* of its first row */
    enum attn_dtype dtype;
    int64_t stride; /* from row to row, in elements */
    size_t rows;
    size_t width;
};

/*
 * How raw products become scores: rows [first, first + rows) of a packed block against one panel.
 * Products, gradients and all tiles here begin with that first row; tiles have SIMD_PANEL lanes.
 */
struct simd_scores {
    size_t first;
    size_t rows;
    float scale;
    bool masked; /* else every element is visible */
    int32_t low; /* visible iff low <= lane - (row - first) <= high */
    int32_t high;

    bool shaped;            /* any of these: */
    float softcap;          /* 0: none */
    float *caps;            /* takes in the softcap's derivative; NULL: nobody wants it */
    const float *row_bias;  /* one per row, or NULL */
    const float *lane_bias; /* one per lane, lane_bias_step further for each row, or NULL */
    size_t lane_bias_step;
    float slope;      /* 0: none; subtracts slope * |lane - row + distance| */
    int64_t distance; /* set whenever there are slopes */

    const uint32_t *keep; /* a tile of all ones or all zeros: which probabilities live; NULL: all */
    float kept_scale;     /* of those that live */
};

/* Which probabilities dropout keeps, for a tile at these positions, multiples of SIMD_UNIT. */
struct simd_dropout {
    struct philox_stream stream;
    uint32_t threshold;
    int64_t row;
    int64_t lane; /* a multiple of SIMD_PANEL */
    bool lanes_are_keys;
};

/* Online softmax of one panel. */
struct simd_softmax {
    float top[SIMD_PANEL];    /* largest score so far */
    float sum[SIMD_PANEL];    /* of e^(score - top) */
    float factor[SIMD_PANEL]; /* by which the last block rescales what was summed before it */
};

/* What the backward pass knows of queries: lse is +inf for those that see nothing. */
struct simd_stats {
    const float *lse;
    const float *delta;
    bool of_rows; /* one per row, else one per lane */
};

struct simd {
    /* products[rows][lane] = sum over c < width of block[row][c] * panel[c][lane] */
    void (*multiply)(
        float *products, const float *block, const float *panel, size_t rows, size_t width);

    /* sums[c][lane] = sums[c][lane] * factor[lane] + sum over rows of block[row][c] *
     * weights[row][lane], for c < width; factor NULL: 1 */
    void (*accumulate)(float *sums, const float *factor, const float *block, const float *weights,
        size_t rows, size_t width);

    /* Products become e^(score - top), and the panel's softmax takes them in; then those that are
     * not kept become 0. */
    void (*softmax)(const struct simd_scores *scores, float *products, struct simd_softmax *state);

    /* Products become probabilities p, and products of gradient and value become ds. Those p that are
     * not kept become 0, the others are not scaled. */
    void (*gradient)(const struct simd_scores *scores, const struct simd_stats *stats,
        float *products, float *gradients);

    /* The softcap's derivative, for ds. */
    void (*uncap)(const struct simd_scores *scores, float *gradients);

    void (*draw_keep)(uint32_t *keep, const struct simd_dropout *dropout, size_t rows);

    /* sums[lane] += sum over rows of ds, or of ds * |lane - row + distance| */
    void (*sum_rows)(float *sums, const float *gradients, size_t rows);
    void (*sum_distances)(float *sums, const struct simd_scores *scores, const float *gradients);

    /* Adds ds to sums of the same form, only in the first lanes. */
    void (*add_tile)(float *sums, const float *gradients, size_t rows, size_t lanes);

    void (*load_block)(float *block, const struct simd_matrix *from);
    void (*load_panels)(float *panels, const struct simd_matrix *from);
    void (*load_tile)(float *tile, const struct simd_matrix *from);     /* up to SIMD_PANEL wide */
    void (*load_column)(float *column, const struct simd_matrix *from); /* of width 1 */
    void (*store_column)(const struct simd_matrix *to, const float *column);

    /* Element (c, lane) times factor[lane] goes to row `lane`. */
    void (*store_panels)(const struct simd_matrix *to, const float *panels, const float *factor);

    /* dots[lane] = sum over c < width of a[c][lane] * b[c][lane], summed in the order of multiply():
     * where the two have to cancel they do, to the last bit. */
    void (*lane_dots)(float *dots, const float *a, const float *b, size_t width);
};

extern const struct simd simd_portable;
#if defined(__x86_64__)
extern const struct simd simd_avx2;
extern const struct simd simd_avx512;
#endif

static inline size_t simd_pad(size_t count)
{
    return (count + SIMD_UNIT - 1) / SIMD_UNIT * SIMD_UNIT;
}

/* The best that this processor does. */
const struct simd *simd_best(void);

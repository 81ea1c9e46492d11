/*
 * The geometry of the cpu family's tiles: how a problem is cut, which part of the other side a tile
 * has to walk, and the scratch memory of a worker. Plain arithmetic, no memory of its own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attn.h"
#include "simd.h"

#define TILE_LANES_MAX 128 /* queries or keys that a tile owns */
#define TILE_WALK_MAX 64   /* rows of the other side that are packed at a time */
#define TILE_PANELS_MAX (TILE_LANES_MAX / SIMD_PANEL)
#define TILE_ELEMENTS (TILE_WALK_MAX * SIMD_PANEL) /* of a block against one panel */

enum tile_side {
    TILE_QUERIES,
    TILE_KEYS,
};

/* Element (lane, row) is visible iff low <= lane - row <= high, in positions of their sequences. */
struct tile_band {
    int64_t low;
    int64_t high;
};

struct tile_span {
    int64_t begin;
    int64_t end;
};

/* Where a sequence lies in the tensors of its side. Rows of its extent beyond its length are
 * padding. */
struct tile_sequence {
    int64_t batch; /* 0 in packed tensors */
    int64_t start;
    int64_t length;
    int64_t extent;
};

/* Positions of one head: what a tile owns, or a block that it walks over. */
struct tile_place {
    int64_t batch; /* of the problem; -1: rows before the first sequence */
    int64_t head;
    struct tile_sequence sequence;
    int64_t first;
    size_t rows;
    size_t padding; /* rows behind them that the tile has to clear */
};

/* One worker's memory. What a and b are is up to the direction. */
struct tile_scratch {
    _Alignas(64) float lanes_a[TILE_LANES_MAX * ATTN_MAX_HEAD_DIM];
    _Alignas(64) float lanes_b[TILE_LANES_MAX * ATTN_MAX_HEAD_DIM];
    _Alignas(64) float sums_a[TILE_LANES_MAX * ATTN_MAX_HEAD_DIM];
    _Alignas(64) float sums_b[TILE_LANES_MAX * ATTN_MAX_HEAD_DIM];
    _Alignas(64) float walk_a[TILE_WALK_MAX * ATTN_MAX_HEAD_DIM];
    _Alignas(64) float walk_b[TILE_WALK_MAX * ATTN_MAX_HEAD_DIM];
    _Alignas(64) float products[TILE_ELEMENTS];
    _Alignas(64) float gradients[TILE_ELEMENTS];
    _Alignas(64) float bias[TILE_ELEMENTS];
    _Alignas(64) float caps[TILE_ELEMENTS];
    _Alignas(64) uint32_t keep[TILE_ELEMENTS];
    _Alignas(64) float lse[TILE_LANES_MAX];
    _Alignas(64) float delta[TILE_LANES_MAX];
    _Alignas(64) float factor[TILE_LANES_MAX];
    _Alignas(64) float bias_sums[TILE_LANES_MAX];
    _Alignas(64) float slope_sums[TILE_LANES_MAX];
    _Alignas(64) struct simd_softmax softmax[TILE_PANELS_MAX];
};

/* What a tile works with. */
struct tile_work {
    const struct simd *simd;
    const struct attn_problem *problem;
    struct tile_scratch *scratch;
    void *workspace;
};

/* Blocks of TILE_LANES_MAX positions. */
int64_t tile_blocks(int64_t length);

/* Tiles that own positions of `heads` heads of one side. */
uint64_t tile_count(const struct attn_problem *problem, enum tile_side side, int32_t heads);

/*
 * What tile number `index` of these owns; it may be nothing. The blocks of a head come so that those
 * with the longest walk under a causal mask are the first: the short ones then fill up the end.
 */
struct tile_place tile_place(
    const struct tile_work *work, enum tile_side side, int32_t heads, uint64_t index);

/* The next rows to pack of a walk that has come to `first` and goes on to `end`. */
struct tile_place tile_block(struct tile_place place, int64_t first, int64_t end);

/* Lanes that the panel beginning with lane `lane` of a place uses. */
static inline size_t tile_panel_lanes(const struct tile_place *place, size_t lane)
{
    return place->rows - lane < SIMD_PANEL ? place->rows - lane : SIMD_PANEL;
}

/* `lanes` is the side that lies in lanes; the lengths are those of one sequence. */
struct tile_band tile_band(
    const struct attn_problem *problem, enum tile_side lanes, int64_t queries, int64_t keys);

/* Rows in [0, length) that any of the lanes sees, from a multiple of SIMD_UNIT on. */
struct tile_span tile_walk(struct tile_band band, const struct tile_place *place, int64_t length);

/* Describes the scores of a panel whose first lane is `lane` against a packed block, without the
 * rows at the block's ends that the panel does not see. Returns false if it sees none. */
bool tile_scores(struct tile_band band, int64_t lane, const struct tile_place *block, float scale,
    struct simd_scores *scores);

/* The rows of a tensor that `place` names, `width` elements each. */
struct simd_matrix tile_matrix(const struct attn_problem *problem, const struct attn_view *view,
    const struct tile_place *place, size_t width);

/* Asks for rows of a tensor ahead of their use. They need not be there. */
void tile_prefetch(const struct simd_matrix *matrix);

/* Packs the rows of a tensor that a walk has come to, and asks for those that come next before it
 * ends. */
void tile_load_block(const struct tile_work *work, float *block, const struct attn_view *view,
    const struct tile_place *place, int32_t width, int64_t end);

/* Sets the padding of a place to 0. */
void tile_clear(const struct tile_work *work, const struct attn_view *view,
    const struct tile_place *place, int32_t width);

/* Element (batch, head, row) of an fp32 tensor without head_dim. */
float *tile_scalar(const struct attn_view *view, const struct tile_place *place, int64_t row);

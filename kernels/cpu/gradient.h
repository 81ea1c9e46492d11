/*
 * What all phases of the backward pass that meet scores begin with: packing both sides, and ds of a
 * block against a panel. Works in the scratch of its worker.
 */
#pragma once

#include "tile.h"

/* Packs what a tile owns and what it walks over, up to `end`: of queries q and dout, of keys k and
 * v. */
void gradient_load_lanes(const struct tile_work *work, const struct attn_view *a,
    const struct attn_view *b, const struct tile_place *lanes);
void gradient_load_walk(const struct tile_work *work, const struct attn_view *a,
    const struct attn_view *b, const struct tile_place *block, int64_t end);

/* lse and delta of queries that lie in lanes. Unused lanes get probability 0. */
void gradient_load_stats(const struct tile_work *work, const struct tile_place *queries);

/* Sums of `width` per lane, as panels. */
void gradient_clear(float *sums, const struct tile_place *lanes, int32_t width);

/* Probabilities and ds, before the softcap's derivative, of the packed block against one panel, into
 * products and gradients. */
void gradient_panel(const struct tile_work *work, struct simd_scores *scores,
    const struct simd_stats *stats, size_t lane);

/* The softcap's derivative. */
void gradient_uncap(const struct tile_work *work, const struct simd_scores *scores);

/*
 * The gradient of a bias that depends on queries and keys: written by the tiles that own queries where
 * nothing is summed over, else by tiles of its own, which walk over batches and heads in order and
 * compute ds once more.
 */
#pragma once

#include "tile.h"

/* Sets the rows of a place to 0, for what its queries do not see. */
void dbias_clear(const struct tile_work *work, const struct tile_place *queries);

/* Writes ds of one panel and the keys from `key` on, after dbias_clear(). */
void dbias_write(const struct tile_work *work, const struct tile_place *queries, size_t lane,
    const struct simd_scores *scores, int64_t key);

uint64_t dbias_tiles(const struct attn_problem *problem);
void dbias_run(const struct tile_work *work, uint64_t tile);

/*
 * The last phases of a backward pass: gradients that are sums of what earlier phases have left per
 * row. Each tile adds in an order of its own, in double precision.
 */
#pragma once

#include "tile.h"

uint64_t sums_dbias_tiles(const struct attn_problem *problem);
void sums_dbias_run(const struct tile_work *work, uint64_t tile);

uint64_t sums_dslopes_tiles(const struct attn_problem *problem);
void sums_dslopes_run(const struct tile_work *work, uint64_t tile);

uint64_t sums_dsinks_tiles(const struct attn_problem *problem);
void sums_dsinks_run(const struct tile_work *work, uint64_t tile);

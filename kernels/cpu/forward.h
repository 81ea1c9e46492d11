/*
 * The forward pass of the cpu family: one phase, whose tiles own blocks of queries of one head and
 * walk over the keys with an online softmax.
 */
#pragma once

#include "tile.h"

uint64_t forward_tiles(const struct attn_problem *problem);

void forward_run(const struct tile_work *work, uint64_t tile);

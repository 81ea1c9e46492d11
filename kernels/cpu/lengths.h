/*
 * Where the sequences of a problem lie. Lengths are in memory that others may write at any time: the
 * first tile of a problem reads them once and leaves what it has clamped in the workspace; all others
 * ask here.
 */
#pragma once

#include "tile.h"

size_t lengths_bytes(const struct attn_problem *problem);

uint64_t lengths_tiles(const struct attn_problem *problem); /* 1, or 0 without lengths */
void lengths_run(const struct tile_work *work, uint64_t tile);

bool lengths_packed(const struct attn_problem *problem, enum tile_side side);

/* Rows of the side's tensors per element of their batch dimension, and in all. */
int64_t lengths_rows(const struct attn_problem *problem, enum tile_side side);
int64_t lengths_all_rows(const struct attn_problem *problem, enum tile_side side);

/* batch -1 of a packed side: the rows before the first sequence. */
struct tile_sequence lengths_sequence(
    const struct tile_work *work, enum tile_side side, int64_t batch);

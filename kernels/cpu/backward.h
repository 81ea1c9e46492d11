/*
 * The backward pass of the cpu family, in phases without atomics: what is known of each query (lse
 * and delta, into the workspace), then tiles that own keys and walk over the queries of all heads of
 * their group (dk, dv), then tiles that own queries and walk over the keys (dq). Both leave sums for
 * the gradients in sums.h.
 */
#pragma once

#include "tile.h"

uint64_t backward_stats_tiles(const struct attn_problem *problem);
void backward_stats_run(const struct tile_work *work, uint64_t tile);

uint64_t backward_keys_tiles(const struct attn_problem *problem);
void backward_keys_run(const struct tile_work *work, uint64_t tile);

uint64_t backward_queries_tiles(const struct attn_problem *problem);
void backward_queries_run(const struct tile_work *work, uint64_t tile);

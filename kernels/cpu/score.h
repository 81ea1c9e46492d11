/*
 * How the products of one head become scores: gathers for every panel and block what simd.c needs,
 * that is mask, softcap, bias, ALiBi and dropout. One of these per walk of a tile, in its worker.
 */
#pragma once

#include "tile.h"

struct score_head {
    const struct tile_work *work;
    enum tile_side lanes;
    struct tile_band band;
    bool shaped;      /* has any of softcap, bias and slopes */
    int64_t distance; /* keys are |lane - row + distance| away from their query */
    float slope;

    /* Bias, NULL if there is none; strides from lane to lane and row to row, in elements. */
    const char *bias;
    int64_t lane_stride;
    int64_t row_stride;

    struct philox_stream dropout;
};

/* Queries and keys lie in the sequences of batch `batch`; head is one of heads_q. */
struct score_head score_head(const struct tile_work *work, enum tile_side lanes, int64_t batch,
    int64_t head, const struct tile_sequence *queries, const struct tile_sequence *keys);

/* Describes the scores of up to SIMD_PANEL lanes from `lane` on against a packed block; false if
 * they see nothing of it. Tiles lie in the scratch until the next call. */
bool score_panel(const struct score_head *score, int64_t lane, size_t lanes,
    const struct tile_place *block, struct simd_scores *scores);

/* The factor of what dropout keeps. */
float score_kept_scale(const struct attn_problem *problem);

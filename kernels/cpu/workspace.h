/*
 * What the phases of a backward pass leave for one another: the parts of its workspace. All are
 * linear in the rows. (A forward pass only has the lengths, which come first in both.)
 */
#pragma once

#include "tile.h"

/* Of floats, one per head of heads_q and row of a side. */
enum workspace_part {
    WORKSPACE_LSE, /* +inf for queries that see nothing */
    WORKSPACE_DELTA,
    WORKSPACE_SLOPES, /* sum over a query's keys of ds * distance */
    WORKSPACE_BIAS,   /* sum of ds over a query's keys, or over a key's queries */
    WORKSPACE_PARTS,
};

/* Who computes dbias, by the dimensions that it is summed over. */
enum workspace_dbias {
    DBIAS_NONE,
    DBIAS_QUERIES, /* over keys: queries' tiles leave sums per query */
    DBIAS_KEYS,    /* over queries but not keys: keys' tiles leave sums per key */
    DBIAS_DIRECT,  /* over nothing: queries' tiles write it */
    DBIAS_TILES,   /* over batches or heads only: a phase of its own */
};

enum workspace_dbias workspace_dbias(const struct attn_problem *problem);

/* SIZE_MAX if no number holds it. */
size_t workspace_bytes(enum attn_direction direction, const struct attn_problem *problem);

/* A part's floats for the rows of a place, whose head is one of heads_q. */
float *workspace_rows(
    const struct tile_work *work, enum workspace_part part, const struct tile_place *place);

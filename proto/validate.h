/*
 * The semantic validator: what a plan must be to have a meaning, and where a call's tensors may lie.
 *
 * Pure functions of their arguments. The library runs them for errors at the call; the daemon runs
 * them again because it believes nobody. All arithmetic is overflow-safe. Sentences name the field
 * ("k.shape[2] is 3, which does not divide q's 8 heads").
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

/* What validation found out about a plan; the rest of the daemon works with this. */
struct wire_shape {
    int64_t batch;    /* of packed sides too */
    int64_t seqlen_q; /* of a packed side: max_seqlen, the most rows that count of a sequence */
    int64_t seqlen_k;
    int64_t total_q; /* rows of a packed side, 0 of a dense one */
    int64_t total_k;
    bool packed_q;
    bool packed_k;
    int32_t heads_q;
    int32_t heads_kv;
    int32_t head_dim_qk;
    int32_t head_dim_v;
    enum wire_dtype dtype;
    float scale;   /* the default filled in */
    float softcap; /* 0: none */
    uint32_t dropout_threshold;
    bool deterministic;
    bool slopes_broadcast; /* one row of slopes for the whole batch */

    /* Which dimensions of bias (batch, head, query, key) have extent 1: these are broadcast and summed
     * over in dbias, also where the problem's extent is 1 as well. bias_dtype 0: there is no bias. */
    bool bias_broadcast[WIRE_MAX_DIMS];
    enum wire_dtype bias_dtype;
};

/* Bytes a tensor touches, relative to the address of its element (0, ..., 0): [low, high), low <= 0.
 * Both 0 for a tensor without elements. */
struct wire_extent {
    int64_t low;
    int64_t high;
};

/*
 * false: *error says why. On success fills *shape and one extent per tensor.
 *
 * An output's elements must not share memory. The rule, sufficient and met by every slice and
 * permutation of a compact tensor: its strides are positive and, ascending, each is larger than the
 * span of all smaller ones, 1 + sum of (extent - 1) * stride.
 */
bool validate_plan(const struct wire_plan *plan, struct wire_shape *shape,
    struct wire_extent extents[WIRE_MAX_TENSORS], struct wire_error *error);

/*
 * Whether the call's tensors lie inside their regions, are aligned to their dtype, and no output
 * overlaps another tensor. region_bytes[t] is the true size of tensor t's region (the caller resolved
 * call->region[t]). Tensors in different regions do not overlap. Overlap means: byte ranges meet,
 * unless both tensors have equal strides and disjoint index boxes (as dq, dk, dv of a packed dqkv do).
 * A tensor without elements overlaps nothing; its offset need only be within the region.
 */
bool validate_call(const struct wire_plan *plan, const struct wire_extent extents[WIRE_MAX_TENSORS],
    const struct wire_call *call, const uint64_t region_bytes[WIRE_MAX_TENSORS],
    struct wire_error *error);

bool wire_role_is_output(enum wire_direction direction, enum wire_role role);

/* The tensor of a role, or NULL. */
const struct wire_tensor *wire_plan_tensor(const struct wire_plan *plan, enum wire_role role);

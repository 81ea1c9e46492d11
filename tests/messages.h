/*
 * Random messages of the protocol, for the tests of the codec and the validator and for fuzzing.
 * Everything follows from a seed; each test prints its own.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "dice.h"
#include "validate.h"
#include "wire.h"

/* $ATTND_SEED or a new one from the clock; printed, so that a failure can be repeated. */
struct dice messages_seeded(const char *test);

uint64_t messages_below(struct dice *random, uint64_t end); /* 0 .. end - 1 */
uint64_t messages_wide(struct dice *random); /* of any magnitude: small and huge are as likely */

/* Any content that the codec can carry, whether it makes sense or not; padding is zeroed. */
void messages_gate_request(struct dice *random, struct wire_gate_request *message);
void messages_gate_reply(struct dice *random, struct wire_gate_reply *message);
void messages_request(struct dice *random, struct wire_request *message);
void messages_reply(struct dice *random, struct wire_reply *message);

/* A plan that makes sense, of small compact tensors, with any features together. */
void messages_plan(struct dice *random, struct wire_plan *plan);

struct messages_extents {
    uint64_t batch;
    uint64_t seqlen_q; /* of a packed side: max_seqlen, which the plan then gives */
    uint64_t seqlen_k;
    uint64_t heads_q;
    uint64_t heads_kv;
    uint64_t head_dim_qk;
    uint64_t head_dim_v;
};

/* What a plan may have beside the tensors that every call has. */
struct messages_features {
    bool packed_q;
    bool packed_k;
    uint64_t total_q;
    uint64_t total_k;
    bool seqlens_k;
    enum wire_dtype bias; /* 0: none */
    unsigned bias_ones;   /* bit i: extent i is 1 */
    bool slopes;
    bool slopes_one; /* a single row of them */
    bool sinks;
    bool gradients; /* backward: of all of these */
};

/* The compact plan of given extents, with lse and, backward, dlse. */
void messages_fixed_plan(struct wire_plan *plan, enum wire_direction direction,
    enum wire_dtype dtype, const struct messages_extents *extents);
void messages_featured_plan(struct wire_plan *plan, enum wire_direction direction,
    enum wire_dtype dtype, const struct messages_extents *extents,
    const struct messages_features *features);

/* Any features that fit a plan of these extents and dtype. */
void messages_features(struct dice *random, enum wire_dtype dtype,
    const struct messages_extents *extents, struct messages_features *features);

/* Where a plan's tensor of a role is; the role must be there. */
uint32_t messages_place(const struct wire_plan *plan, enum wire_role role);

/* All tensors of a plan one after another in region 1, each from a multiple of 16 bytes on. Returns
 * the bytes that the region needs. */
uint64_t messages_call(
    const struct wire_plan *plan, const struct wire_extent *extents, struct wire_call *call);

/*
 * A plan: what a session's calls of one kind have in common, validated once and turned into a
 * problem without addresses. plan_resolve() adds those of a call.
 *
 * I/O thread only. Knows no session: its caller resolves region numbers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attn.h"
#include "backend.h"
#include "job.h"
#include "region.h"
#include "validate.h"
#include "wire.h"

struct plan {
    struct wire_plan wire;
    struct wire_extent extent[WIRE_MAX_TENSORS];
    enum attn_direction direction;
    const struct attn_family *family;
    struct attn_problem problem; /* its addresses mean nothing */
    size_t workspace_bytes;
    uint64_t tiles;
    double flops; /* the cost: of what it computes, and of what that comes with */
    uint32_t group_key;
};

/* NULL with *error: the plan makes no sense, no family does it, its scratch memory does not fit, or one
 * piece of it would keep everybody waiting too long. */
struct plan *plan_create(
    const struct wire_plan *wire, struct backend *backend, struct wire_error *error);
void plan_destroy(struct plan *plan); /* accepts NULL */

/* Fills the work of a job of this plan; region t, which the caller looked up, is of tensor t.
 * false: *error says what is wrong with the call. */
bool plan_resolve(const struct plan *plan, const struct wire_call *call,
    struct region *const region[WIRE_MAX_TENSORS], struct job *job, struct wire_error *error);

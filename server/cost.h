/*
 * What a plan costs, estimated from its shapes alone: what the scheduler charges for it, and the longest
 * piece of its work, which nothing cuts and everybody waits for.
 *
 * Any thread; keeps nothing.
 */
#pragma once

#include <stdbool.h>

#include "backend.h"
#include "plan.h"
#include "wire.h"

/* Fills in `flops` of a plan that lacks nothing else. false: a piece of it takes longer than the backend
 * lets anybody wait, as *error says. */
bool cost_estimate(struct plan *plan, const struct backend *backend, struct wire_error *error);

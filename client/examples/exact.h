/*
 * Checks finished requests of training against the same formula in float64. Of every `every`
 * requests, forward and backward alike, one is drawn at random; its tensors are copied from where they
 * are.
 * The bar: an output may be off by no more than 2 times (gradients 3 times) what the plain formula
 * is off in the request's own dtype, plus twice what float32 loses in adding and subtracting 0.3.
 * Owns its scratch memory. One thread.
 */
#pragma once

#include "attention.h"
#include "rng.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct exact_summary {
    uint64_t checked;
    uint64_t failed; /* of these, past the bar */
    double
        max_rel_error; /* largest difference over the largest number of its tensor, of all checks */
};

struct exact;

/* NULL: no memory. Then it is attention's watcher; attention outlives it, with its last call before. */
struct exact *exact_create(struct attention *attention, uint64_t every, uint64_t seed);
void exact_destroy(struct exact *exact); /* accepts NULL */

/* Checks the request that the layer ran last, whether drawn or not. Its inputs and outputs are still
 * in attention's buffers, and the caller has not changed them. */
bool exact_check(struct exact *exact, bool backward, size_t layer);

struct exact_summary exact_summarize(const struct exact *exact);

/* Which check failed last, and by how much; "" if none did. */
const char *exact_failure(const struct exact *exact);

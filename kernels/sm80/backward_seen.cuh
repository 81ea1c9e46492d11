/*
 * Queries that see no key: they are before those that see one, or behind them. Their probabilities are
 * 0, but that times what is not a number is none: so nothing of them is read that gradients are made of.
 */
#pragma once

#include "backward_parts.cuh"

/* The first query that sees a key, and the one behind the last. */
struct backward_seen {
    int32_t first;
    int32_t end;
};

PTX_FUNCTION struct backward_seen backward_seen_of(const struct score_head &score)
{
    struct backward_seen seen;
    seen.first = score_first_query(score, 0);
    seen.end = score.keys > 0 ? score_end_query(score, score.keys - 1) : 0;
    return seen;
}

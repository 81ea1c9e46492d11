/*
 * Dependent calls between the trainer's own kernels: forward, backward, a kernel that makes the next
 * inputs from the results and ruins the results, and so on. A call that starts too early or too late
 * reads other numbers, and every difference grows from step to step.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "set.h"

struct chain {
    struct attnd *client;
    struct set *set;
    void *stream;
    uint32_t seed;
    uint32_t calls;
    bool backward; /* every other call; the set's gradients are deterministic */
    bool lockstep; /* wait for each call and each kernel on the processor */
};

/* Fills the set and enqueues everything. Ends at the first call that fails, with its status. */
enum attnd_status chain_enqueue(const struct chain *chain);

/* Whether inputs that a chain left are numbers, as they are if no call read or left a ruined result.
 * Waits for the device. */
bool chain_is_sound(const struct set *set);

/* Runs the chain stream-ordered and in lockstep, in the other set, waits for both. Says whether the last
 * inputs are sound and the same bits; *status is the first failure. */
bool chain_agrees(const struct chain *chain, struct set *other, enum attnd_status *status);

/*
 * A client's shared memory in the daemon's address space: what all backends begin with and end with.
 *
 * On worker threads: both take their time.
 */
#pragma once

#include "backend.h"

/* Believes nothing that the offer says. */
bool shared_memory_map(const struct backend_offer *offer, void **base, struct wire_error *error);
void shared_memory_unmap(void *base, uint64_t bytes);

/*
 * Where the tensors of a call lie: finds the regions that hold them, has device memory registered that is
 * not yet, and holds all until the call is sent.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "region.h"
#include "request.h"
#include "stream.h"
#include "validate.h"
#include "wire.h"

/* The regions of a call, held; NULL: none. */
struct place {
    struct region *region[WIRE_MAX_TENSORS];
};

/* A call's tensors, in the plan's order. */
struct place_wanted {
    const struct request *request;
    const struct wire_plan *plan;
    const struct wire_extent *extents;
    const uint64_t *address;
    const struct stream_call *stream; /* NULL: of host tensors */
};

/* Fills the call's tensors, regions and offsets. *outside becomes true if a host tensor lies in no region;
 * then the rest is not filled completely. What is held is to be released in any case. */
bool place_find(struct attnd *client, const struct place_wanted *wanted, struct wire_call *call,
    struct place *place, bool *outside, struct wire_error *error);

/* The call is on its way: up to `sequence` of the lane its regions are used. Both with the client's mutex
 * held. */
void place_note_use(const struct place *place, unsigned lane, uint64_t sequence);
void place_release(const struct place *place);

/*
 * One request on its way through the daemon.
 *
 * The I/O thread takes a job from a fixed pool, fills it and posts it to the engine; from then until
 * the engine gives it back as ended, only the engine thread touches it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attn.h"
#include "list.h"
#include "wire.h"

struct region; /* server/region.h: shared memory of a session, counted */

struct job {
    struct list_node node; /* of whoever holds the job: pool, lane queue, group */

    /* Identity, filled by the I/O thread. */
    uint32_t session; /* slot number */
    uint32_t lane;
    uint32_t sequence;
    uint32_t array_first; /* sequence of the first call of its submission: equal in all of them */
    uint32_t epoch;       /* not 0: poisons those behind it of the same epoch when it fails */
    uint32_t request_id;  /* for the reply when it fails */
    struct region *region[WIRE_MAX_TENSORS]; /* references held until the job has ended */

    /* The work, filled by the I/O thread; addresses resolved. */
    enum attn_direction direction;
    const struct attn_family *family;
    struct attn_problem problem;
    size_t workspace_bytes;
    uint64_t tiles;
    double flops; /* what all tiles cost, memory and padding counted in; a tile costs their mean */
    uint32_t group_key;

    /* The answer. A job that the I/O thread posts with error.status != WIRE_OK is not run: it only
     * takes its turn in the lane. */
    struct wire_error error;
    uint32_t group_members; /* of the group that it ended in; 0: never ran */
    uint64_t group_id; /* that group's number, from 1; members of a group end one after another */

    /* The engine's. */
    bool running; /* a group holds a slice of it */
    uint64_t next_tile;
    void *workspace;
};

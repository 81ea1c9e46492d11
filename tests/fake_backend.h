/*
 * A backend without a device: groups run until the test says that they have ended, in any order.
 *
 * Every group submitted is judged: keys not mixed, a job or lane not twice at a time, slices in order
 * and not empty, workspaces within the backend's and disjoint, no word marked twice. The first fault is
 * kept as a sentence. The marks of a group that ends well are written at once, as a device would.
 * Functions may be called from any thread.
 */
#pragma once

#include <pthread.h>

#include "backend.h"

#define FAKE_MAX_GROUPS 4

struct fake_backend {
    struct backend backend; /* first */
    pthread_mutex_t lock;
    struct group *running[FAKE_MAX_GROUPS];
    size_t runs;
    struct group *ended[FAKE_MAX_GROUPS];
    enum wire_status ended_status[FAKE_MAX_GROUPS];
    size_t ends;
    bool at_once;            /* groups end by themselves */
    bool holds_ends;         /* poll says nothing of them yet; their marks are written */
    enum wire_status refuse; /* what submit answers; WIRE_OK: it takes the group */
    uint64_t submitted;
    unsigned looks;
    const char *fault; /* NULL: none */
};

/* Families to tell apart; never launched. */
const struct attn_family *fake_family(unsigned number); /* 0 .. 3 */

void fake_backend_init(struct fake_backend *fake, unsigned max_groups, uint64_t workspace_bytes);
void fake_backend_finish(struct fake_backend *fake);

size_t fake_backend_running(struct fake_backend *fake);

/* The group that was started index-th of those running. */
struct group *fake_backend_group(struct fake_backend *fake, size_t index);
void fake_backend_complete(struct fake_backend *fake, size_t index, enum wire_status status);
/* How often it was looked at. */
unsigned fake_backend_looks(struct fake_backend *fake);
const char *fake_backend_fault(struct fake_backend *fake);

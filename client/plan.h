/*
 * The plans that the daemon knows of this client, found by their bytes, least recently used out first.
 *
 * One mutex of its own, also held while a plan is registered: threads that want the same new plan
 * register it once. Plans are canonical (wire.h), so equal ones are equal bytes.
 */
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "validate.h"
#include "wire.h"

#define PLAN_BUCKETS 256
#define PLAN_MOST 1024 /* kept here, where the daemon would allow more */

struct plan {
    struct plan *next; /* in its bucket */
    uint64_t hash;
    uint32_t id;
    uint32_t users; /* submissions not sent yet: it must not be dropped before them */
    uint64_t last_use;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_plan wire;
};

struct plans {
    pthread_mutex_t mutex;
    struct plan *bucket[PLAN_BUCKETS]; /* owned */
    size_t count;
    size_t capacity;
    uint64_t clock;
};

void plan_init(struct plans *plans, uint64_t limit);
void plan_finish(struct plans *plans);

/* A known plan, held until plan_release(), or NULL. */
struct plan *plan_find(struct plans *plans, const struct wire_plan *wire);

/* Registers a valid plan that is perhaps not known yet; likewise held. NULL: *error says why. Only what
 * the daemon took is remembered. ATTND_TIMED_OUT and the like are in *error too. */
struct plan *plan_acquire(struct attnd *client, const struct wire_plan *wire,
    const struct wire_extent extents[WIRE_MAX_TENSORS], struct wire_error *error);

void plan_release(struct plans *plans, struct plan *plan);

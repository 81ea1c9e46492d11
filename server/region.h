/*
 * Shared memory that a session made visible. A region lives from its adding until it was dropped and
 * no job uses it any more; then it counts no longer here, and a reaper unmaps it.
 *
 * I/O thread only; the engine sees nothing but addresses inside regions that its jobs hold.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "list.h"
#include "reaper.h"
#include "wire.h"

struct region {
    struct reaper_task task; /* first: the unmapping; its weight: bytes */
    struct backend *backend; /* borrowed */
    struct list_node node;   /* of its set's list */
    struct region_set *set;  /* borrowed */
    void *base;
    uint64_t bytes;
    uint32_t references; /* one of the number in the set, one of each job */
};

/* The regions of one session. */
struct region_set {
    struct backend *backend; /* borrowed */
    struct reaper *reaper;   /* borrowed */
    uint32_t uid;            /* on whose account it unmaps */
    struct list all;         /* also dropped ones that jobs still use */
    struct region **number;  /* owned; number n at [n - 1], NULL: free */
    uint32_t limit;
    uint32_t count; /* of all */
    uint64_t bytes; /* of all */
};

bool region_set_init(struct region_set *set, struct backend *backend, struct reaper *reaper,
    uint32_t uid, uint32_t limit);

/* Lets go of everything, used or not: nobody may run a job of the session any more. Accepts zeroes. */
void region_set_finish(struct region_set *set);

/* Maps the memory behind fd, which stays the caller's. Returns its number, 0 with *error. */
uint32_t region_add(struct region_set *set, int fd, uint64_t bytes, struct wire_error *error);

/* NULL: there is none of that number. */
struct region *region_find(const struct region_set *set, uint32_t number);

/* Takes the number away; false: there is none. */
bool region_drop(struct region_set *set, uint32_t number);
void region_drop_all(struct region_set *set);

void region_acquire(struct region *region);
void region_release(struct region *region);

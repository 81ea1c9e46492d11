/*
 * Memory that a session made visible. Workers map, extend and unmap it; here is what for, and what of
 * it may be used. A region lives from its adding until it was dropped and no job uses it any more; then
 * it counts no longer here, but as weight of the worker that unmaps it.
 *
 * I/O thread only, which collects from the workers; the engine sees nothing but addresses inside
 * regions that its jobs hold.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend.h"
#include "list.h"
#include "wire.h"
#include "worker.h"

struct change;

struct region {
    struct worker_task task; /* first: the unmapping; its weight: bytes */
    struct backend *backend; /* borrowed */
    struct worker *unmapper; /* borrowed */
    struct list_node node;   /* of its set's list */
    struct region_set
        *set; /* borrowed; NULL: it is gone, and a change at work is all that is left */
    struct change *change; /* a worker maps or extends it; it holds a reference */
    uint32_t number;       /* 0: has none yet, or no more */
    bool dropped;
    enum wire_memory_kind kind;
    void *base; /* NULL: not mapped */
    uint64_t bytes;
    uint64_t reserve;    /* the most that it may grow to */
    uint64_t counted;    /* bytes, and those being mapped; 0: they are weight of the mapper */
    uint32_t references; /* one of the number in the set, one of a change, one of each job */
};

struct region_options {
    struct backend *backend; /* borrowed */
    struct worker *mapper;   /* borrowed */
    struct worker *unmapper; /* borrowed */
    uint32_t uid;            /* whose regions they are, and on whose account workers work */
    int pid;
    uint32_t limit; /* of regions, those not used up included */
};

/* The regions of one session. */
struct region_set {
    struct region_options options;
    struct list all;           /* also those being mapped, and dropped ones that jobs still use */
    struct region **number;    /* owned; number n at [n - 1], NULL: free */
    uint32_t count;            /* of all */
    uint32_t dropped;          /* of them */
    uint32_t handles;          /* of all: of kind CUDA_IPC and not dropped */
    uint64_t bytes;            /* of all: those being mapped included, until it is closed */
    struct worker_task *fence; /* waits until nothing dropped is left here; NULL: none */
    bool closed;               /* nothing more gets a number */
};

/* On the thread that collects. The region's number, or 0: *error says why not. Then fd is the offer's
 * descriptor if it was not taken; else -1. */
typedef void region_done_fn(void *context, uint32_t number, int fd, const struct wire_error *error);

bool region_set_init(struct region_set *set, const struct region_options *options);

/* Drops everything; what is being mapped will be dropped as well, and until then counts as weight of the
 * mapper, for the set may be gone before. */
void region_set_close(struct region_set *set);

/* Lets go of everything, used or not: nobody may run a job of the session any more. Accepts zeroes. */
void region_set_finish(struct region_set *set);

/*
 * Has a worker map the offered memory, whose pid and uid are the set's, and close its descriptor, which
 * `done` gives back if that fails. false: *error says why not, the descriptor stays the caller's, and
 * `done` will not be called. Limits of bytes are the caller's business.
 */
bool region_add(struct region_set *set, const struct backend_offer *offer, region_done_fn *done,
    void *context, struct wire_error *error);

/* One more piece for a region, at `offset`. As region_add(), and one at a time. */
bool region_extend(struct region_set *set, uint32_t number, uint64_t offset,
    const struct backend_offer *piece, region_done_fn *done, void *context,
    struct wire_error *error);

/* Has a worker run `fence` when everything that the set has dropped is unmapped. One at a time. */
void region_trim(struct region_set *set, struct worker_task *fence);

/* NULL: there is none of that number. */
struct region *region_find(const struct region_set *set, uint32_t number);

/* Takes the number away; false: there is none. */
bool region_drop(struct region_set *set, uint32_t number);

/* How many mappings of that user wait to be unmapped. */
unsigned region_unmaps(struct worker *unmapper, uint32_t uid);

void region_acquire(struct region *region);
void region_release(struct region *region);

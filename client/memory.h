/*
 * Regions: shared memory of this client that the daemon has mapped, found by pointer.
 *
 * The table is guarded by the client's mutex, which callers of the functions named so hold.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "page.h"

struct region {
    uint8_t *base;
    uint64_t bytes;
    uint32_t id;                   /* the daemon's name for it */
    uint32_t users;                /* who prepares to use it; guarded by the client's mutex */
    uint64_t last_use[PAGE_LANES]; /* sequence of the last request of each lane; 0: none */
};

struct memory {
    struct region **sorted; /* by base; owned */
    size_t count;
    size_t capacity;
    uint64_t bytes; /* of all regions, also of those being made */
    size_t regions; /* likewise */
};

/* Makes a region of at least `bytes`. Takes the client's mutex by itself. */
enum attnd_status memory_create(struct attnd *client, uint64_t bytes, struct region **region);

/* Takes it out of the table, waits until no request uses it, and gives it back. Likewise. */
void memory_destroy(struct attnd *client, struct region *region);

/* Keeps it in use beside the requests that use it. Both take the mutex by themselves. */
void memory_hold(struct attnd *client, struct region *region);
void memory_let_go(struct attnd *client, struct region *region);

/* Whether nobody holds it and all requests that use it have ended. Likewise. */
bool memory_is_unused(struct attnd *client, const struct region *region);

/* Whether the address lies in a region. Likewise. */
bool memory_is_shared(struct attnd *client, uint64_t address);

/* The region that holds [address + low, address + high), low <= 0 <= high; NULL: `address` lies in
 * none, or *partly: the range reaches beyond the region it lies in. Caller holds the client's mutex. */
struct region *memory_find(
    const struct memory *memory, uint64_t address, int64_t low, int64_t high, bool *partly);

/* Unmaps everything. No request uses any of it. */
void memory_finish(struct memory *memory);

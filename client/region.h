/*
 * Regions: memory of this client that the daemon has mapped, and tables to find them by address. Tables
 * are guarded by their owners' mutexes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "page.h"
#include "wire.h"

/* A part of device memory that the driver gave at once. It ends where the next one begins. */
struct region_piece {
    uint64_t base;
    uint64_t id; /* the driver's: changes when the address is given away again */
};

struct region {
    struct region *next; /* in a list of those that nobody finds any more */
    uint8_t *base;       /* of a device's: not to be followed */
    uint64_t bytes;
    uint64_t reserve; /* of pieces: the most bytes that it can grow to */
    enum wire_memory_kind kind;
    uint32_t id;    /* the daemon's name for it */
    uint32_t users; /* who prepares to use it; guarded by the client's mutex */
    uint64_t
        last_use[PAGE_LANES]; /* sequence of the last request of each lane; 0: none; likewise */
    uint64_t wanted_at;       /* when it was last looked for, as devices count; of device memory */
    struct region_piece *piece; /* owned; of device memory */
    size_t pieces;
};

struct region_table {
    struct region **sorted; /* by base; owned */
    size_t count;
    size_t capacity;
};

/* false: out of memory. */
bool region_insert(struct region_table *table, struct region *region);
void region_take_out(struct region_table *table, const struct region *region);

/* The last that begins at the address or before and reaches beyond it, or NULL. */
struct region *region_find(const struct region_table *table, uint64_t address);

uint64_t region_begin(const struct region *region);
uint64_t region_end(const struct region *region);

/* false: out of memory. */
bool region_add_piece(struct region *region, uint64_t base, uint64_t id);

/* The piece that holds the address, which lies in the region. */
size_t region_piece_at(const struct region *region, uint64_t address);

/* Whether the daemon has addresses for it up to there. What never grows is judged elsewhere. */
bool region_can_reach(const struct region *region, uint64_t end);

/* Unmaps what is shared memory. */
void region_free(struct region *region);
void region_free_all(struct region_table *table);

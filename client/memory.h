/*
 * Shared memory of this client that the daemon has mapped, found by pointer, and the account of all its
 * regions, those of device memory (device.h) too.
 *
 * Guarded by the client's mutex, which callers of the functions named so hold.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "region.h"

struct memory {
    struct region_table table;
    uint64_t bytes; /* of all regions, also of those being made */
    size_t regions; /* likewise */
};

/* Counts regions before they exist: what is over the daemon's limits costs no memory. Both take the
 * client's mutex by themselves. */
enum attnd_status memory_book(struct attnd *client, size_t regions, uint64_t bytes);
void memory_unbook(struct attnd *client, size_t regions, uint64_t bytes);

/* The daemon maps the region no more, and it is freed. Likewise. */
void memory_withdraw(struct attnd *client, struct region *region);

/* The same, but waits no longer than this. false: the daemon could not be told, and all is as it was. */
bool memory_try_withdraw(struct attnd *client, struct region *region, int64_t timeout_ns);

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

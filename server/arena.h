/*
 * Hands out pieces of one fixed range of memory, which it never touches: the range may be a device's.
 *
 * Best fit with immediate coalescing. The records lie elsewhere and are made once; nothing is
 * allocated later. One thread at a time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define ARENA_ALIGNMENT 256 /* of every piece, counted from the range's base */

struct arena;

/* At most max_pieces are out at a time. NULL: no memory. */
struct arena *arena_create(void *base, size_t bytes, uint32_t max_pieces);
void arena_destroy(struct arena *arena); /* accepts NULL */

/* The largest piece there can ever be. */
size_t arena_capacity(const struct arena *arena);

/* NULL: it does not fit now. */
void *arena_acquire(struct arena *arena, size_t bytes);
void arena_release(struct arena *arena, void *piece);

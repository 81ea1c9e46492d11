/*
 * A bounded queue between two threads: one pushes, the other pops, neither ever waits.
 *
 * Items are copied. Whoever makes a ring sizes it so that it can't be full.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring;

/* Room for at least `items` of `item_bytes` each. NULL: no memory. */
struct ring *ring_create(uint32_t items, size_t item_bytes);
void ring_destroy(struct ring *ring); /* accepts NULL */

bool ring_push(struct ring *ring, const void *item); /* false: full */
bool ring_pop(struct ring *ring, void *item);        /* false: empty */

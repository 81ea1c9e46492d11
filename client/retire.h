/*
 * Device memory that nobody finds any more: what the program has freed, what is not used, and what has
 * become part of something else. Requests may use it still; once none does, the daemon is told to unmap
 * it. Callers hold devices.mutex, except where a function says so.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "device.h"
#include "region.h"

void retire_region(struct devices *devices, struct region *region);

/* Whatever is known there is not there any more, or will be part of `heir`. */
void retire_range(struct devices *devices, uint64_t begin, uint64_t end, const struct region *heir);

/* What the program has freed. */
void retire_dead(struct attnd *client);

/* What no request uses. */
void retire_unused(struct attnd *client);

/* Has the daemon unmap the least recently used of those that no request uses, with `bytes` together or
 * more. false: there was none, or the daemon could not be told. */
bool retire_for_room(struct attnd *client, uint64_t bytes);

/* Lets the daemon drop what is retired and not used, behind `choose`, which retires; what it is not told
 * of until the deadline stays retired. Takes the mutex by itself, but not while it waits; nothing happens
 * if others have it until then. */
void retire_and_drop(struct attnd *client, void (*choose)(struct attnd *client), int64_t deadline);

/* Waits until the daemon has unmapped what it was to drop, also by other threads: until then it counts
 * against the limits. With or without the mutex. */
enum attnd_status retire_wait(struct attnd *client, int64_t deadline);

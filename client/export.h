/*
 * How device memory gets to the daemon: an allocation of cudaMalloc as a handle, memory of the virtual
 * memory API piece by piece as descriptors. Where the daemon's limits leave no room, what is not used
 * makes some. Callers hold devices.mutex.
 */
#pragma once

#include <stdbool.h>

#include "attnd.h"
#include "probe.h"
#include "region.h"
#include "wire.h"

/* A new region that holds the wanted beginning, or the known one that the memory there continues; not
 * held. NULL: *error says why not. */
struct region *export_region(
    struct attnd *client, const struct probe_wanted *wanted, struct wire_error *error);

/* Lets the region reach to the end of what is wanted. It is held, as making room drops others. */
bool export_rest(struct attnd *client, const struct probe_wanted *wanted, struct region *region,
    struct wire_error *error);

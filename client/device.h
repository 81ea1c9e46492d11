/*
 * Device memory that the daemon has mapped: found by pointer, registered where it is not yet (export.h),
 * and dropped once the program has freed it (retire.h, sweep.h), for what the daemon has mapped is not
 * really free.
 *
 * Allocations of cudaMalloc are a region each; contiguous pieces of the virtual memory API are one
 * together. One mutex guards all, also while memory is registered.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "region.h"
#include "validate.h"
#include "wire.h"

struct devices {
    pthread_mutex_t mutex;
    struct region_table table;
    uint64_t searches;            /* for memory, so far */
    struct region *retired;       /* owned; nobody finds them any more, but requests may use them */
    _Atomic unsigned withdrawing; /* threads that tell the daemon to drop what was retired */
};

void device_init(struct devices *devices);

/* The region that holds the tensor `name` of this device, which lies around `address`, and how far from
 * its beginning. The region is held as by memory_hold(). A context of the device is current. */
bool device_acquire(struct attnd *client, const char *name, int ordinal, uint64_t address,
    const struct wire_extent *extent, struct region **region, uint64_t *offset,
    struct wire_error *error);

/* As retire_for_room(), for memory of another kind. Takes the mutex by itself. */
bool device_make_room(struct attnd *client, uint64_t bytes);

/* Forgets all. No request uses any of it. */
void device_finish(struct devices *devices);

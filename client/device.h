/*
 * Device memory that the daemon has mapped: found by pointer, registered where it is not yet, and dropped
 * once the program has freed it, for what the daemon has mapped is not really free.
 *
 * Allocations of cudaMalloc are a region each; contiguous pieces of the virtual memory API are one
 * together. One mutex guards all, also while memory is registered. A thread of its own looks ten times a
 * second for what was freed, and whether the streams are well; it starts with the first stream.
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
    struct region *retired; /* owned; nobody finds them any more, but requests may use them */
    bool sweeping;          /* the thread runs */
    _Atomic bool stop;
    pthread_cond_t stopped; /* with the mutex */
    pthread_t sweeper;
};

void device_init(struct devices *devices);

/* Starts the thread where it does not run yet. */
bool device_start(struct attnd *client, struct wire_error *error);

/* The region that holds the tensor `name` of this device, which lies around `address`, and how far from
 * its beginning. The region is held as by memory_hold(). A context of the device is current. */
bool device_acquire(struct attnd *client, const char *name, int ordinal, uint64_t address,
    const struct wire_extent *extent, struct region **region, uint64_t *offset,
    struct wire_error *error);

/* Drops what no request uses, and waits until it is unmapped. */
enum attnd_status device_drop_unused(struct attnd *client, int64_t timeout_ns);

/* Ends the thread. */
void device_stop(struct devices *devices);

/* Forgets all. No request uses any of it. */
void device_finish(struct devices *devices);

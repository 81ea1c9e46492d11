/*
 * The CUDA driver of this process: the only file that calls it is driver.c. It is used where the
 * program has loaded it, never loaded or initialised by this library: without it there are no CUDA
 * tensors. Any thread; nothing here waits for the device. Sentences begin with what the driver said no to.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "driver_abi.h"
#include "wire.h"

struct driver {
    pthread_mutex_t mutex; /* of opening */
    void *library;         /* NULL: not open */
    struct driver_functions call;
    bool retained; /* the primary context of device `retained_device` */
    int retained_device;
};

/* A thread's way into the driver: a context is current, and calls disturb no capture of the thread's. */
struct driver_scope {
    int mode; /* of captures, before */
    bool pushed;
};

/* What the driver knows about an address; id changes when the address is given away again. */
struct driver_memory {
    uint64_t id;
    uint64_t range_end; /* of the addresses that were reserved together */
    int ordinal;
    bool is_device;
    bool is_managed;
    bool is_pooled;
};

void driver_init(struct driver *driver);

/* Finds the driver that the process has loaded. false: none, or one that lacks a function. Once open it
 * stays so. */
bool driver_open(struct driver *driver, struct wire_error *error);
void driver_close(struct driver *driver);

/* The device of the thread's current context. false: none. */
bool driver_current_uuid(const struct driver *driver, uint8_t uuid[WIRE_UUID_BYTES]);

bool driver_uuid(const struct driver *driver, int ordinal, uint8_t uuid[WIRE_UUID_BYTES],
    struct wire_error *error);
uint64_t driver_total_memory(const struct driver *driver, int ordinal); /* 0: unknown */

/* Makes the stream's context current, or the device's primary one if the thread has none and the stream
 * is a default one. *context: which. false: also of a stream that records what it is given, for a graph. */
bool driver_enter(struct driver *driver, void *stream, int ordinal, struct driver_scope *scope,
    void **context, struct wire_error *error);

/* The same with a context that was found so before. */
bool driver_enter_context(const struct driver *driver, void *context, struct driver_scope *scope);
void driver_leave(const struct driver *driver, const struct driver_scope *scope);

/* A number that no other stream of the process has. */
bool driver_stream_id(
    const struct driver *driver, void *stream, uint64_t *id, struct wire_error *error);

/* Whether the current context has failed for good: nothing on it will run any more. `pinned`: memory
 * from driver_pin(). */
bool driver_is_broken(const struct driver *driver, void *pinned);

/* Writes `before` to its address once all earlier work of the stream is done, waits there until `until`
 * is reached, then writes `after`. All or nothing is enqueued. */
struct driver_word {
    uint64_t address;
    uint32_t value;
};

bool driver_enqueue(const struct driver *driver, void *stream, struct driver_word before,
    struct driver_word until, struct driver_word after, struct wire_error *error);

/* Lets the device see host memory. */
bool driver_pin(const struct driver *driver, void *memory, size_t bytes, uint64_t *address,
    struct wire_error *error);
void driver_unpin(const struct driver *driver, void *memory);

/* false: the driver does not know the address (any more). */
bool driver_describe(const struct driver *driver, uint64_t address, struct driver_memory *memory);
bool driver_range(const struct driver *driver, uint64_t address, uint64_t *base, uint64_t *bytes);

/* false: the memory is not of this kind. */
bool driver_ipc_handle(
    const struct driver *driver, uint64_t base, uint8_t handle[WIRE_HANDLE_BYTES]);
bool driver_is_mapped(const struct driver *driver, uint64_t base); /* by the virtual memory API */
int driver_export(const struct driver *driver, uint64_t base);     /* a descriptor, or -1 */

/*
 * What the daemon needs of a device: see shared memory, run groups of problems, say when they are done.
 *
 * A backend embeds struct backend as its first member. map, extend, unmap, pin_page and unpin_page are
 * called on worker threads, submit, poll and look on the engine thread, all of them at the same time;
 * choose on any; the rest while none runs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attn.h"
#include "page.h"
#include "wire.h"

#define GROUP_MAX_MEMBERS 128

/* A word that the device writes when all slices of a group have ended: a lane's `done`. */
struct mark {
    void *word; /* as the device sees it, from pin_page */
    uint32_t value;
};

/* Slices that one launch runs together, and a place for the engine to know them again. */
struct group {
    uint64_t id; /* from 1 */
    enum attn_direction direction;
    const struct attn_family *family;
    uint32_t key; /* attn_group_key() of all members */
    size_t members;
    struct attn_slice slice[GROUP_MAX_MEMBERS];
    struct job *job[GROUP_MAX_MEMBERS]; /* slice i is of job i */
    size_t marks;                       /* only where the backend pins pages */
    struct mark mark[GROUP_MAX_MEMBERS];
    double flops; /* estimated, of the slices */
    uint64_t launched_ns;
};

/* Memory that a client offers, as it says. */
struct backend_offer {
    enum wire_memory_kind kind;
    uint64_t bytes;
    uint64_t reserve;                  /* CUDA_VMM: the most that extend may make of it */
    int fd;                            /* SHM, CUDA_VMM; stays the caller's */
    uint8_t handle[WIRE_HANDLE_BYTES]; /* CUDA_IPC */
    int pid;                           /* who offers it, as the kernel says */
    uint32_t uid;
};

struct backend;

struct backend_ops {
    /* Makes the offered memory visible to the device, `bytes` of it and not less. Once per offer, even
     * if another offer was of the same memory. false: *error says why. */
    bool (*map)(struct backend *backend, const struct backend_offer *offer, void **base,
        struct wire_error *error);

    /* One more piece behind the `bytes` that a CUDA_VMM mapping has; base stays. NULL: never. */
    bool (*extend)(struct backend *backend, void *base, uint64_t bytes,
        const struct backend_offer *piece, struct wire_error *error);

    /* `bytes` with all pieces. */
    void (*unmap)(struct backend *backend, void *base, uint64_t bytes);

    /* Lets the device write a control page. *device is where it sees the page's first byte. NULL: this
     * backend's groups have no marks. */
    bool (*pin_page)(
        struct backend *backend, struct page *page, void **device, struct wire_error *error);
    void (*unpin_page)(struct backend *backend, struct page *page);

    /* The fastest family that computes the problem, or NULL with a sentence in static memory. Any
     * thread. */
    const struct attn_family *(*choose)(struct backend *backend, enum attn_direction direction,
        const struct attn_problem *problem, const char **why);

    /* Starts a group; it stays the caller's and unchanged until poll returns it. Never waits for
     * another group; a backend without a device of its own may run it to the end here.
     * WIRE_OK, or why it was not started (poll will not return it). */
    enum wire_status (*submit)(struct backend *backend, struct group *group);

    /* The next group that has ended with its outputs complete and its marks written, in any order, or
     * NULL. *status is WIRE_OK or what went wrong with the whole group; of the marks of one that went
     * wrong none was written. Does not return when the device is lost (a sticky error): the daemon
     * says so and ends with EX_SOFTWARE, for whatever comes then would be wrong. */
    struct group *(*poll)(struct backend *backend, enum wire_status *status);

    /* Called now and then while nothing is to be run. As poll it does not return when the device is
     * lost, so that clients learn of it before their next request. NULL: cannot be lost. */
    void (*look)(struct backend *backend);

    void (*destroy)(struct backend *backend);
};

/* What clients and operators are told, beside the device's name. Zeroes where there is no such thing. */
struct backend_facts {
    char driver[WIRE_NAME_BYTES]; /* its version, as it says */
    enum wire_mps mps;
    bool checks_exporter; /* whether a CUDA_IPC handle must be of the process that sends it */
    int capability; /* as of attn_family_capability(): families that need more are not in use */
};

struct backend {
    const struct backend_ops *ops;
    enum wire_device_kind device_kind;
    char device_name[WIRE_NAME_BYTES];
    uint8_t device_uuid[WIRE_UUID_BYTES]; /* zeroes for the processor */
    unsigned max_groups;                  /* that may run at a time: submit is not called beyond */
    uint64_t fill_tiles;                  /* that keep the device busy; 0: any number does */
    double flops_per_second;              /* a first guess for estimating how long a group runs */
    double flops_per_byte;                /* what touching memory costs, as if it were computing */
    double step_flops;     /* likewise, what a tile takes for each block or sequence it comes to */
    double max_tile_flops; /* the most that one tile may take: whatever runs next waits for it */
    struct backend_facts facts;
    void *workspace; /* memory for the kernels' scratch, 64-byte aligned, of the device */
    uint64_t workspace_bytes;
};

/* Worker threads over the cpu families. threads 0: one per processor this process may use; the
 * engine thread is worker 0. NULL: out of memory or threads. destroy() frees it. */
struct backend *backend_cpu_create(unsigned threads, uint64_t workspace_bytes);

/* The GPU that `device` names: an index in the driver's order or a UUID ("GPU-..." or a unique
 * beginning of it). NULL: *error says why there is none. Only in builds with CUDA. */
struct backend *backend_cuda_create(
    const char *device, uint64_t workspace_bytes, struct wire_error *error);

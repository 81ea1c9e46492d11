/*
 * What the daemon needs of a device: see shared memory, run groups of problems, say when they are done.
 *
 * A backend embeds struct backend as its first member. map is called on the I/O thread, submit and
 * poll on the engine thread, unmap on the reaper's, all three at the same time; the rest while none
 * runs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attn.h"
#include "wire.h"

#define GROUP_MAX_MEMBERS 128

/* Slices that one launch runs together, and a place for the engine to know them again. */
struct group {
    uint64_t id; /* from 1 */
    enum attn_direction direction;
    const struct attn_family *family;
    uint32_t key; /* attn_group_key() of all members */
    size_t members;
    struct attn_slice slice[GROUP_MAX_MEMBERS];
    struct job *job[GROUP_MAX_MEMBERS]; /* slice i is of job i */
    double flops;                       /* estimated, of the slices */
    uint64_t launched_ns;
};

struct backend;

struct backend_ops {
    /* Makes `bytes` of the memory behind `fd` visible. false: *error says why. The descriptor stays
     * the caller's. */
    bool (*map)(
        struct backend *backend, int fd, uint64_t bytes, void **base, struct wire_error *error);
    void (*unmap)(struct backend *backend, void *base, uint64_t bytes);

    /* The fastest family that computes the problem, or NULL with a sentence in static memory. Any
     * thread. */
    const struct attn_family *(*choose)(struct backend *backend, enum attn_direction direction,
        const struct attn_problem *problem, const char **why);

    /* Starts a group; it stays the caller's and unchanged until poll returns it. Never waits for
     * another group; a backend without a device of its own may run it to the end here.
     * WIRE_OK, or why it was not started (poll will not return it). */
    enum wire_status (*submit)(struct backend *backend, struct group *group);

    /* The next group that has ended with its outputs complete, in any order, or NULL. *status is
     * WIRE_OK or what went wrong with the whole group. */
    struct group *(*poll)(struct backend *backend, enum wire_status *status);

    void (*destroy)(struct backend *backend);
};

struct backend {
    const struct backend_ops *ops;
    enum wire_device_kind device_kind;
    char device_name[WIRE_NAME_BYTES];
    unsigned max_groups;     /* that may run at a time: submit is not called beyond */
    double flops_per_second; /* a first guess for estimating how long a group runs */
    void *workspace;         /* memory for the kernels' scratch, 64-byte aligned, of the device */
    uint64_t workspace_bytes;
};

/* Worker threads over the cpu families. threads 0: one per processor this process may use; the
 * engine thread is worker 0. NULL: out of memory or threads. destroy() frees it. */
struct backend *backend_cpu_create(unsigned threads, uint64_t workspace_bytes);

/*
 * The control page: the memory in which a client and the daemon see each other's progress.
 *
 * The client makes it (memfd of exactly sizeof(struct page), sealed) and passes it to every daemon
 * that it talks to, so that its counters outlive a daemon. To the daemon all of it is hints from an
 * untrusted writer: it never reads back what it wrote itself, and a client that lies here hurts
 * nobody else.
 *
 * Counters are cyclic 32-bit sequence numbers, compared by page_reached(). A lane's numbers start at 1.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

#define PAGE_MAGIC UINT32_C(0x61747031) /* "atp1" */
#define PAGE_LANES 31
#define PAGE_RESULTS 64 /* per lane; also the most requests of a lane in flight */
#define PAGE_CACHE_LINE 64

struct page_result {
    _Atomic uint32_t sequence; /* the status belongs to this number; another while it is written */
    _Atomic uint32_t status;   /* enum wire_status */
};

struct page_lane {
    /* The client's (or its stream's): the inputs of all requests up to this one are complete. */
    _Alignas(PAGE_CACHE_LINE) _Atomic uint32_t ready;
    /* The client's threads that sleep on `done` or are about to: not 0 makes the daemon wake them. */
    _Alignas(PAGE_CACHE_LINE) _Atomic uint32_t sleepers;
    /* The daemon's: launched, or about to be. */
    _Alignas(PAGE_CACHE_LINE) _Atomic uint32_t started;
    /* The daemon's or the device's: all requests up to this one have ended and their outputs are
     * complete. Also the futex word. Results are written before `done` passes them. */
    _Alignas(PAGE_CACHE_LINE) _Atomic uint32_t done;
    _Alignas(
        PAGE_CACHE_LINE) struct page_result results[PAGE_RESULTS]; /* of sequence % PAGE_RESULTS */
};

struct page {
    _Alignas(PAGE_CACHE_LINE) uint32_t magic;
    uint32_t lanes;
    uint32_t results;
    struct page_lane lane[PAGE_LANES];
};

/* Whether a cyclic counter has come to `sequence` or past it. */
static inline bool page_reached(uint32_t counter, uint32_t sequence)
{
    return (int32_t)(counter - sequence) >= 0;
}

/* Client: a new sealed page, mapped. *fd stays open for passing on; the caller closes it and calls
 * page_unmap(). 0 or -errno. */
int page_create(int *fd, struct page **page);

/* Daemon: maps a client's page if it is tmpfs, sealed against resizing and further seals, of the exact
 * size and fully allocated; otherwise says in `error` what is wrong. The caller keeps the descriptor. */
bool page_map(int fd, struct page **page, struct wire_error *error);

void page_unmap(struct page *page); /* accepts NULL */

/* Daemon: the result of `sequence`, then `done` up to it, then wakes sleepers. */
void page_finish(struct page_lane *lane, uint32_t sequence, enum wire_status status);

/* Daemon: the steps of it before and after `done`, where it is the device that writes that. */
void page_write_result(struct page_lane *lane, uint32_t sequence, enum wire_status status);
void page_wake(struct page_lane *lane);

/* Client: the result of `sequence`, which `done` has reached; false if it was overwritten since or
 * the daemon never wrote it. */
bool page_result(const struct page_lane *lane, uint32_t sequence, enum wire_status *status);

/* Client: sleeps until `done` changes from `seen` or the time is over, at most a millisecond; may
 * return early. Several threads may sleep on one lane. */
void page_sleep(struct page_lane *lane, uint32_t seen, int64_t timeout_ns);

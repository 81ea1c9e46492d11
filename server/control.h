/*
 * A session's control page in the daemon's and the device's sight. Workers map it and let it go.
 *
 * I/O thread only, which collects from the workers; what the page holds is page.h's and the engine's.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "page.h"
#include "wire.h"
#include "worker.h"

struct control {
    struct worker_task task; /* first */
    struct backend *backend; /* borrowed */
    struct page *page;       /* NULL: not yet, or it failed */
    void *device;            /* where the device sees it; NULL: it does not */
    int fd;                  /* the client's; -1: closed */
    bool is_pinned;
    bool is_opening; /* a worker is at it */
    struct wire_error error;
    void (*done)(void *context, struct control *control);
    void *context;
};

/* Has a worker map and pin the page behind fd, and close that if it succeeds. Then `done` is called on
 * the thread that collects: with a page, or without and with an error, and with fd open. NULL: out of
 * memory. */
struct control *control_open(struct backend *backend, struct worker *mapper, uint32_t uid, int fd,
    void (*done)(void *context, struct control *control), void *context);

/* Has a worker unpin and unmap it. Not while it is opening. */
void control_close(struct control *control, struct worker *unmapper);

/* How many pages of that user wait to be unmapped. */
unsigned control_closings(struct worker *unmapper, uint32_t uid);

/*
 * Calls in the order of a CUDA stream: which device and context they are for, and what the stream is
 * given to do: say that inputs are ready, wait until the daemon is done, say that it is past that.
 *
 * A client's streams are all of one context: that of its first such call, for which the control page is
 * registered with the driver then. No mutex is held while the driver is called: it may wait there for
 * the device, and the device for the daemon.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "driver.h"
#include "lane.h"
#include "page.h"
#include "wire.h"

/* Numbers that streams write. */
struct stream_marks {
    _Atomic uint32_t passed[PAGE_LANES]; /* as lane.h says */
};

struct streams {
    pthread_mutex_t mutex;      /* of the first call */
    void *_Atomic context;      /* NULL: none was made yet */
    _Atomic int ordinal;        /* of the daemon's device in this process; -1: not known yet */
    uint64_t page;              /* as the device sees it */
    uint64_t marks_page;        /* likewise: */
    struct stream_marks *marks; /* owned */

    /* By lane: sequences from one to the other will never be ready, for the context has failed. */
    _Atomic bool broken;
    uint64_t lost_after[PAGE_LANES];
    uint64_t lost_to[PAGE_LANES];
};

/* A call on its way. */
struct stream_call {
    void *stream;
    int ordinal; /* of the tensors' device */
    struct lane_key key;
    struct driver_scope scope;
};

void stream_init(struct streams *streams);

/* Checks that the stream can be used with this daemon and did not fail before, and makes its context
 * current until stream_leave(), which only is called after ATTND_OK. */
enum attnd_status stream_enter(
    struct attnd *client, void *stream, int ordinal, struct stream_call *call);
void stream_leave(struct attnd *client, const struct stream_call *call);

/* Gives the stream its part in requests that were sent: those up to `last`, `count` of them. On failure
 * they have ended somehow, and the stream knows nothing of them. */
enum attnd_status stream_enqueue(struct attnd *client, const struct stream_call *call,
    unsigned lane, uint64_t last, size_t count);

/* Looks whether the streams' context has failed, as by a fault of the program's own kernels. Then what
 * they will never say is ready is let go by hand, so that nobody waits for it. */
void stream_check(struct attnd *client);

/* Whether the request is one of those. Any thread. */
bool stream_has_lost(const struct attnd *client, unsigned lane, uint64_t sequence);

/* What failed on the stream is forgotten. */
enum attnd_status stream_reset(struct attnd *client, void *stream);

/* Releases what the driver has. Of a stream that does not come past its waits in time the page stays
 * where it is, for the device will look there. Nobody uses the client. */
void stream_finish(struct attnd *client);

/* Behind stream_finish(), and behind the thread that watches; in a child of fork() all that is to do. */
void stream_free(struct streams *streams);

/*
 * Lanes: the ordered sequences of requests on the control page, which stream has which, what is in
 * flight, and the failures of requests that ended.
 *
 * Sequences are 64-bit here and never repeat; their low halves travel. Guarded by the client's mutex,
 * which callers hold except where a function says so.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "page.h"
#include "wire.h"

/* A submission that waits for room, in the order of arrival. */
struct lane_turn {
    struct lane_turn *next;
    void *stream;
    size_t count;
    int64_t patience; /* deadline: until then others may overtake it, so that no room lies idle */
};

#define LANE_FAILURES 256 /* remembered, as attnd.h says */

struct lane {
    void *stream;            /* whose requests it takes, while any has not ended */
    _Atomic uint64_t sent;   /* the last sequence given away; the first is 1 */
    _Atomic uint64_t reaped; /* up to here the results have been read */
};

struct lane_failure {
    unsigned lane;
    uint64_t sequence; /* 0: empty */
    bool told;         /* the daemon's sentence is there */
    int64_t patience;  /* deadline: a sentence that comes later is not waited for */
    struct wire_error error;
};

struct lanes {
    struct page *page; /* borrowed */
    uint64_t in_flight;
    uint64_t max_in_flight;
    struct lane_turn *first_turn; /* borrowed from their submissions */
    struct lane lane[PAGE_LANES];
    struct lane_failure failure[LANE_FAILURES]; /* a ring */
    size_t next_failure;
    bool any_failed;
    pthread_cond_t told; /* with the client's mutex */
};

void lane_init(struct lanes *lanes, struct page *page, uint64_t max_in_flight);
void lane_finish(struct lanes *lanes);

/* Queues up for lane_pick(); lane_leave() once it is sent or given up. */
void lane_enter(struct lanes *lanes, struct lane_turn *turn);
void lane_leave(struct lanes *lanes, struct lane_turn *turn);

/* Whether it may go before those that came earlier. Those that have lost patience it may only overtake
 * where another stream's own lane holds them up. */
bool lane_is_turn(struct lanes *lanes, const struct lane_turn *turn);

/* The lane on which `count` more requests of the stream may go now; false: no room. */
bool lane_pick(struct lanes *lanes, void *stream, size_t count, unsigned *lane);

/* `count` requests went out on it. Returns the last one's sequence. */
uint64_t lane_advance(struct lanes *lanes, unsigned lane, size_t count);

/* Reads the results that are there. */
void lane_reap(struct lanes *lanes, unsigned lane);

/* What to sleep on until there is room for the stream: the next request to end of its lane, else of
 * any. false: nothing is in flight. */
bool lane_oldest(struct lanes *lanes, const void *stream, unsigned *lane, uint64_t *sequence);

/* The daemon said why a request failed. */
void lane_tell(
    struct lanes *lanes, uint32_t lane, uint32_t sequence, const struct wire_error *error);

/* The first failure among the last `count` requests up to `sequence`, or NULL. */
struct lane_failure *lane_find_failure(
    struct lanes *lanes, unsigned lane, uint64_t sequence, size_t count);

/* Whether the request has ended. Any thread, without the mutex. */
bool lane_ended(struct lanes *lanes, unsigned lane, uint64_t sequence);

/* Sleeps until something may have ended on the lane, at most 1 ms. Any thread, without the mutex. */
void lane_sleep(struct lanes *lanes, unsigned lane, uint64_t sequence, int64_t timeout_ns);

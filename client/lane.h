/*
 * Lanes: the ordered sequences of requests on the control page, which stream has which, what is in
 * flight, the failures of requests that ended, and what they poison.
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

/* A stream: a number of the caller's choice, or the CUDA driver's number of a stream of the device. */
struct lane_key {
    uint64_t id;
    bool device;
};

/* A submission that waits for room, in the order of arrival. */
struct lane_turn {
    struct lane_turn *next;
    struct lane_key key;
    size_t count;
    int64_t patience; /* deadline: until then others may overtake it, so that no room lies idle */
};

#define LANE_FAILURES 256 /* remembered, as attnd.h says */

struct lane {
    struct lane_key key;     /* whose requests it takes, while it is not free */
    _Atomic uint64_t sent;   /* the last sequence given away; the first is 1 */
    _Atomic uint64_t reaped; /* up to here the results have been read */
    _Atomic uint64_t final;  /* how far it had come when lanes were abandoned */
    bool enqueuing;    /* the last submission is sent, but the stream does not know of it yet */
    uint32_t epoch;    /* of a device stream's requests: 1 and up */
    uint64_t forgiven; /* failures up to here poison nothing */
    uint64_t poisoned; /* the first failure beyond; 0: none */
    struct wire_error poison; /* its sentence */
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

    /* By lane: device streams are through with everything up to here. NULL: none was used yet. */
    _Atomic uint32_t *_Atomic passed; /* borrowed */
    _Atomic bool abandoned;           /* the daemon ends nothing any more */
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

/* From now on there are device streams. `passed` has a number per lane. */
void lane_watch_streams(struct lanes *lanes, _Atomic uint32_t *passed);

/* Queues up for lane_pick(); lane_leave() once it is sent or given up. */
void lane_enter(struct lanes *lanes, struct lane_turn *turn);
void lane_leave(struct lanes *lanes, struct lane_turn *turn);

/* Whether it may go before those that came earlier. Those that have lost patience it may only overtake
 * where another stream's own lane holds them up. */
bool lane_is_turn(struct lanes *lanes, const struct lane_turn *turn);

/* The lane on which `count` more requests of the stream may go now; false: no room. */
bool lane_pick(struct lanes *lanes, struct lane_key key, size_t count, unsigned *lane);

/* Whether there is no room because all lanes are those of poisoned streams. */
bool lane_all_poisoned(struct lanes *lanes);

/* The lane of a poisoned stream, or NULL; *told: its sentence will become no better. */
const struct lane *lane_find_poisoned(struct lanes *lanes, struct lane_key key, bool *told);

/* Whatever failed so far on the stream's lane, or fails of what was sent so far, poisons it no more. */
void lane_reset(struct lanes *lanes, struct lane_key key);

/* `count` requests went out on it. Returns the last one's sequence. */
uint64_t lane_advance(struct lanes *lanes, unsigned lane, size_t count);

/* Reads the results that are there. */
void lane_reap(struct lanes *lanes, unsigned lane);

/* What to sleep on until there is room for the stream: the next request to end of its lane, else of
 * any. false: nothing is in flight. */
bool lane_oldest(struct lanes *lanes, struct lane_key key, unsigned *lane, uint64_t *sequence);

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

/* Whether device streams are through with all that was sent on the lane. Likewise. */
bool lane_passed(struct lanes *lanes, unsigned lane);

/* The daemon has gone: nothing ends any more, and no stream of a device waits for it. To be called again
 * while it returns true: streams are yet to come past their waits, and the last words of a daemon's
 * device could set the counters back. Likewise without the mutex. */
bool lane_abandon(struct lanes *lanes);

#include "lane.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"

#define TURN_NS 100000000     /* a submission waits longer only for earlier ones */
#define SENTENCE_NS 200000000 /* a failure's sentence travels by message, behind its status */

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* How far the lane has come. A daemon that counts past what was sent is not believed. */
static uint64_t ended_up_to(struct lanes *lanes, unsigned lane)
{
    uint64_t reaped = atomic_load(&lanes->lane[lane].reaped);
    uint32_t done = atomic_load_explicit(&lanes->page->lane[lane].done, memory_order_acquire);
    if (atomic_load(&lanes->abandoned)) { /* behind `done`: it may be what lane_abandon() wrote */
        return larger(atomic_load(&lanes->lane[lane].final), reaped);
    }
    uint64_t sent = atomic_load(&lanes->lane[lane].sent);
    uint32_t ahead = done - (uint32_t)reaped;
    return page_reached(done, (uint32_t)reaped) && reaped + ahead <= sent ? reaped + ahead : reaped;
}

static uint64_t unreaped(const struct lane *lane)
{
    return atomic_load(&lane->sent) - atomic_load(&lane->reaped);
}

static struct lane_failure *add_failure(struct lanes *lanes, unsigned lane, uint64_t sequence)
{
    struct lane_failure *failure = &lanes->failure[lanes->next_failure];
    lanes->next_failure = (lanes->next_failure + 1) % LANE_FAILURES;
    memset(failure, 0, sizeof *failure);
    failure->lane = lane;
    failure->sequence = sequence;
    failure->patience = clock_deadline(SENTENCE_NS);
    lanes->any_failed = true;
    return failure;
}

static void keep_failure(
    struct lanes *lanes, unsigned lane, uint64_t sequence, enum wire_status status)
{
    struct lane *own = &lanes->lane[lane];
    struct lane_failure *failure = lane_find_failure(lanes, lane, sequence, 1);
    if (!failure) { /* else the sentence was faster than we */
        failure = add_failure(lanes, lane, sequence);
        (void)wire_fail(&failure->error, status, "the request failed; the daemon did not say why");
    }
    if (own->key.device && own->poisoned == 0 && sequence > own->forgiven) {
        own->poisoned = sequence;
        own->poison = failure->error;
    }
}

static bool has_space(const struct lane *lane, size_t count)
{
    return unreaped(lane) + count <= PAGE_RESULTS && !lane->enqueuing;
}

static bool is_same(struct lane_key a, struct lane_key b)
{
    return a.id == b.id && a.device == b.device;
}

/* A stream that has not come past its own writes to the lane would set back the next one's. */
static bool is_free(struct lanes *lanes, unsigned index)
{
    const struct lane *lane = &lanes->lane[index];
    return unreaped(lane) == 0 && !lane->enqueuing && lane->poisoned == 0 &&
           (!lane->key.device || lane_passed(lanes, index));
}

/* The stream's own lane while it has one, else one that nobody uses. */
static bool find_lane(struct lanes *lanes, struct lane_key key, unsigned *found)
{
    bool any = false;
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        lane_reap(lanes, i);
        bool idle = is_free(lanes, i);
        if (!idle && is_same(lanes->lane[i].key, key)) {
            *found = i;
            return true;
        }
        if (idle && !any) {
            *found = i;
            any = true;
        }
    }
    return any;
}

/* Whether it waits for nothing but earlier requests of its own stream. */
static bool is_held_up(struct lanes *lanes, const struct lane_turn *turn)
{
    unsigned lane = 0;
    return find_lane(lanes, turn->key, &lane) && !has_space(&lanes->lane[lane], turn->count);
}

void lane_init(struct lanes *lanes, struct page *page, uint64_t max_in_flight)
{
    clock_init_condition(&lanes->told);
    lanes->page = page;
    lanes->max_in_flight = max_in_flight;
}

void lane_finish(struct lanes *lanes)
{
    (void)pthread_cond_destroy(&lanes->told);
}

void lane_watch_streams(struct lanes *lanes, _Atomic uint32_t *passed)
{
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        atomic_store(&passed[i], (uint32_t)atomic_load(&lanes->lane[i].sent));
    }
    atomic_store(&lanes->passed, passed);
}

void lane_enter(struct lanes *lanes, struct lane_turn *turn)
{
    struct lane_turn **link = &lanes->first_turn;
    while (*link) {
        link = &(*link)->next;
    }
    turn->next = NULL;
    turn->patience = clock_deadline(TURN_NS);
    *link = turn;
}

void lane_leave(struct lanes *lanes, struct lane_turn *turn)
{
    struct lane_turn **link = &lanes->first_turn;
    while (*link != turn) {
        link = &(*link)->next;
    }
    *link = turn->next;
}

bool lane_is_turn(struct lanes *lanes, const struct lane_turn *turn)
{
    for (const struct lane_turn *other = lanes->first_turn; other != turn; other = other->next) {
        if (clock_left_ns(other->patience, 1) == 0 &&
            (is_same(other->key, turn->key) || !is_held_up(lanes, other))) {
            return false;
        }
    }
    return true;
}

bool lane_pick(struct lanes *lanes, struct lane_key key, size_t count, unsigned *lane)
{
    if (!find_lane(lanes, key, lane) || lanes->in_flight + count > lanes->max_in_flight ||
        !has_space(&lanes->lane[*lane], count)) {
        return false;
    }
    struct lane *own = &lanes->lane[*lane];
    own->key = key;
    own->epoch += own->epoch == 0;
    return true;
}

bool lane_all_poisoned(struct lanes *lanes)
{
    bool all = true;
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        all = all && lanes->lane[i].poisoned != 0;
    }
    return all;
}

const struct lane *lane_find_poisoned(struct lanes *lanes, struct lane_key key, bool *told)
{
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        const struct lane *lane = &lanes->lane[i];
        lane_reap(lanes, i);
        if (lane->poisoned != 0 && is_same(lane->key, key)) {
            const struct lane_failure *failure = lane_find_failure(lanes, i, lane->poisoned, 1);
            *told = !failure || failure->told || clock_left_ns(failure->patience, 1) == 0;
            return lane;
        }
    }
    return NULL;
}

void lane_reset(struct lanes *lanes, struct lane_key key)
{
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        struct lane *lane = &lanes->lane[i];
        lane_reap(lanes, i);
        if (is_same(lane->key, key)) {
            lane->forgiven = atomic_load(&lane->sent);
            lane->poisoned = 0;
            lane->epoch += lane->epoch == UINT32_MAX ? 2 : 1;
        }
    }
}

uint64_t lane_advance(struct lanes *lanes, unsigned lane, size_t count)
{
    uint64_t sent = atomic_load(&lanes->lane[lane].sent) + count;
    assert(sent - atomic_load(&lanes->lane[lane].reaped) <= PAGE_RESULTS);
    atomic_store(&lanes->lane[lane].sent, sent);
    lanes->in_flight += count;
    _Atomic uint32_t *passed = atomic_load(&lanes->passed);
    if (passed && !lanes->lane[lane].key.device) {
        atomic_store(&passed[lane], (uint32_t)sent); /* nobody but us has anything to do with it */
    }
    return sent;
}

void lane_reap(struct lanes *lanes, unsigned lane)
{
    struct lane *own = &lanes->lane[lane];
    uint64_t from = atomic_load(&own->reaped);
    uint64_t to = unreaped(own) != 0 ? ended_up_to(lanes, lane) : from;
    for (uint64_t sequence = from + 1; sequence <= to; sequence++) {
        enum wire_status status = WIRE_INTERNAL;
        if (!page_result(&lanes->page->lane[lane], (uint32_t)sequence, &status) ||
            status != WIRE_OK) {
            keep_failure(lanes, lane, sequence, status);
        }
    }
    lanes->in_flight -= to - from;
    atomic_store(&own->reaped, to);
}

bool lane_oldest(struct lanes *lanes, struct lane_key key, unsigned *lane, uint64_t *sequence)
{
    bool any = false;
    for (unsigned i = 0; i < PAGE_LANES; i++) {
        lane_reap(lanes, i);
        if (unreaped(&lanes->lane[i]) != 0 && (!any || is_same(lanes->lane[i].key, key))) {
            *lane = i;
            *sequence = atomic_load(&lanes->lane[i].reaped) + 1;
            any = true;
        }
    }
    return any;
}

void lane_tell(
    struct lanes *lanes, uint32_t lane, uint32_t sequence, const struct wire_error *error)
{
    if (lane >= PAGE_LANES) {
        return;
    }
    uint64_t sent = atomic_load(&lanes->lane[lane].sent);
    uint32_t behind = (uint32_t)sent - sequence;
    if (behind >= sent) {
        return; /* about a request that never was */
    }
    struct lane_failure *failure = lane_find_failure(lanes, lane, sent - behind, 1);
    if (!failure) {
        failure = add_failure(lanes, lane, sent - behind);
    }
    failure->error = *error;
    failure->told = true;
    if (lanes->lane[lane].poisoned == failure->sequence) {
        lanes->lane[lane].poison = *error;
    }
    (void)pthread_cond_broadcast(&lanes->told);
}

struct lane_failure *lane_find_failure(
    struct lanes *lanes, unsigned lane, uint64_t sequence, size_t count)
{
    struct lane_failure *first = NULL;
    for (size_t i = 0; lanes->any_failed && i < LANE_FAILURES; i++) {
        struct lane_failure *failure = &lanes->failure[i];
        bool ours = failure->sequence != 0 && failure->lane == lane &&
                    failure->sequence <= sequence && sequence - failure->sequence < count;
        if (ours && (!first || failure->sequence < first->sequence)) {
            first = failure;
        }
    }
    return first;
}

bool lane_ended(struct lanes *lanes, unsigned lane, uint64_t sequence)
{
    return ended_up_to(lanes, lane) >= sequence;
}

void lane_sleep(struct lanes *lanes, unsigned lane, uint64_t sequence, int64_t timeout_ns)
{
    struct page_lane *shared = &lanes->page->lane[lane];
    uint32_t seen = atomic_load_explicit(&shared->done, memory_order_acquire);
    if (!lane_ended(lanes, lane, sequence)) {
        page_sleep(shared, seen, timeout_ns);
    }
}

bool lane_passed(struct lanes *lanes, unsigned lane)
{
    _Atomic uint32_t *passed = atomic_load(&lanes->passed);
    return !passed ||
           page_reached(atomic_load(&passed[lane]), (uint32_t)atomic_load(&lanes->lane[lane].sent));
}

bool lane_abandon(struct lanes *lanes)
{
    bool waiting = false;
    for (unsigned i = 0; i < PAGE_LANES && !atomic_load(&lanes->abandoned); i++) {
        atomic_store(&lanes->lane[i].final, ended_up_to(lanes, i));
    }
    atomic_store(&lanes->abandoned, true);
    for (unsigned i = 0; i < PAGE_LANES && atomic_load(&lanes->passed); i++) {
        if (!lane_passed(lanes, i)) {
            atomic_store(&lanes->page->lane[i].done, (uint32_t)atomic_load(&lanes->lane[i].sent));
            waiting = true;
        }
    }
    return waiting;
}

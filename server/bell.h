/*
 * A bell: how one thread tells others that something has changed, without a lock. Waiters look at the
 * bell, then at whatever it announces, then wait for a ring after that look; no ring is missed.
 *
 * Ringing costs a system call only while somebody sleeps. Any thread may call anything.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#define BELL_FOREVER INT64_C(-1)

struct bell {
    _Atomic uint32_t rings;
    _Atomic uint32_t sleepers;
};

void bell_init(struct bell *bell);

/* To be taken before the caller looks for work. */
uint32_t bell_look(const struct bell *bell);

/* Wakes up to `most` sleepers. What the caller wrote before is seen by those that wake or look. */
void bell_ring(struct bell *bell, unsigned most);

/* Sleeps until a ring after the look that gave `seen` or the time is over; may return early. */
void bell_wait(struct bell *bell, uint32_t seen, int64_t timeout_ns);

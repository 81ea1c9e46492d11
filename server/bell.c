#include "bell.h"

#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void bell_init(struct bell *bell)
{
    atomic_init(&bell->rings, 0);
    atomic_init(&bell->sleepers, 0);
}

uint32_t bell_look(const struct bell *bell)
{
    return atomic_load(&bell->rings);
}

/* Sequentially consistent on both sides: either the ringer sees the sleeper and wakes it, or the
 * sleeper's kernel call sees the new count and does not sleep. */
void bell_ring(struct bell *bell, unsigned most)
{
    atomic_fetch_add(&bell->rings, 1);
    if (atomic_load(&bell->sleepers) != 0) {
        int wake = most > INT_MAX ? INT_MAX : (int)most;
        syscall(SYS_futex, &bell->rings, FUTEX_WAKE_PRIVATE, wake, NULL, NULL, 0);
    }
}

void bell_wait(struct bell *bell, uint32_t seen, int64_t timeout_ns)
{
    struct timespec time = {
        .tv_sec = timeout_ns / 1000000000,
        .tv_nsec = timeout_ns % 1000000000,
    };
    atomic_fetch_add(&bell->sleepers, 1);
    syscall(
        SYS_futex, &bell->rings, FUTEX_WAIT_PRIVATE, seen, timeout_ns < 0 ? NULL : &time, NULL, 0);
    atomic_fetch_sub(&bell->sleepers, 1);
}

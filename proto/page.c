#include "page.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sealed.h"

#define MAX_SLEEP_NS \
    1000000 /* should a daemon die between `done` and the wake: nobody waits longer */

/* The kernel reads and writes futex words and control pages as they lie in memory. */
_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "atomic words have the size of words");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "atomic words need no lock");
_Static_assert(
    sizeof(struct page) == PAGE_CACHE_LINE + PAGE_LANES * (4 * PAGE_CACHE_LINE + PAGE_RESULTS * 8),
    "the layout of the page is part of the protocol");

int page_create(int *fd, struct page **page)
{
    int created = sealed_create("attnd-page", sizeof(struct page));
    if (created < 0) {
        return created;
    }
    struct page *mapped = sealed_map(created, sizeof(struct page));
    if (mapped == NULL) {
        int code = errno;
        close(created);
        return -code;
    }
    mapped->magic = PAGE_MAGIC;
    mapped->lanes = PAGE_LANES;
    mapped->results = PAGE_RESULTS;
    *fd = created;
    *page = mapped;
    return 0;
}

bool page_map(int fd, struct page **page, struct wire_error *error)
{
    struct wire_error reason;

    if (!sealed_check(fd, sizeof(struct page), &reason)) {
        return wire_fail(error, reason.status, "control page: %.200s", reason.detail);
    }
    struct page *mapped = sealed_map(fd, sizeof(struct page));
    if (mapped == NULL) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "control page: it cannot be mapped: %s",
            strerrordesc_np(errno));
    }
    if (mapped->magic != PAGE_MAGIC || mapped->lanes != PAGE_LANES ||
        mapped->results != PAGE_RESULTS) {
        page_unmap(mapped);
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "control page: magic, lanes or results are not those of this protocol version");
    }
    *page = mapped;
    return true;
}

void page_unmap(struct page *page)
{
    if (page != NULL) {
        munmap(page, sizeof(*page));
    }
}

void page_write_result(struct page_lane *lane, uint32_t sequence, enum wire_status status)
{
    struct page_result *result = &lane->results[sequence % PAGE_RESULTS];

    /* sequence - 1 belongs to another place of the ring: a reader of this one's old result that
     * sees its new status also sees that it is being written. */
    atomic_store(&result->sequence, sequence - 1);
    atomic_store(&result->status, (uint32_t)status);
    atomic_store(&result->sequence, sequence);
}

/*
 * No wake is lost: a sleeper adds itself to `sleepers` and then looks at `done`, the daemon writes
 * `done`, or learns that the device has, and then looks at `sleepers`. All of these are sequentially
 * consistent, so at least one side sees the other's write: the sleeper the new `done`, or the daemon
 * the sleeper. In the second case the kernel settles the rest: it compares the futex word again while
 * it holds the queue's lock.
 */
void page_wake(struct page_lane *lane)
{
    if (atomic_load(&lane->sleepers) != 0) {
        syscall(SYS_futex, &lane->done, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

void page_finish(struct page_lane *lane, uint32_t sequence, enum wire_status status)
{
    page_write_result(lane, sequence, status);
    atomic_store(&lane->done, sequence);
    page_wake(lane);
}

bool page_result(const struct page_lane *lane, uint32_t sequence, enum wire_status *status)
{
    const struct page_result *result = &lane->results[sequence % PAGE_RESULTS];

    uint32_t before = atomic_load(&result->sequence);
    uint32_t value = atomic_load(&result->status);
    uint32_t after = atomic_load(&result->sequence);
    if (before != sequence || after != sequence || value >= WIRE_STATUS_END) {
        return false;
    }
    *status = (enum wire_status)value;
    return true;
}

void page_sleep(struct page_lane *lane, uint32_t seen, int64_t timeout_ns)
{
    if (timeout_ns <= 0) {
        return;
    }
    struct timespec timeout = {
        .tv_nsec = timeout_ns < MAX_SLEEP_NS ? (long)timeout_ns : MAX_SLEEP_NS};

    atomic_fetch_add(&lane->sleepers, 1);
    if (atomic_load(&lane->done) == seen) {
        syscall(SYS_futex, &lane->done, FUTEX_WAIT, seen, &timeout, NULL, 0);
    }
    atomic_fetch_sub(&lane->sleepers, 1);
}

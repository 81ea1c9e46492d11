#include "page.h"

#include "sealed.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct page *create(void)
{
    struct page *page;
    int fd;

    cr_assert_eq(page_create(&fd, &page), 0);
    close(fd);
    return page;
}

Test(page, what_a_client_creates_the_daemon_maps)
{
    struct page *ours;
    struct page *theirs;
    struct wire_error error;
    int fd;

    cr_assert_eq(page_create(&fd, &ours), 0);
    cr_assert(page_map(fd, &theirs, &error), "%s", error.detail);
    close(fd);
    cr_expect_neq(ours, theirs);
    atomic_store(&ours->lane[30].ready, 7);
    cr_expect_eq(atomic_load(&theirs->lane[30].ready), 7);
    page_finish(&theirs->lane[30], 1, WIRE_DEVICE_FAULT);
    enum wire_status status;
    cr_expect_eq(atomic_load(&ours->lane[30].done), 1);
    cr_assert(page_result(&ours->lane[30], 1, &status));
    cr_expect_eq(status, WIRE_DEVICE_FAULT);
    page_unmap(ours);
    page_unmap(theirs);
    page_unmap(NULL);
}

Test(page, each_lane_counter_has_a_cache_line_of_its_own)
{
    cr_expect_eq(offsetof(struct page, lane), PAGE_CACHE_LINE);
    cr_expect_eq(offsetof(struct page_lane, ready), 0);
    cr_expect_eq(offsetof(struct page_lane, sleepers), PAGE_CACHE_LINE);
    cr_expect_eq(offsetof(struct page_lane, started), 2 * PAGE_CACHE_LINE);
    cr_expect_eq(offsetof(struct page_lane, done), 3 * PAGE_CACHE_LINE);
    cr_expect_eq(offsetof(struct page_lane, results), 4 * PAGE_CACHE_LINE);
    cr_expect_eq(sizeof(struct page_lane), 4 * PAGE_CACHE_LINE + 8 * PAGE_RESULTS);
}

static void expect_refused(int fd, const char *sentence)
{
    struct page *page = NULL;
    struct wire_error error = {WIRE_OK, ""};

    cr_expect_not(page_map(fd, &page, &error), "%s", sentence);
    cr_expect_null(page);
    cr_expect(error.status != WIRE_OK);
    cr_expect(strstr(error.detail, "control page: ") == error.detail, "%s", error.detail);
    cr_expect(strstr(error.detail, sentence) != NULL, "\"%s\" does not say \"%s\"", error.detail,
        sentence);
    close(fd);
}

Test(page, memory_that_is_no_page_is_refused)
{
    int unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    cr_assert_eq(posix_fallocate(unsealed, 0, sizeof(struct page)), 0);
    expect_refused(unsealed, "F_SEAL");
    expect_refused(sealed_create("test", sizeof(struct page) - 1), "bytes");
    expect_refused(sealed_create("test", sizeof(struct page) + 4096), "bytes");
    expect_refused(sealed_create("test", sizeof(struct page)), "magic");
    expect_refused(-1, "cannot be examined");
}

Test(page, a_page_of_another_layout_is_refused)
{
    for (int field = 0; field < 3; field++) {
        struct page *page;
        int fd;
        cr_assert_eq(page_create(&fd, &page), 0);
        page->magic += field == 0;
        page->lanes += field == 1;
        page->results -= field == 2;
        expect_refused(fd, "magic, lanes or results");
        page_unmap(page);
    }
}

Test(page, counters_are_compared_in_a_circle)
{
    cr_expect(page_reached(5, 5));
    cr_expect(page_reached(6, 5));
    cr_expect_not(page_reached(4, 5));
    cr_expect(page_reached(2, 0xfffffffe));
    cr_expect_not(page_reached(0xfffffffe, 2));
    cr_expect(page_reached(0x80000004, 5));
    cr_expect_not(page_reached(0x80000005, 5));
}

Test(page, results_of_the_last_64_are_there_and_older_ones_are_not)
{
    struct page *page = create();
    struct page_lane *lane = &page->lane[0];
    const uint32_t first = 0xffffff80; /* so that the numbers pass 0 */
    enum wire_status status;

    for (uint32_t i = 0; i < 200; i++) {
        page_finish(lane, first + i, (enum wire_status)(i % WIRE_STATUS_END));
        cr_assert_eq(atomic_load(&lane->done), first + i);
        for (uint32_t back = 0; back <= i && back < 70; back++) {
            bool there = page_result(lane, first + i - back, &status);
            cr_assert_eq(there, back < PAGE_RESULTS, "%u back at %u", back, i);
            cr_assert(!there || status == (enum wire_status)((i - back) % WIRE_STATUS_END));
        }
        cr_assert_not(page_result(lane, first + i + 1, &status));
    }
    page_unmap(page);
}

Test(page, a_status_that_is_none_is_no_result)
{
    struct page *page = create();
    enum wire_status status = WIRE_OK;

    atomic_store(&page->lane[3].results[1].sequence, 1);
    atomic_store(&page->lane[3].results[1].status, WIRE_STATUS_END);
    cr_expect_not(page_result(&page->lane[3], 1, &status));
    cr_expect_eq(status, WIRE_OK);
    page_unmap(page);
}

Test(page, sleeping_ends_at_once_when_done_has_changed)
{
    struct page *page = create();
    struct page_lane *lane = &page->lane[0];
    int64_t fastest = INT64_MAX;

    page_finish(lane, 1, WIRE_OK);
    for (int i = 0; i < 50; i++) {
        int64_t before = now_ns();
        page_sleep(lane, 0, 1000000000);
        int64_t took = now_ns() - before;
        fastest = took < fastest ? took : fastest;
    }
    cr_expect(fastest < 500000, "%lld ns", (long long)fastest);
    cr_expect_eq(atomic_load(&lane->sleepers), 0);
    page_unmap(page);
}

Test(page, sleeping_takes_the_time_given_but_no_more_than_a_millisecond)
{
    struct page *page = create();
    struct page_lane *lane = &page->lane[0];
    int64_t fastest = INT64_MAX;

    int64_t before = now_ns();
    page_sleep(lane, 0, 300000);
    cr_expect(now_ns() - before >= 300000);
    for (int i = 0; i < 10; i++) {
        before = now_ns();
        page_sleep(lane, 0, INT64_MAX);
        int64_t took = now_ns() - before;
        cr_expect(took >= 1000000);
        fastest = took < fastest ? took : fastest;
    }
    cr_expect(fastest < 100000000, "%lld ns", (long long)fastest);
    page_sleep(lane, 0, 0);
    page_sleep(lane, 0, -1);
    cr_expect_eq(atomic_load(&lane->sleepers), 0);
    page_unmap(page);
}

/*
 * A daemon's thread that finishes requests and a client's threads that sleep on them, over two
 * mappings of one page. A program of its own, so that ThreadSanitizer can watch it.
 */
#include "page.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLEEPERS 3
#define REQUESTS 20000
#define WAKES 200
#define SECOND_NS 1000000000

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

struct client {
    struct page_lane *lane;
    uint32_t last;
};

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND_NS + now.tv_nsec;
}

static enum wire_status status_of(uint32_t sequence)
{
    return (enum wire_status)(sequence % 7 == 0 ? sequence % WIRE_STATUS_END : 0);
}

/* Follows `done` to the end. What it passed must have its result, unless it was 64 ago. */
static void *follow(void *context)
{
    const struct client *client = context;
    struct page_lane *lane = client->lane;
    uint32_t seen = 0;
    enum wire_status status;

    while (!page_reached(seen, client->last)) {
        page_sleep(lane, seen, SECOND_NS);
        uint32_t done = atomic_load(&lane->done);
        CHECK(page_reached(done, seen));
        for (uint32_t sequence = seen + 1; page_reached(done, sequence); sequence++) {
            if (page_result(lane, sequence, &status)) {
                CHECK(status == status_of(sequence));
            } else {
                CHECK(page_reached(atomic_load(&lane->done), sequence + PAGE_RESULTS - 1));
            }
        }
        seen = done;
    }
    return NULL;
}

static void *finish(void *context)
{
    const struct client *client = context;

    for (uint32_t sequence = 1; sequence <= client->last; sequence++) {
        if (sequence % 64 == 0) {
            usleep(sequence % 128 ? 10 : 100);
        }
        page_finish(client->lane, sequence, status_of(sequence));
    }
    return NULL;
}

static void all_followers_see_all_results(struct page *client_page, struct page *daemon_page)
{
    struct client client = {&client_page->lane[0], REQUESTS};
    struct client daemon = {&daemon_page->lane[0], REQUESTS};
    pthread_t followers[SLEEPERS];
    pthread_t finisher;

    for (size_t i = 0; i < SLEEPERS; i++) {
        CHECK(pthread_create(&followers[i], NULL, follow, &client) == 0);
    }
    CHECK(pthread_create(&finisher, NULL, finish, &daemon) == 0);
    for (size_t i = 0; i < SLEEPERS; i++) {
        CHECK(pthread_join(followers[i], NULL) == 0);
    }
    CHECK(pthread_join(finisher, NULL) == 0);
    CHECK(atomic_load(&client_page->lane[0].sleepers) == 0);
}

/* Finishes one request each time that somebody has been asleep for a while. */
static void *finish_sleepers(void *context)
{
    const struct client *client = context;

    for (uint32_t sequence = 1; sequence <= client->last; sequence++) {
        while (atomic_load(&client->lane->sleepers) == 0) {
            usleep(10);
        }
        usleep(100);
        page_finish(client->lane, sequence, WIRE_OK);
    }
    return NULL;
}

/* Unwoken sleeps take a millisecond, so shorter ones that saw a change were woken. */
static void sleepers_are_woken(struct page *client_page, struct page *daemon_page)
{
    struct page_lane *lane = &client_page->lane[1];
    struct client daemon = {&daemon_page->lane[1], WAKES};
    pthread_t finisher;
    int woken = 0;
    uint32_t seen = 0;

    CHECK(pthread_create(&finisher, NULL, finish_sleepers, &daemon) == 0);
    while (seen < WAKES) {
        int64_t before = now_ns();
        page_sleep(lane, seen, SECOND_NS);
        int64_t took = now_ns() - before;
        uint32_t done = atomic_load(&lane->done);
        woken += done != seen && took > 80000 && took < 900000;
        seen = done;
    }
    CHECK(pthread_join(finisher, NULL) == 0);
    printf("%d of %d sleeps ended by a wake\n", woken, WAKES);
    CHECK(woken >= WAKES / 10);
}

int main(void)
{
    struct page *client_page;
    struct page *daemon_page;
    struct wire_error error;
    int fd;

    CHECK(page_create(&fd, &client_page) == 0);
    CHECK(page_map(fd, &daemon_page, &error));
    close(fd);
    all_followers_see_all_results(client_page, daemon_page);
    sleepers_are_woken(client_page, daemon_page);
    page_unmap(client_page);
    page_unmap(daemon_page);
    return 0;
}

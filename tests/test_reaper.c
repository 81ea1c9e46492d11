/* The reaper: order, accounts, and an end that nothing holds up. */
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define TASKS 1000

struct numbered {
    struct reaper_task task; /* first */
    unsigned number;
};

static struct numbered numbered[TASKS];
static pthread_t giver;
static atomic_uint done;
static atomic_bool may_pass;

static void count(struct reaper_task *task)
{
    CHECK(((struct numbered *)(void *)task)->number == atomic_fetch_add(&done, 1));
    CHECK(!pthread_equal(pthread_self(), giver));
}

static void get_stuck(struct reaper_task *task)
{
    (void)task;
    while (!atomic_load(&may_pass)) {
        (void)usleep(1000);
    }
    (void)atomic_fetch_add(&done, 1);
}

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void test_all_run_in_order_before_the_end(void)
{
    struct reaper *reaper = reaper_create("test");
    CHECK(reaper != NULL);
    for (unsigned i = 0; i < TASKS; i++) {
        numbered[i] = (struct numbered){.task.work = count, .number = i};
        reaper_give(reaper, &numbered[i].task);
    }
    CHECK(reaper_destroy(reaper));
    CHECK(atomic_load(&done) == TASKS);
}

static void test_weighs_what_has_not_ended(void)
{
    struct reaper_task stuck = {.uid = 1, .weight = 5, .work = get_stuck};
    struct reaper_task other = {.uid = 2, .weight = 7, .work = get_stuck};
    struct reaper *reaper = reaper_create("test");
    CHECK(reaper != NULL);
    atomic_store(&done, 0);
    reaper_give(reaper, &stuck);
    reaper_give(reaper, &other);
    (void)usleep(20000); /* the first is at work now; it counts as before */
    CHECK(reaper_weight(reaper, 1) == 5);
    CHECK(reaper_weight(reaper, 2) == 7);
    CHECK(reaper_weight(reaper, 3) == 0);
    atomic_store(&may_pass, true);
    double start = seconds();
    while (reaper_weight(reaper, 1) + reaper_weight(reaper, 2) != 0) {
        CHECK(seconds() - start < 20);
        (void)usleep(1000);
    }
    CHECK(atomic_load(&done) == 2);
    CHECK(reaper_destroy(reaper));
    atomic_store(&may_pass, false);
}

static void test_closes_descriptors(void)
{
    struct reaper *reaper = reaper_create("test");
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(reaper != NULL && fd >= 0);
    reaper_close(reaper, 0, 1, fd);
    CHECK(reaper_destroy(reaper));
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
}

static void test_what_is_stuck_does_not_hold_up_the_end(void)
{
    static struct reaper_task stuck = {.work = get_stuck};
    struct reaper *reaper = reaper_create("test");
    CHECK(reaper != NULL);
    atomic_store(&done, 0);
    reaper_give(reaper, &stuck);
    double start = seconds();
    CHECK(!reaper_destroy(reaper));
    CHECK(seconds() - start < 10);
    /* The thread left behind goes on by itself. */
    atomic_store(&may_pass, true);
    while (atomic_load(&done) == 0) {
        CHECK(seconds() - start < 30);
        (void)usleep(1000);
    }
    (void)usleep(20000); /* what it does at its end, for a sanitizer to see */
}

int main(void)
{
    giver = pthread_self();
    CHECK(reaper_destroy(NULL));
    test_all_run_in_order_before_the_end();
    test_weighs_what_has_not_ended();
    test_closes_descriptors();
    test_what_is_stuck_does_not_hold_up_the_end();
    return 0;
}

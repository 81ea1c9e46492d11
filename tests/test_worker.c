/* The worker: order, turns, accounts, what is collected, and an end that nothing holds up. */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define TASKS 1000

struct numbered {
    struct worker_task task; /* first */
    unsigned number;
};

static struct numbered numbered[TASKS];
static pthread_t giver;
static atomic_uint done;
static atomic_uint stuck_tasks;
static atomic_bool may_pass;
static uint32_t served[TASKS];
static unsigned collections;

static void count(struct worker_task *task)
{
    CHECK(((struct numbered *)(void *)task)->number == atomic_fetch_add(&done, 1));
    CHECK(!pthread_equal(pthread_self(), giver));
}

static void get_stuck(struct worker_task *task)
{
    (void)task;
    (void)atomic_fetch_add(&stuck_tasks, 1);
    while (!atomic_load(&may_pass)) {
        (void)usleep(1000);
    }
    (void)atomic_fetch_add(&done, 1);
}

static void note_uid(struct worker_task *task)
{
    served[atomic_fetch_add(&done, 1)] = task->uid;
}

static void wake(void *context)
{
    (void)atomic_fetch_add((atomic_uint *)context, 1);
}

static void collected(struct worker_task *task)
{
    CHECK(pthread_equal(pthread_self(), giver));
    task->weight = 0;
    collections++;
}

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void wait_for(const atomic_uint *counter, unsigned value)
{
    double start = seconds();
    while (atomic_load(counter) != value) {
        CHECK(seconds() - start < 20);
        (void)usleep(1000);
    }
}

/* Gives a task that is at work, and stays so until it may pass. */
static void give_stuck(struct worker *worker, struct worker_task *task)
{
    atomic_store(&stuck_tasks, 0);
    worker_give(worker, task);
    wait_for(&stuck_tasks, 1);
}

static void test_all_run_in_order_before_the_end(void)
{
    struct worker *worker = worker_create("test", NULL, NULL);
    CHECK(worker != NULL);
    for (unsigned i = 0; i < TASKS; i++) {
        numbered[i] = (struct numbered){.task.work = count, .number = i};
        worker_give(worker, &numbered[i].task);
    }
    CHECK(worker_destroy(worker));
    CHECK(atomic_load(&done) == TASKS);
}

static void test_weighs_what_has_not_ended(void)
{
    struct worker_task stuck = {.uid = 1, .weight = 5, .work = get_stuck};
    struct worker_task other = {.uid = 2, .weight = 7, .work = get_stuck};
    struct worker *worker = worker_create("test", NULL, NULL);
    CHECK(worker != NULL);
    atomic_store(&done, 0);
    give_stuck(worker, &stuck); /* it counts as before */
    worker_give(worker, &other);
    CHECK(worker_weight(worker, 1) == 5);
    CHECK(worker_weight(worker, 2) == 7);
    worker_weigh(worker, &other, 70);
    CHECK(worker_weight(worker, 1) == 5);
    CHECK(worker_weight(worker, 2) == 70);
    CHECK(worker_weight(worker, 3) == 0);
    atomic_store(&may_pass, true);
    double start = seconds();
    while (worker_weight(worker, 1) + worker_weight(worker, 2) != 0) {
        CHECK(seconds() - start < 20);
        (void)usleep(1000);
    }
    CHECK(atomic_load(&done) == 2);
    CHECK(worker_destroy(worker));
    atomic_store(&may_pass, false);
}

/* However many tasks the first user has, the others' come in turn. */
static void test_users_take_turns(void)
{
    static const uint32_t uids[] = {1, 1, 1, 1, 1, 2, 2, 3};
    static const uint32_t expected[] = {1, 2, 3, 1, 2, 1, 1, 1};
    struct worker_task stuck = {.uid = 9, .work = get_stuck};
    struct worker_task task[8];
    struct worker *worker = worker_create("test", NULL, NULL);
    CHECK(worker != NULL);
    give_stuck(worker, &stuck); /* all others are there before the first of them is chosen */
    atomic_store(&done, 0);
    for (unsigned i = 0; i < 8; i++) {
        task[i] = (struct worker_task){.uid = uids[i], .work = note_uid};
        worker_give(worker, &task[i]);
    }
    /* The stuck one counts as well: it notes itself in slot 0 of `done` and nowhere else. */
    atomic_store(&may_pass, true);
    wait_for(&done, 9);
    CHECK(worker_destroy(worker));
    for (unsigned i = 0; i < 8; i++) {
        CHECK(served[i + 1] == expected[i]);
    }
    atomic_store(&may_pass, false);
}

/* What has been worked on counts until it was collected, by the thread that collects. */
static void test_what_ends_is_collected(void)
{
    atomic_uint wakes = 0;
    struct worker_task task[3];
    struct worker *worker = worker_create("test", wake, &wakes);
    CHECK(worker != NULL);
    atomic_store(&done, 0);
    for (unsigned i = 0; i < 3; i++) {
        task[i] = (struct worker_task){.uid = 4, .weight = 10, .work = note_uid, .done = collected};
    }
    worker_give(worker, &task[0]);
    worker_give(worker, &task[1]);
    wait_for(&wakes, 2);
    CHECK(worker_weight(worker, 4) == 20);
    worker_weigh(worker, &task[1], 15);
    CHECK(worker_weight(worker, 4) == 25);
    CHECK(collections == 0);
    worker_collect(worker);
    CHECK(collections == 2);
    CHECK(worker_weight(worker, 4) == 0);
    worker_give(worker, &task[2]);
    CHECK(worker_destroy(worker));
    CHECK(collections == 3);
}

static void test_closes_descriptors(void)
{
    struct worker *worker = worker_create("test", NULL, NULL);
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(worker != NULL && fd >= 0);
    worker_close(worker, 0, fd);
    CHECK(worker_destroy(worker));
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
}

static void test_weighs_anew_what_is_at_work(void)
{
    atomic_uint wakes = 0;
    struct worker_task stuck = {.uid = 1, .weight = 5, .work = get_stuck, .done = collected};
    struct worker *worker = worker_create("test", wake, &wakes);
    CHECK(worker != NULL);
    give_stuck(worker, &stuck);
    worker_weigh(worker, &stuck, 50);
    CHECK(worker_weight(worker, 1) == 50);
    atomic_store(&may_pass, true);
    wait_for(&wakes, 1);
    CHECK(worker_weight(worker, 1) == 50);
    collections = 0;
    worker_collect(worker);
    CHECK(collections == 1 && worker_weight(worker, 1) == 0);
    CHECK(worker_destroy(worker));
    atomic_store(&may_pass, false);
}

static void test_counts_descriptors_that_are_not_closed(void)
{
    struct worker_task stuck = {.uid = 1, .weight = 5, .work = get_stuck};
    struct worker *worker = worker_create("test", NULL, NULL);
    int pipes[2];
    CHECK(worker != NULL && pipe2(pipes, O_CLOEXEC) == 0);
    worker_give(worker, &stuck);
    worker_close(worker, 1, pipes[0]);
    worker_close(worker, 2, pipes[1]);
    CHECK(worker_closings(worker, 1) == 1 && worker_closings(worker, 2) == 1);
    CHECK(worker_closings(worker, 3) == 0);
    CHECK(worker_weight(worker, 1) == 5 && worker_weight(worker, 2) == 0);
    atomic_store(&may_pass, true);
    double start = seconds();
    while (worker_closings(worker, 1) + worker_closings(worker, 2) != 0) {
        CHECK(seconds() - start < 20);
        (void)usleep(1000);
    }
    CHECK(fcntl(pipes[0], F_GETFD) == -1 && fcntl(pipes[1], F_GETFD) == -1);
    CHECK(worker_destroy(worker));
    atomic_store(&may_pass, false);
}

static void test_what_is_stuck_does_not_hold_up_the_end(void)
{
    static struct worker_task stuck = {.work = get_stuck, .done = collected};
    static atomic_uint wakes;
    struct worker *worker = worker_create("test", wake, &wakes);
    CHECK(worker != NULL);
    atomic_store(&done, 0);
    give_stuck(worker, &stuck);
    unsigned collected_before = collections;
    double start = seconds();
    CHECK(!worker_destroy(worker));
    CHECK(seconds() - start < 10);
    /* The thread left behind goes on by itself. */
    atomic_store(&may_pass, true);
    while (atomic_load(&done) == 0) {
        CHECK(seconds() - start < 30);
        (void)usleep(1000);
    }
    (void)usleep(20000); /* what it does at its end, for a sanitizer to see */
    CHECK(atomic_load(&wakes) == 0);
    CHECK(collections == collected_before);
}

int main(void)
{
    giver = pthread_self();
    CHECK(worker_destroy(NULL));
    test_all_run_in_order_before_the_end();
    test_weighs_what_has_not_ended();
    test_users_take_turns();
    test_what_ends_is_collected();
    test_closes_descriptors();
    test_weighs_anew_what_is_at_work();
    test_counts_descriptors_that_are_not_closed();
    test_what_is_stuck_does_not_hold_up_the_end();
    return 0;
}

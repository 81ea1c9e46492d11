#include "engine.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bell.h"
#include "check.h"
#include "dice.h"
#include "fake_backend.h"

#define SESSIONS 6
#define JOBS 400
#define WORKSPACE 65536
#define PATIENCE_NS 20000000000

/* An engine over the fake backend; the test's thread is its I/O thread and its clients. */
struct bench {
    struct fake_backend fake;
    struct engine *engine;
    struct bell woken;
    struct page *page[SESSIONS];
    int page_fd[SESSIONS];
    struct page *device_page[SESSIONS];  /* the same as a device sees it; NULL: it does not */
    uint32_t next[SESSIONS][PAGE_LANES]; /* sequence of the next job */
    uint32_t in_lane[SESSIONS][PAGE_LANES];
    struct job job[JOBS];
    struct list unused;
    uint32_t ended;
};

static int64_t now_ns(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void sleep_ns(long duration)
{
    const struct timespec time = {.tv_nsec = duration};
    nanosleep(&time, NULL);
}

static void on_wake(void *context)
{
    struct bench *bench = context;
    bell_ring(&bench->woken, 1);
}

static struct bench *create_with_budget(unsigned max_groups, uint64_t group_budget_ns)
{
    struct bench *bench = calloc(1, sizeof(*bench));
    CHECK(bench != NULL);
    fake_backend_init(&bench->fake, max_groups, WORKSPACE);
    bell_init(&bench->woken);
    list_init(&bench->unused);
    for (int i = 0; i < JOBS; i++) {
        list_append(&bench->unused, &bench->job[i].node);
    }
    const struct engine_options options = {
        .backend = &bench->fake.backend,
        .max_jobs = JOBS,
        .max_sessions = SESSIONS,
        .group_budget_ns = group_budget_ns,
        .wake = on_wake,
        .wake_context = bench,
    };
    bench->engine = engine_create(&options);
    CHECK(bench->engine != NULL);
    return bench;
}

static struct bench *create(unsigned max_groups)
{
    return create_with_budget(max_groups, 500000);
}

static void close_page(struct bench *bench, uint32_t session)
{
    page_unmap(bench->page[session]);
    page_unmap(bench->device_page[session]);
    close(bench->page_fd[session]);
    bench->page[session] = NULL;
    bench->device_page[session] = NULL;
}

static void destroy(struct bench *bench)
{
    engine_destroy(bench->engine);
    CHECK(fake_backend_fault(&bench->fake) == NULL);
    fake_backend_finish(&bench->fake);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        if (bench->page[i] != NULL) {
            close_page(bench, i);
        }
    }
    free(bench);
}

static void open_session_on(struct bench *bench, uint32_t session, bool device_sees_page)
{
    struct wire_error error;
    CHECK(page_create(&bench->page_fd[session], &bench->page[session]) == 0);
    CHECK(!device_sees_page ||
          page_map(bench->page_fd[session], &bench->device_page[session], &error));
    for (uint32_t lane = 0; lane < PAGE_LANES; lane++) {
        bench->next[session][lane] = 1;
        CHECK(bench->in_lane[session][lane] == 0);
    }
    engine_open_session(bench->engine, session, 100 + session % 2, bench->page[session],
        bench->device_page[session]);
}

static void open_session(struct bench *bench, uint32_t session)
{
    open_session_on(bench, session, false);
}

static struct page_lane *page_lane(struct bench *bench, uint32_t session, uint32_t lane)
{
    return &bench->page[session]->lane[lane];
}

static void set_ready(struct bench *bench, uint32_t session, uint32_t lane, uint32_t sequence)
{
    atomic_store(&page_lane(bench, session, lane)->ready, sequence);
}

static struct job *make_job(struct bench *bench, uint32_t session, uint32_t lane)
{
    struct list_node *node = list_pop(&bench->unused);
    CHECK(node != NULL);
    struct job *job = list_entry(node, struct job, node);
    memset(job, 0, sizeof(*job));
    job->session = session;
    job->lane = lane;
    job->sequence = bench->next[session][lane]++;
    job->array_first = job->sequence;
    job->direction = ATTN_FORWARD;
    job->family = fake_family(0);
    job->tiles = 1;
    job->flops = 1000;
    job->workspace_bytes = 300;
    bench->in_lane[session][lane]++;
    return job;
}

static struct job *post(struct bench *bench, uint32_t session, uint32_t lane)
{
    struct job *job = make_job(bench, session, lane);
    engine_post(bench->engine, job);
    return job;
}

static bool take_one(struct bench *bench)
{
    struct job *job = engine_take_ended(bench->engine);
    if (job == NULL) {
        return false;
    }
    bench->in_lane[job->session][job->lane]--;
    bench->ended++;
    list_append(&bench->unused, &job->node);
    return true;
}

/* Takes ended jobs until there have been `total`. */
static void await_ended(struct bench *bench, uint32_t total)
{
    int64_t start = now_ns(CLOCK_MONOTONIC);
    while (bench->ended < total) {
        uint32_t seen = bell_look(&bench->woken);
        if (!take_one(bench)) {
            CHECK(now_ns(CLOCK_MONOTONIC) - start < PATIENCE_NS);
            bell_wait(&bench->woken, seen, PATIENCE_NS);
        }
    }
}

static void await_running(struct bench *bench, size_t groups)
{
    int64_t start = now_ns(CLOCK_MONOTONIC);
    while (fake_backend_running(&bench->fake) != groups) {
        CHECK(now_ns(CLOCK_MONOTONIC) - start < PATIENCE_NS);
        sleep_ns(100000);
    }
}

static void await_done(struct bench *bench, uint32_t session, uint32_t lane, uint32_t sequence)
{
    int64_t start = now_ns(CLOCK_MONOTONIC);
    while (!page_reached(atomic_load(&page_lane(bench, session, lane)->done), sequence)) {
        CHECK(now_ns(CLOCK_MONOTONIC) - start < PATIENCE_NS);
        sleep_ns(100000);
    }
}

static uint32_t result_of(struct bench *bench, uint32_t session, uint32_t lane, uint32_t sequence)
{
    struct page_result *result = &page_lane(bench, session, lane)->results[sequence % PAGE_RESULTS];
    CHECK(atomic_load(&result->sequence) == sequence);
    return atomic_load(&result->status);
}

static void await_closed(struct bench *bench, uint32_t session)
{
    uint32_t closed;
    int64_t start = now_ns(CLOCK_MONOTONIC);
    for (;;) {
        uint32_t seen = bell_look(&bench->woken);
        while (take_one(bench)) {}
        if (engine_take_closed(bench->engine, &closed)) {
            break;
        }
        CHECK(now_ns(CLOCK_MONOTONIC) - start < PATIENCE_NS);
        bell_wait(&bench->woken, seen, PATIENCE_NS);
    }
    CHECK(closed == session);
    for (uint32_t lane = 0; lane < PAGE_LANES; lane++) {
        CHECK(bench->in_lane[session][lane] == 0);
    }
    close_page(bench, session);
}

static void runs_a_request_when_its_inputs_are_ready(void)
{
    struct bench *bench = create(1);
    open_session(bench, 0);
    struct job *job = post(bench, 0, 3);
    sleep_ns(20000000);
    CHECK(fake_backend_running(&bench->fake) == 0);
    CHECK(atomic_load(&page_lane(bench, 0, 3)->started) == 0);
    set_ready(bench, 0, 3, 1); /* nobody tells the engine: it looks by itself */
    await_running(bench, 1);
    CHECK(atomic_load(&page_lane(bench, 0, 3)->started) == 1);
    CHECK(atomic_load(&page_lane(bench, 0, 3)->done) == 0);
    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    await_ended(bench, 1);
    CHECK(job->error.status == WIRE_OK && job->group_members == 1 && job->group_id == 1);
    await_done(bench, 0, 3, 1);
    CHECK(result_of(bench, 0, 3, 1) == WIRE_OK);
    destroy(bench);
}

static void runs_as_many_groups_as_the_backend_takes_and_ends_them_in_any_order(void)
{
    struct bench *bench = create(3);
    for (uint32_t session = 0; session < 4; session++) {
        open_session(bench, session);
        struct job *job = make_job(bench, session, 0);
        job->group_key = session;
        set_ready(bench, session, 0, 1);
        engine_post(bench->engine, job);
    }
    await_running(bench, 3);
    fake_backend_complete(&bench->fake, 1, WIRE_OK);
    await_ended(bench, 1);
    await_running(bench, 3);
    for (uint32_t left = 3; left > 0; left--) {
        fake_backend_complete(&bench->fake, left - 1, WIRE_OK);
        await_ended(bench, 5 - left);
    }
    destroy(bench);
}

static void failures_reach_the_page_and_the_job(void)
{
    struct bench *bench = create(1);
    open_session(bench, 0);
    set_ready(bench, 0, 0, 100);
    struct job *job = post(bench, 0, 0);
    await_running(bench, 1);
    fake_backend_complete(&bench->fake, 0, WIRE_DEVICE_FAULT);
    await_ended(bench, 1);
    CHECK(job->error.status == WIRE_DEVICE_FAULT && job->error.detail[0] != '\0');
    await_done(bench, 0, 0, 1);
    CHECK(result_of(bench, 0, 0, 1) == WIRE_DEVICE_FAULT);

    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.refuse = WIRE_INTERNAL;
    pthread_mutex_unlock(&bench->fake.lock);
    post(bench, 0, 0);
    await_ended(bench, 2);
    await_done(bench, 0, 0, 2);
    CHECK(result_of(bench, 0, 0, 2) == WIRE_INTERNAL);

    job = make_job(bench, 0, 0);
    job->error.status = WIRE_NOT_FOUND;
    engine_post(bench->engine, job);
    await_ended(bench, 3);
    await_done(bench, 0, 0, 3);
    CHECK(result_of(bench, 0, 0, 3) == WIRE_NOT_FOUND);
    destroy(bench);
}

static void hold_ends(struct bench *bench, bool hold)
{
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.holds_ends = hold;
    pthread_mutex_unlock(&bench->fake.lock);
}

static uint32_t done_of(struct bench *bench, uint32_t session, uint32_t lane)
{
    return atomic_load(&page_lane(bench, session, lane)->done);
}

static void post_pair(struct bench *bench, uint32_t session, uint32_t lane)
{
    uint32_t first = bench->next[session][lane];
    set_ready(bench, session, lane, first - 1);
    for (int i = 0; i < 2; i++) {
        struct job *job = make_job(bench, session, lane);
        job->array_first = first;
        engine_post(bench->engine, job);
    }
    set_ready(bench, session, lane, first + 1);
}

/* The page says everything before the engine knows of it. */
static void the_device_marks_what_has_ended(void)
{
    struct bench *bench = create(2);
    open_session_on(bench, 0, true);
    hold_ends(bench, true);
    post_pair(bench, 0, 30);
    await_running(bench, 1);
    const struct group *group = fake_backend_group(&bench->fake, 0);
    if (group->members < 2) { /* the engine was quick */
        hold_ends(bench, false);
        fake_backend_complete(&bench->fake, 0, WIRE_OK);
        await_ended(bench, 1);
        await_running(bench, 1);
        hold_ends(bench, true);
        group = fake_backend_group(&bench->fake, 0);
    }
    CHECK(group->marks == 1 && group->mark[0].value == 2);
    CHECK(group->mark[0].word == &bench->device_page[0]->lane[30].done);
    CHECK(done_of(bench, 0, 30) == (group->members == 2 ? 0 : 1));
    CHECK(result_of(bench, 0, 30, 2) == WIRE_OK);

    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    uint32_t before = bench->ended;
    CHECK(done_of(bench, 0, 30) == 2);
    sleep_ns(5000000);
    CHECK(!take_one(bench) && bench->ended == before);

    /* A client may lie in its page about itself: the processor does not touch what the device wrote. */
    struct page_lane *lane = page_lane(bench, 0, 30);
    atomic_store(&lane->results[2].status, 99);
    atomic_store(&lane->done, 77);
    hold_ends(bench, false);
    await_ended(bench, 2);
    sleep_ns(5000000);
    CHECK(done_of(bench, 0, 30) == 77 && result_of(bench, 0, 30, 2) == 99);
    destroy(bench);
}

static void *sleep_on_done(void *context)
{
    struct page_lane *lane = context;
    const struct timespec timeout = {.tv_sec = 1};
    atomic_fetch_add(&lane->sleepers, 1);
    long rc =
        syscall(SYS_futex, &lane->done, FUTEX_WAIT, atomic_load(&lane->done), &timeout, NULL, 0);
    atomic_fetch_sub(&lane->sleepers, 1);
    return rc == 0 ? lane : NULL;
}

/* Whoever sleeps on a word that the device has written is woken by the engine. */
static void sleepers_are_woken_behind_the_device(void)
{
    struct bench *bench = create(1);
    open_session_on(bench, 0, true);
    void *woken = NULL;
    for (uint32_t i = 1; i <= 5 && woken == NULL; i++) {
        pthread_t thread;
        hold_ends(bench, true);
        post(bench, 0, 0);
        set_ready(bench, 0, 0, i);
        await_running(bench, 1);
        fake_backend_complete(&bench->fake, 0, WIRE_OK);
        CHECK(done_of(bench, 0, 0) == i);
        CHECK(pthread_create(&thread, NULL, sleep_on_done, page_lane(bench, 0, 0)) == 0);
        sleep_ns(50000000); /* it should sleep now; if not, there is another try */
        hold_ends(bench, false);
        CHECK(pthread_join(thread, &woken) == 0);
        await_ended(bench, i);
    }
    CHECK(woken != NULL);
    destroy(bench);
}

static void marks_of_a_failed_group_are_taken_back(void)
{
    struct bench *bench = create(1);
    open_session_on(bench, 0, true);
    open_session_on(bench, 1, false);
    set_ready(bench, 0, 0, 100);
    set_ready(bench, 1, 0, 100);
    post(bench, 0, 0);
    await_running(bench, 1);
    fake_backend_complete(&bench->fake, 0, WIRE_INTERNAL);
    await_ended(bench, 1);
    await_done(bench, 0, 0, 1);
    CHECK(result_of(bench, 0, 0, 1) == WIRE_INTERNAL);

    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.refuse = WIRE_RESOURCE_EXHAUSTED;
    pthread_mutex_unlock(&bench->fake.lock);
    post(bench, 0, 0);
    await_ended(bench, 2);
    await_done(bench, 0, 0, 2);
    CHECK(result_of(bench, 0, 0, 2) == WIRE_RESOURCE_EXHAUSTED);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.refuse = WIRE_OK;
    pthread_mutex_unlock(&bench->fake.lock);

    /* A session whose page the device does not see is beside one whose page it does. */
    post(bench, 0, 0);
    await_running(bench, 1);
    CHECK(fake_backend_group(&bench->fake, 0)->marks == 1);
    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    post(bench, 1, 0);
    await_running(bench, 1);
    CHECK(fake_backend_group(&bench->fake, 0)->marks == 0);
    CHECK(done_of(bench, 1, 0) == 0);
    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    await_ended(bench, 4);
    await_done(bench, 1, 0, 1);
    CHECK(result_of(bench, 1, 0, 1) == WIRE_OK && done_of(bench, 0, 0) == 3);
    destroy(bench);
}

static void closing_cancels_the_queue_and_lets_the_device_finish(void)
{
    struct bench *bench = create(1);
    open_session(bench, 2);
    set_ready(bench, 2, 0, 1);
    struct job *running = post(bench, 2, 0);
    await_running(bench, 1);
    struct job *queued = post(bench, 2, 0);
    struct job *unready = post(bench, 2, 9);
    uint32_t none;
    engine_close_session(bench->engine, 2);
    await_ended(bench, 1);
    CHECK(unready->error.status == WIRE_CANCELLED);
    sleep_ns(5000000);
    CHECK(!take_one(bench) && !engine_take_closed(bench->engine, &none));
    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    await_closed(bench, 2);
    CHECK(bench->ended == 3);
    CHECK(running->error.status == WIRE_OK && queued->error.status == WIRE_CANCELLED);
    open_session(bench, 2);
    engine_close_session(bench->engine, 2);
    await_closed(bench, 2);
    destroy(bench);
}

static void uses_no_processor_while_nothing_is_queued(void)
{
    struct bench *bench = create(1);
    open_session(bench, 0);
    sleep_ns(20000000);
    int64_t before = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    sleep_ns(400000000);
    CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) - before < 8000000);
    destroy(bench);
}

static void *complete_later(void *context)
{
    struct bench *bench = context;
    sleep_ns(30000000);
    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    return NULL;
}

static void stopping_waits_for_the_device_and_drops_the_rest(void)
{
    struct bench *bench = create(2);
    pthread_t thread;
    open_session(bench, 0);
    set_ready(bench, 0, 0, 1);
    post(bench, 0, 0);
    post(bench, 0, 1);
    await_running(bench, 1);
    CHECK(pthread_create(&thread, NULL, complete_later, bench) == 0);
    destroy(bench);
    CHECK(pthread_join(thread, NULL) == 0);
    engine_destroy(NULL);
}

static void post_array(struct bench *bench, struct dice *dice, uint32_t session, uint32_t lane)
{
    uint32_t calls = 1 + dice_below(dice, 4);
    uint32_t first = bench->next[session][lane];
    if (bench->in_lane[session][lane] + calls > PAGE_RESULTS / 2) {
        return;
    }
    for (uint32_t i = 0; i < calls && !list_empty(&bench->unused); i++) {
        struct job *job = make_job(bench, session, lane);
        job->array_first = first;
        job->group_key = dice_below(dice, 2);
        job->tiles = 1 + dice_below(dice, 20);
        job->flops = (double)job->tiles * dice_below(dice, 100000);
        job->workspace_bytes = dice_below(dice, WORKSPACE / 4);
        engine_post(bench->engine, job);
    }
    set_ready(bench, session, lane, bench->next[session][lane] - 1);
}

static void post_monster(struct bench *bench, uint32_t session)
{
    open_session(bench, session);
    set_ready(bench, session, 0, 1);
    struct job *job = make_job(bench, session, 0);
    job->group_key = session;
    job->tiles = 1000000;
    job->flops = 1e11;
    engine_post(bench->engine, job);
}

/* Two groups of a device that does 1e9 flops a second, less what the system adds to a sleep, always one
 * behind the other. By launch and end of each alone it would look half as fast. */
static void the_rate_of_groups_in_flight_is_the_devices(void)
{
    struct bench *bench = create_with_budget(2, 20000000);
    double slowest = 1; /* flops per nanosecond, of any group */
    int64_t before = now_ns(CLOCK_MONOTONIC);
    post_monster(bench, 0);
    post_monster(bench, 1);
    await_running(bench, 2);
    for (int i = 0; i < 12; i++) {
        double work = fake_backend_group(&bench->fake, 0)->flops;
        sleep_ns((long)work);
        int64_t end = now_ns(CLOCK_MONOTONIC);
        fake_backend_complete(&bench->fake, 0, WIRE_OK);
        await_running(bench, 2); /* by now the engine has seen that end, and not before `end` */
        double rate = work / (double)(now_ns(CLOCK_MONOTONIC) - before);
        slowest = rate < slowest ? rate : slowest;
        before = end;
    }
    double flops = fake_backend_group(&bench->fake, 1)->flops;
    CHECK(flops > 0.95 * slowest * 20e6 && flops < 20.1e6);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.at_once = true;
    pthread_mutex_unlock(&bench->fake.lock);
    fake_backend_complete(&bench->fake, 1, WIRE_OK);
    fake_backend_complete(&bench->fake, 0, WIRE_OK);
    destroy(bench);
}

/* Groups end by themselves; sessions come and go with work in flight. */
static void survives_a_storm(uint64_t seed)
{
    struct bench *bench = create(1 + (unsigned)(seed % 3));
    struct dice dice = {.state = seed};
    bool open[SESSIONS] = {false};
    bench->fake.at_once = true;
    for (int step = 0; step < 3000; step++) {
        uint32_t session = dice_below(&dice, SESSIONS);
        if (!open[session]) {
            open_session_on(bench, session, dice_one_in(&dice, 2));
            open[session] = true;
        } else if (dice_one_in(&dice, 100)) {
            engine_close_session(bench->engine, session);
            await_closed(bench, session);
            open[session] = false;
        } else {
            post_array(bench, &dice, session, dice_below(&dice, PAGE_LANES));
        }
        if (list_empty(&bench->unused)) {
            await_ended(bench, bench->ended + 1);
        }
        while (take_one(bench)) {}
    }
    for (uint32_t session = 0; session < SESSIONS; session++) {
        for (uint32_t lane = 0; open[session] && lane < PAGE_LANES; lane++) {
            uint32_t last = bench->next[session][lane] - 1;
            await_done(bench, session, lane, last);
            for (uint32_t i = 0; i < PAGE_RESULTS / 2 && last - i > 0; i++) {
                CHECK(result_of(bench, session, lane, last - i) == WIRE_OK);
            }
        }
        if (open[session]) {
            engine_close_session(bench->engine, session);
            await_closed(bench, session);
        }
    }
    CHECK(bench->ended > 2000);
    destroy(bench);
}

static void looks_at_an_idle_device(void)
{
    struct bench *bench = create(1);
    int64_t begin = now_ns(CLOCK_MONOTONIC);
    while (fake_backend_looks(&bench->fake) < 2) {
        CHECK(now_ns(CLOCK_MONOTONIC) - begin < PATIENCE_NS);
        sleep_ns(10000000);
    }
    CHECK(now_ns(CLOCK_MONOTONIC) - begin > 1000000000); /* not all the time */
    destroy(bench);
}

int main(void)
{
    runs_a_request_when_its_inputs_are_ready();
    runs_as_many_groups_as_the_backend_takes_and_ends_them_in_any_order();
    failures_reach_the_page_and_the_job();
    the_device_marks_what_has_ended();
    sleepers_are_woken_behind_the_device();
    marks_of_a_failed_group_are_taken_back();
    the_rate_of_groups_in_flight_is_the_devices();
    closing_cancels_the_queue_and_lets_the_device_finish();
    uses_no_processor_while_nothing_is_queued();
    looks_at_an_idle_device();
    stopping_waits_for_the_device_and_drops_the_rest();
    for (uint64_t seed = 1; seed <= 4; seed++) {
        survives_a_storm(seed);
    }
    return 0;
}

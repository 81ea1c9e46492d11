#include "engine.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#include "arena.h"
#include "bell.h"
#include "ring.h"
#include "scheduler.h"
#include "thread.h"

#define SPIN_NS 50000 /* about what falling asleep and waking up costs both sides */
#define SLEEP_LEAST_NS 20000
#define SLEEP_MOST_NS 1000000
#define SLEEP_PART 8 /* of the time since the last event: so much later is the next one seen */
#define LOOK_NS 1000000000  /* how often a device that has nothing to do is looked at */
#define TIMER_SLACK_NS 1000 /* the default, 50 us, is longer than the shortest sleep */

/* The rate is that of the groups of about the last so many nanoseconds of device time. */
#define RATE_WINDOW_NS 20e6
#define RATE_START_NS 1e6 /* weight of the backend's guess */
#define SMALL 4           /* so many times less than the budget */

enum command_kind {
    COMMAND_OPEN,
    COMMAND_CLOSE,
    COMMAND_POST,
};

struct command {
    enum command_kind kind;
    uint32_t session;
    uint32_t uid;
    struct page *page;
    void *page_device;
    struct job *job;
};

/* A session's control page, as the processor and as the device see it. */
struct client_page {
    struct page *page; /* borrowed from the session */
    void *device;      /* NULL: the device does not write it */

    /* Lanes (bit i: lane i) whose `done` the group that runs moves by itself if it succeeds, and how
     * far: the results up to there are written already. */
    uint32_t marked_lanes;
    uint32_t marked[PAGE_LANES];
};

_Static_assert(PAGE_LANES <= 32, "a bit per lane");

struct notice {
    struct job *job;  /* ended, or NULL: */
    uint32_t session; /* closed */
};

struct engine {
    struct engine_options options;
    struct ring *commands; /* owned: I/O thread -> engine thread */
    struct ring *notices;  /* owned: engine thread -> I/O thread */
    struct bell posted;
    _Atomic bool stop;
    pthread_t thread;

    /* The I/O thread's: sessions closed but not yet taken. */
    uint32_t *closed; /* owned */
    uint32_t closed_count;

    /* The engine thread's. */
    struct arena *arena;         /* owned */
    struct scheduler *scheduler; /* owned */
    struct client_page *pages;   /* owned; of each session */
    struct group *groups;        /* owned */
    struct group **spare;        /* owned: groups that are not running */
    unsigned spares;
    double rate_flops;
    double rate_ns;
    uint64_t last_end_ns; /* of a group */
    bool has_news;        /* notices that the I/O thread was not woken for */
    bool spins;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* -- the scheduler's hooks ----------------------------------------------------------------------- */

static struct page_lane *lane_of(struct engine *engine, uint32_t session, uint32_t lane)
{
    return &engine->pages[session].page->lane[lane];
}

static bool on_ready(void *context, uint32_t session, uint32_t lane, uint32_t sequence)
{
    struct page_lane *page_lane = lane_of(context, session, lane);
    /* Acquire: the inputs were written before. */
    return page_reached(atomic_load_explicit(&page_lane->ready, memory_order_acquire), sequence);
}

static void on_started(void *context, uint32_t session, uint32_t lane, uint32_t sequence)
{
    struct page_lane *page_lane = lane_of(context, session, lane);
    atomic_store_explicit(&page_lane->started, sequence, memory_order_release);
}

static void notify(struct engine *engine, struct job *job, uint32_t session)
{
    struct notice notice = {.job = job, .session = session};
    bool pushed = ring_push(engine->notices, &notice);
    assert(pushed);
    (void)pushed;
    engine->has_news = true;
}

static void on_ended(void *context, struct job *job)
{
    notify(context, job, 0);
}

static void on_foretold(void *context, struct group *group, uint32_t session, uint32_t lane,
    uint32_t sequence, enum wire_status status)
{
    struct engine *engine = context;
    struct client_page *page = &engine->pages[session];
    if (page->device == NULL) {
        return;
    }
    page_write_result(lane_of(engine, session, lane), sequence, status);
    struct page *on_device = page->device;
    void *done = &on_device->lane[lane].done;
    if (group->marks == 0 || group->mark[group->marks - 1].word != done) {
        group->mark[group->marks++].word = done;
    }
    group->mark[group->marks - 1].value = sequence;
    page->marked_lanes |= UINT32_C(1) << lane;
    page->marked[lane] = sequence;
}

static void on_finished(
    void *context, uint32_t session, uint32_t lane, uint32_t sequence, enum wire_status status)
{
    struct engine *engine = context;
    struct client_page *page = &engine->pages[session];
    struct page_lane *page_lane = lane_of(engine, session, lane);
    uint32_t bit = UINT32_C(1) << lane;
    if ((page->marked_lanes & bit) == 0) {
        page_finish(page_lane, sequence, status);
    } else if (sequence == page->marked[lane]) {
        page->marked_lanes &= ~bit;
        page_wake(page_lane);
    }
}

/* The device did not do it after all. */
static void take_marks_back(struct engine *engine, const struct group *group)
{
    for (size_t i = 0; i < group->members; i++) {
        const struct job *job = group->job[i];
        engine->pages[job->session].marked_lanes &= ~(UINT32_C(1) << job->lane);
    }
}

static void on_closed(void *context, uint32_t session)
{
    struct engine *engine = context;
    engine->pages[session] = (struct client_page){0};
    notify(engine, NULL, session);
}

/* -- the thread ---------------------------------------------------------------------------------- */

static bool take_commands(struct engine *engine)
{
    bool any = false;
    struct command command;
    while (ring_pop(engine->commands, &command)) {
        any = true;
        switch (command.kind) {
        case COMMAND_OPEN:
            engine->pages[command.session] =
                (struct client_page){.page = command.page, .device = command.page_device};
            scheduler_open(engine->scheduler, command.session, command.uid);
            break;
        case COMMAND_CLOSE:
            scheduler_close(engine->scheduler, command.session);
            break;
        case COMMAND_POST:
            scheduler_post(engine->scheduler, command.job);
            break;
        }
    }
    return any;
}

static double budget_flops(const struct engine *engine)
{
    double budget = engine->rate_flops / engine->rate_ns * (double)engine->options.group_budget_ns;
    return budget > 1 ? budget : 1;
}

/* A group has the device from the end of the one before it, where they overlap. One that was small and
 * short says more of how long a launch takes than of the rate. */
static void learn_rate(struct engine *engine, const struct group *group, uint64_t end_ns)
{
    uint64_t begin_ns =
        group->launched_ns > engine->last_end_ns ? group->launched_ns : engine->last_end_ns;
    double took_ns = (double)(end_ns - begin_ns);
    double budget_ns = (double)engine->options.group_budget_ns;
    if (took_ns < budget_ns / SMALL && group->flops < budget_flops(engine) / SMALL) {
        return;
    }
    engine->rate_flops += group->flops;
    engine->rate_ns += took_ns;
    if (engine->rate_ns > RATE_WINDOW_NS) {
        engine->rate_flops /= 2;
        engine->rate_ns /= 2;
    }
}

static void end_group(struct engine *engine, struct group *group, enum wire_status status)
{
    if (status != WIRE_OK) {
        take_marks_back(engine, group);
    }
    scheduler_end(engine->scheduler, group, status);
    engine->spare[engine->spares++] = group;
}

static bool end_groups(struct engine *engine)
{
    struct backend *backend = engine->options.backend;
    bool any = false;
    enum wire_status status;
    struct group *group;
    while ((group = backend->ops->poll(backend, &status)) != NULL) {
        uint64_t end_ns = now_ns();
        if (status == WIRE_OK) {
            learn_rate(engine, group, end_ns);
        }
        engine->last_end_ns = end_ns;
        end_group(engine, group, status);
        any = true;
    }
    return any;
}

static void wake_io(struct engine *engine)
{
    if (engine->has_news) {
        engine->has_news = false;
        engine->options.wake(engine->options.wake_context);
    }
}

static bool start_groups(struct engine *engine)
{
    struct backend *backend = engine->options.backend;
    bool any = false;
    while (engine->spares > 0) {
        struct group *group = engine->spare[engine->spares - 1];
        group->marks = 0;
        if (!scheduler_pick(engine->scheduler, budget_flops(engine), group)) {
            break;
        }
        engine->spares--;
        group->launched_ns = now_ns();
        enum wire_status status = backend->ops->submit(backend, group);
        if (status != WIRE_OK) {
            end_group(engine, group, status);
        }
        any = true;
    }
    return any;
}

/* Sleeps until posted to. */
static void rest_idle(struct engine *engine, uint32_t seen)
{
    struct backend *backend = engine->options.backend;

    if (backend->ops->look == NULL) {
        bell_wait(&engine->posted, seen, BELL_FOREVER);
        return;
    }
    bell_wait(&engine->posted, seen, LOOK_NS);
    if (bell_look(&engine->posted) == seen) {
        backend->ops->look(backend);
    }
}

/* Sleeps while nothing happens: until posted to, or for a while if there is a counter or a device to
 * look at. */
static void rest(struct engine *engine, uint32_t seen, uint64_t quiet_ns)
{
    if (engine->spins && quiet_ns < SPIN_NS) {
        __builtin_ia32_pause();
        return;
    }
    if (scheduler_jobs(engine->scheduler) == 0) {
        rest_idle(engine, seen);
        return;
    }
    int64_t sleep_ns = (int64_t)(quiet_ns / SLEEP_PART);
    if (sleep_ns < SLEEP_LEAST_NS) {
        sleep_ns = SLEEP_LEAST_NS;
    }
    bell_wait(&engine->posted, seen, sleep_ns < SLEEP_MOST_NS ? sleep_ns : SLEEP_MOST_NS);
}

static void *run_engine(void *context)
{
    struct engine *engine = context;
    uint64_t last_event_ns = 0;
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0);
    for (;;) {
        uint32_t seen = bell_look(&engine->posted);
        bool stop = atomic_load(&engine->stop);
        bool event = take_commands(engine);
        event |= end_groups(engine);
        wake_io(engine);
        if (stop && engine->spares == engine->options.backend->max_groups) {
            return NULL;
        }
        event |= !stop && start_groups(engine);
        if (event) {
            last_event_ns = now_ns();
        } else {
            rest(engine, seen, now_ns() - last_event_ns);
        }
    }
}

/* -- the I/O thread's side ----------------------------------------------------------------------- */

static bool create_parts(struct engine *engine)
{
    const struct engine_options *options = &engine->options;
    const struct scheduler_hooks hooks = {
        .context = engine,
        .ready = on_ready,
        .started = on_started,
        .foretold = on_foretold,
        .ended = on_ended,
        .finished = on_finished,
        .closed = on_closed,
    };
    /* A slot is opened again only after its closing was taken: two commands and a notice each. */
    engine->commands =
        ring_create(options->max_jobs + 2 * options->max_sessions, sizeof(struct command));
    engine->notices = ring_create(options->max_jobs + options->max_sessions, sizeof(struct notice));
    engine->closed = calloc(options->max_sessions, sizeof(*engine->closed));
    engine->arena = arena_create(
        options->backend->workspace, options->backend->workspace_bytes, options->max_jobs);
    engine->pages = calloc(options->max_sessions, sizeof(*engine->pages));
    engine->groups = calloc(options->backend->max_groups, sizeof(*engine->groups));
    engine->spare = calloc(options->backend->max_groups, sizeof(struct group *));
    if (engine->arena != NULL) {
        engine->scheduler = scheduler_create(options->max_sessions, engine->arena, &hooks);
    }
    if (engine->scheduler != NULL) {
        scheduler_set_fill(engine->scheduler, options->backend->fill_tiles);
    }
    return engine->commands != NULL && engine->notices != NULL && engine->closed != NULL &&
           engine->pages != NULL && engine->groups != NULL && engine->spare != NULL &&
           engine->scheduler != NULL;
}

static void destroy_parts(struct engine *engine)
{
    ring_destroy(engine->commands);
    ring_destroy(engine->notices);
    free(engine->closed);
    scheduler_destroy(engine->scheduler);
    arena_destroy(engine->arena);
    free(engine->pages);
    free(engine->groups);
    free(engine->spare);
    free(engine);
}

static void send(struct engine *engine, const struct command *command)
{
    assert(command->session < engine->options.max_sessions);
    bool pushed = ring_push(engine->commands, command);
    assert(pushed);
    (void)pushed;
    bell_ring(&engine->posted, 1);
}

struct engine *engine_create(const struct engine_options *options)
{
    struct engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL) {
        return NULL;
    }
    engine->options = *options;
    bell_init(&engine->posted);
    engine->spins = thread_processors() >= THREAD_SPIN_PROCESSORS;
    engine->rate_ns = RATE_START_NS;
    engine->rate_flops = options->backend->flops_per_second * 1e-9 * RATE_START_NS;
    if (!create_parts(engine)) {
        destroy_parts(engine);
        return NULL;
    }
    for (unsigned i = 0; i < options->backend->max_groups; i++) {
        engine->spare[engine->spares++] = &engine->groups[i];
    }
    if (!thread_start(&engine->thread, "attnd-engine", run_engine, engine)) {
        destroy_parts(engine);
        return NULL;
    }
    return engine;
}

void engine_destroy(struct engine *engine)
{
    if (engine == NULL) {
        return;
    }
    atomic_store(&engine->stop, true);
    bell_ring(&engine->posted, 1);
    pthread_join(engine->thread, NULL);
    destroy_parts(engine);
}

void engine_open_session(
    struct engine *engine, uint32_t session, uint32_t uid, struct page *page, void *page_device)
{
    send(engine, &(struct command){.kind = COMMAND_OPEN,
                     .session = session,
                     .uid = uid,
                     .page = page,
                     .page_device = page_device});
}

void engine_close_session(struct engine *engine, uint32_t session)
{
    send(engine, &(struct command){.kind = COMMAND_CLOSE, .session = session});
}

void engine_post(struct engine *engine, struct job *job)
{
    send(engine, &(struct command){.kind = COMMAND_POST, .session = job->session, .job = job});
}

struct job *engine_take_ended(struct engine *engine)
{
    struct notice notice;
    while (ring_pop(engine->notices, &notice)) {
        if (notice.job != NULL) {
            return notice.job;
        }
        engine->closed[engine->closed_count++] = notice.session;
    }
    return NULL;
}

bool engine_take_closed(struct engine *engine, uint32_t *session)
{
    if (engine->closed_count == 0) {
        return false;
    }
    *session = engine->closed[--engine->closed_count];
    return true;
}

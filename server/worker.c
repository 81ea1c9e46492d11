#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "thread.h"

#define LAST_WAIT_S 1

struct worker {
    pthread_t thread;
    void (*wake)(void *context);
    void *context;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t given;
    pthread_cond_t over;
    struct list tasks; /* by their turns */
    struct list ended; /* to be collected */
    bool stop;
    bool finished;
    bool left;                      /* to itself: nobody waits for the end any more */
    const struct worker_task *task; /* at work, only to be compared; NULL: none */
    uint32_t uid;                   /* of the task at work, */
    uint64_t turn;                  /* or of the last one */
    uint64_t weight;                /* of the task at work; else 0 */
    worker_fn *work;                /* likewise; else NULL */
};

struct closing {
    struct worker_task task; /* first */
    int fd;
};

static struct worker_task *task_of(struct list_node *node)
{
    return list_entry(node, struct worker_task, node);
}

static void close_descriptor(struct worker_task *task)
{
    struct closing *closing = (struct closing *)(void *)task;

    (void)close(closing->fd);
    free(closing);
}

static void release(struct worker *worker)
{
    (void)pthread_cond_destroy(&worker->given);
    (void)pthread_cond_destroy(&worker->over);
    (void)pthread_mutex_destroy(&worker->mutex);
    free(worker);
}

/* One turn after the user's last task, so that users are served in turn. */
static uint64_t next_turn(struct worker *worker, uint32_t uid)
{
    const struct list_node *head = &worker->tasks.head;

    for (struct list_node *at = head->prev; at != head; at = at->prev) {
        if (task_of(at)->uid == uid) {
            return task_of(at)->turn + 1;
        }
    }
    return worker->turn + (worker->task != NULL && worker->uid == uid);
}

/* Behind those of its turn. */
static void insert(struct list *list, struct worker_task *task)
{
    struct list_node *at = list->head.prev;

    while (at != &list->head && task_of(at)->turn > task->turn) {
        at = at->prev;
    }
    task->node.prev = at;
    task->node.next = at->next;
    at->next->prev = &task->node;
    at->next = &task->node;
}

/* The next task, or NULL: there will be none. */
static struct worker_task *take(struct worker *worker)
{
    (void)pthread_mutex_lock(&worker->mutex);
    while (list_empty(&worker->tasks) && !worker->stop) {
        (void)pthread_cond_wait(&worker->given, &worker->mutex);
    }
    struct list_node *node = list_pop(&worker->tasks);
    struct worker_task *task = node != NULL ? task_of(node) : NULL;
    if (task != NULL) {
        worker->task = task;
        worker->uid = task->uid;
        worker->turn = task->turn;
        worker->weight = task->weight;
        worker->work = task->work;
    }
    (void)pthread_mutex_unlock(&worker->mutex);
    return task;
}

/* The task, unless it is NULL, waits to be collected. */
static void put(struct worker *worker, struct worker_task *task)
{
    (void)pthread_mutex_lock(&worker->mutex);
    worker->task = NULL;
    worker->weight = 0;
    worker->work = NULL;
    if (task != NULL) {
        list_append(&worker->ended, &task->node);
        if (!worker->left) {
            worker->wake(worker->context);
        }
    }
    (void)pthread_mutex_unlock(&worker->mutex);
}

static void *run(void *context)
{
    struct worker *worker = context;
    struct worker_task *task = NULL;

    while ((task = take(worker)) != NULL) {
        bool is_collected = task->done != NULL;
        task->work(task);
        put(worker, is_collected ? task : NULL);
    }
    (void)pthread_mutex_lock(&worker->mutex);
    bool left = worker->left;
    worker->finished = true;
    (void)pthread_cond_signal(&worker->over);
    (void)pthread_mutex_unlock(&worker->mutex);
    if (left) {
        release(worker);
    }
    return NULL;
}

static void init_conditions(struct worker *worker)
{
    pthread_condattr_t attributes;

    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&worker->given, &attributes);
    (void)pthread_cond_init(&worker->over, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

/* false: it is late, and the thread is left to itself. */
static bool wait_for_end(struct worker *worker)
{
    struct timespec deadline;
    int late = 0;

    (void)clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += LAST_WAIT_S;
    (void)pthread_mutex_lock(&worker->mutex);
    worker->stop = true;
    (void)pthread_cond_signal(&worker->given);
    while (!worker->finished && late == 0) {
        late = pthread_cond_timedwait(&worker->over, &worker->mutex, &deadline);
    }
    bool finished = worker->finished;
    worker->left = !finished;
    if (!finished) {
        (void)pthread_detach(worker->thread); /* while it cannot end */
    }
    (void)pthread_mutex_unlock(&worker->mutex);
    return finished;
}

static struct worker_task *pop_ended(struct worker *worker)
{
    (void)pthread_mutex_lock(&worker->mutex);
    struct list_node *node = list_pop(&worker->ended);
    (void)pthread_mutex_unlock(&worker->mutex);
    return node != NULL ? task_of(node) : NULL;
}

struct worker *worker_create(const char *name, void (*wake)(void *context), void *context)
{
    struct worker *worker = calloc(1, sizeof(*worker));

    if (worker == NULL) {
        return NULL;
    }
    worker->wake = wake;
    worker->context = context;
    (void)pthread_mutex_init(&worker->mutex, NULL);
    init_conditions(worker);
    list_init(&worker->tasks);
    list_init(&worker->ended);
    if (!thread_start(&worker->thread, name, run, worker)) {
        release(worker);
        return NULL;
    }
    return worker;
}

bool worker_destroy(struct worker *worker)
{
    if (worker == NULL) {
        return true;
    }
    worker_collect(worker); /* which may give more to do */
    if (!wait_for_end(worker)) {
        return false;
    }
    (void)pthread_join(worker->thread, NULL);
    worker_collect(worker);
    release(worker);
    return true;
}

void worker_give(struct worker *worker, struct worker_task *task)
{
    (void)pthread_mutex_lock(&worker->mutex);
    task->turn = next_turn(worker, task->uid);
    insert(&worker->tasks, task);
    (void)pthread_cond_signal(&worker->given);
    (void)pthread_mutex_unlock(&worker->mutex);
}

void worker_collect(struct worker *worker)
{
    struct worker_task *task = NULL;

    while ((task = pop_ended(worker)) != NULL) {
        task->done(task);
    }
}

void worker_close(struct worker *worker, uint32_t uid, int fd)
{
    struct closing *closing = calloc(1, sizeof(*closing));

    if (closing == NULL) {
        /* Rather one descriptor less than a thread that never comes back from closing it. */
        log_error("out of memory: descriptor %d stays open", fd);
        return;
    }
    *closing = (struct closing){.task = {.uid = uid, .work = close_descriptor}, .fd = fd};
    worker_give(worker, &closing->task);
}

void worker_weigh(struct worker *worker, struct worker_task *task, uint64_t weight)
{
    (void)pthread_mutex_lock(&worker->mutex);
    task->weight = weight;
    if (worker->task == task) {
        worker->weight = weight;
    }
    (void)pthread_mutex_unlock(&worker->mutex);
}

static uint64_t weight_of(struct list *tasks, uint32_t uid)
{
    uint64_t weight = 0;

    list_for_each(node, tasks) {
        weight += task_of(node)->uid == uid ? task_of(node)->weight : 0;
    }
    return weight;
}

uint64_t worker_weight(struct worker *worker, uint32_t uid)
{
    (void)pthread_mutex_lock(&worker->mutex);
    uint64_t weight = weight_of(&worker->tasks, uid) + weight_of(&worker->ended, uid);
    weight += worker->uid == uid ? worker->weight : 0;
    (void)pthread_mutex_unlock(&worker->mutex);
    return weight;
}

unsigned worker_count(struct worker *worker, uint32_t uid, worker_fn *work)
{
    (void)pthread_mutex_lock(&worker->mutex);
    unsigned count = worker->work == work && worker->uid == uid;
    list_for_each(node, &worker->tasks) {
        count += task_of(node)->work == work && task_of(node)->uid == uid;
    }
    (void)pthread_mutex_unlock(&worker->mutex);
    return count;
}

unsigned worker_closings(struct worker *worker, uint32_t uid)
{
    return worker_count(worker, uid, close_descriptor);
}

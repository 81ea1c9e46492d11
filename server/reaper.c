#include "reaper.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "thread.h"

#define LAST_WAIT_S 1

struct reaper {
    pthread_t thread;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t given;
    pthread_cond_t over;
    struct list tasks;
    bool stop;
    bool ended;
    bool left;    /* to itself: nobody waits for the end any more */
    uint32_t uid; /* of the task at work */
    uint64_t weight;
};

struct closing {
    struct reaper_task task; /* first */
    int fd;
};

static void release(struct reaper *reaper)
{
    (void)pthread_cond_destroy(&reaper->given);
    (void)pthread_cond_destroy(&reaper->over);
    (void)pthread_mutex_destroy(&reaper->mutex);
    free(reaper);
}

/* The next task, or NULL: there will be none. */
static struct reaper_task *take(struct reaper *reaper)
{
    struct reaper_task *task = NULL;

    (void)pthread_mutex_lock(&reaper->mutex);
    reaper->weight = 0;
    while (list_empty(&reaper->tasks) && !reaper->stop) {
        (void)pthread_cond_wait(&reaper->given, &reaper->mutex);
    }
    struct list_node *node = list_pop(&reaper->tasks);
    if (node != NULL) {
        task = list_entry(node, struct reaper_task, node);
        reaper->uid = task->uid;
        reaper->weight = task->weight;
    }
    (void)pthread_mutex_unlock(&reaper->mutex);
    return task;
}

static void *run(void *context)
{
    struct reaper *reaper = context;
    struct reaper_task *task = NULL;

    while ((task = take(reaper)) != NULL) {
        task->work(task);
    }
    (void)pthread_mutex_lock(&reaper->mutex);
    bool left = reaper->left;
    reaper->ended = true;
    (void)pthread_cond_signal(&reaper->over);
    (void)pthread_mutex_unlock(&reaper->mutex);
    if (left) {
        release(reaper);
    }
    return NULL;
}

static void close_descriptor(struct reaper_task *task)
{
    struct closing *closing = (struct closing *)(void *)task;

    (void)close(closing->fd);
    free(closing);
}

static void init_conditions(struct reaper *reaper)
{
    pthread_condattr_t attributes;

    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&reaper->given, &attributes);
    (void)pthread_cond_init(&reaper->over, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

struct reaper *reaper_create(const char *name)
{
    struct reaper *reaper = calloc(1, sizeof(*reaper));

    if (reaper == NULL) {
        return NULL;
    }
    (void)pthread_mutex_init(&reaper->mutex, NULL);
    init_conditions(reaper);
    list_init(&reaper->tasks);
    if (!thread_start(&reaper->thread, name, run, reaper)) {
        release(reaper);
        return NULL;
    }
    return reaper;
}

bool reaper_destroy(struct reaper *reaper)
{
    struct timespec deadline;
    int late = 0;

    if (reaper == NULL) {
        return true;
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += LAST_WAIT_S;
    (void)pthread_mutex_lock(&reaper->mutex);
    reaper->stop = true;
    (void)pthread_cond_signal(&reaper->given);
    while (!reaper->ended && late == 0) {
        late = pthread_cond_timedwait(&reaper->over, &reaper->mutex, &deadline);
    }
    bool ended = reaper->ended;
    reaper->left = !ended;
    if (!ended) {
        (void)pthread_detach(reaper->thread); /* while it cannot end */
    }
    (void)pthread_mutex_unlock(&reaper->mutex);
    if (!ended) {
        return false;
    }
    (void)pthread_join(reaper->thread, NULL);
    release(reaper);
    return true;
}

void reaper_give(struct reaper *reaper, struct reaper_task *task)
{
    (void)pthread_mutex_lock(&reaper->mutex);
    list_append(&reaper->tasks, &task->node);
    (void)pthread_cond_signal(&reaper->given);
    (void)pthread_mutex_unlock(&reaper->mutex);
}

void reaper_close(struct reaper *reaper, uint32_t uid, uint64_t weight, int fd)
{
    struct closing *closing = calloc(1, sizeof(*closing));

    if (closing == NULL) {
        /* Rather one descriptor less than a thread that never comes back from closing it. */
        log_error("out of memory: descriptor %d stays open", fd);
        return;
    }
    *closing = (struct closing){
        .task = {.uid = uid, .weight = weight, .work = close_descriptor}, .fd = fd};
    reaper_give(reaper, &closing->task);
}

uint64_t reaper_weight(struct reaper *reaper, uint32_t uid)
{
    (void)pthread_mutex_lock(&reaper->mutex);
    uint64_t weight = reaper->uid == uid ? reaper->weight : 0;
    list_for_each(node, &reaper->tasks) {
        const struct reaper_task *task = list_entry(node, struct reaper_task, node);
        weight += task->uid == uid ? task->weight : 0;
    }
    (void)pthread_mutex_unlock(&reaper->mutex);
    return weight;
}

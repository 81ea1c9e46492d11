/*
 * A thread for what may take long and must not hold up whoever wants it: mapping and unmapping large
 * memory, closing descriptors of unknown file systems. Tasks run one after another: those of a user in
 * the order in which they were given, those of several users in turn.
 *
 * Any thread may give and ask; one thread collects and destroys. It does not know what a task does.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "list.h"

struct worker;

struct worker_task;

typedef void worker_fn(struct worker_task *task);

/* Embedded in what is to be worked on. */
struct worker_task {
    struct list_node node;
    uint32_t uid;    /* on whose account */
    uint64_t weight; /* in what the giver counts by */
    uint64_t turn;   /* the worker's: who comes first */
    worker_fn *work; /* on the worker's thread */
    worker_fn *done; /* when collected; NULL: the task is work's to free */
};

/*
 * The name is the thread's. `wake` is called on it when there is something to collect, with the worker
 * locked; NULL: no task has a `done`. NULL: out of memory or threads.
 */
struct worker *worker_create(const char *name, void (*wake)(void *context), void *context);

/* Waits for all tasks, but no longer than a second: one that never ends must not hold up the
 * program's end. Collects. false: thread and tasks were left behind, and what they use must stay, but
 * for what `wake` uses. Accepts NULL. */
bool worker_destroy(struct worker *worker);

void worker_give(struct worker *worker, struct worker_task *task);

/* Calls `done` of what has been worked on. */
void worker_collect(struct worker *worker);

/* Gives another weight to a task that has a `done` and has been given, but not collected. */
void worker_weigh(struct worker *worker, struct worker_task *task, uint64_t weight);

/* Gives the closing of a descriptor. It weighs nothing. */
void worker_close(struct worker *worker, uint32_t uid, int fd);

/* How many descriptors of that user are not yet closed. */
unsigned worker_closings(struct worker *worker, uint32_t uid);

/* How many tasks of that user that do this work have not ended. */
unsigned worker_count(struct worker *worker, uint32_t uid, worker_fn *work);

/* The weight of that user's tasks that have not ended, or have not been collected. */
uint64_t worker_weight(struct worker *worker, uint32_t uid);

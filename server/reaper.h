/*
 * A thread for what may take long and nobody waits for: unmapping large memory, closing descriptors
 * of unknown file systems. Tasks run one after another, in the order in which they were given.
 *
 * Any thread may give and ask; whoever creates it destroys it. It does not know what a task does.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "list.h"

struct reaper;

/* Embedded in what is to be ended. */
struct reaper_task {
    struct list_node node;
    uint32_t uid;                           /* on whose account */
    uint64_t weight;                        /* in what the giver counts by */
    void (*work)(struct reaper_task *task); /* on the reaper's thread; the task is work's to free */
};

/* The name is the thread's. NULL: out of memory or threads. */
struct reaper *reaper_create(const char *name);

/* Waits for all tasks, but no longer than a second: one that never ends must not hold up the
 * program's end. false: thread and tasks were left behind, and what they use must stay. Accepts NULL. */
bool reaper_destroy(struct reaper *reaper);

void reaper_give(struct reaper *reaper, struct reaper_task *task);

/* Gives the closing of a descriptor. */
void reaper_close(struct reaper *reaper, uint32_t uid, uint64_t weight, int fd);

/* The weight of that user's tasks that have not ended. */
uint64_t reaper_weight(struct reaper *reaper, uint32_t uid);

/*
 * A thread that looks ten times a second for device memory that the program has freed, and whether the
 * streams are well. It starts with the first stream, and blocks all signals.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "attnd.h"
#include "wire.h"

struct sweep {
    pthread_mutex_t mutex; /* of what follows; takes no other */
    pthread_cond_t stopped;
    bool running;
    _Atomic bool stop;
    pthread_t thread;
};

void sweep_init(struct sweep *sweep);

/* Starts the thread where it does not run yet. */
bool sweep_start(struct attnd *client, struct wire_error *error);

/* The thread has ended when it returns. */
void sweep_stop(struct sweep *sweep);

void sweep_finish(struct sweep *sweep);

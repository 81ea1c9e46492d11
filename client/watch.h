/*
 * The one thread of a client: it notices that the daemon has gone, and receives what the daemon says
 * without being waited for. Blocks all signals.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "attnd.h"

struct watch {
    int fd; /* eventfd that wakes the thread; -1: none */
    bool running;
    _Atomic bool stop;
    pthread_t thread;
};

/* Makes the eventfd. */
enum attnd_status watch_open(struct watch *watch);

/* Needs the client's gate and rpc open. */
enum attnd_status watch_start(struct attnd *client);

/* The thread has ended when it returns; rpc is not to be used afterwards. */
void watch_stop(struct watch *watch);

void watch_close(struct watch *watch);

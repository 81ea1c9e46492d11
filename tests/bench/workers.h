/*
 * Processors for the cpu families: threads that live as long as the benchmark, as the daemon's do.
 *
 * The calling thread is worker 0. One launch at a time.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "attn.h"

#define WORKERS_MAX 256

struct workers {
    struct attn_executor base;
    void *scratch[WORKERS_MAX]; /* owned */
    pthread_t threads[WORKERS_MAX];
    pthread_mutex_t mutex; /* over all below but next */
    pthread_cond_t begin;
    pthread_cond_t end;
    unsigned started; /* threads that know their number */
    unsigned busy;
    unsigned round;
    bool stop;
    attn_work_fn work;
    void *context;
    uint64_t items;
    atomic_uint_least64_t next;
};

/* count: 1 .. WORKERS_MAX */
void workers_init(struct workers *workers, const struct attn_family *family, unsigned count);
void workers_finish(struct workers *workers);

/* Zeroed, aligned to 64 bytes; ends the program if there is none. Released by free(). */
void *workers_memory(size_t bytes);

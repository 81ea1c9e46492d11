/*
 * A backend whose mapping waits until the test lets it go, or fails; it counts and computes nothing.
 * Bases are numbers of its own. Functions may be called from any thread.
 */
#pragma once

#include <pthread.h>

#include "backend.h"

struct slow_backend {
    struct backend backend; /* first */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool holds; /* what is to be mapped or extended waits */
    bool holds_unmaps;
    unsigned held; /* that wait */
    bool refuses;
    unsigned mappings; /* now */
    uint64_t bytes;    /* of them */
    unsigned maps;     /* calls */
    unsigned pins;     /* pages, now */
    struct backend_offer last;
    pthread_t mapped_by;
    pthread_t unmapped_by;
    const char *fault; /* the first; NULL: none */
    _Alignas(256) char workspace[4096];
};

void slow_backend_init(struct slow_backend *slow);
void slow_backend_finish(struct slow_backend *slow);

/* Waits until a call is held; false: none came within seconds. */
bool slow_backend_wait_held(struct slow_backend *slow);
void slow_backend_hold(struct slow_backend *slow, bool maps, bool unmaps);
void slow_backend_refuse(struct slow_backend *slow, bool refuses);
unsigned slow_backend_mappings(struct slow_backend *slow);
unsigned slow_backend_pins(struct slow_backend *slow);
unsigned slow_backend_maps(struct slow_backend *slow);
struct backend_offer slow_backend_last(struct slow_backend *slow);

/*
 * What all of the daemon's own threads have in common: a name, no signals, a known number of
 * processors. Called while the daemon starts.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#define THREAD_SPIN_PROCESSORS 4 /* with fewer, spinning takes the time from those waited for */

/* Starts a thread that receives no signal but for faults of its own: others are for the main thread
 * alone. The name has at most 15 characters. false: the system has no thread to give. */
bool thread_start(pthread_t *thread, const char *name, void *(*run)(void *context), void *context);

/* Lets the calling thread's own faults through, whoever started it. */
void thread_take_faults(void);

/* Processors that this process may use, at least 1. */
unsigned thread_processors(void);

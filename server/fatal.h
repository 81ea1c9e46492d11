/*
 * What the daemon still does when a signal is about to end it: where GPUs are shared through MPS, a
 * process that ends in the middle of a launch takes all others down with it, so it waits for that.
 *
 * Installed once, before there is anything to wait for. The handler runs on whichever thread failed
 * and only reads memory and sleeps.
 */
#pragma once

#include <stdbool.h>

/* Before SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT and SIGQUIT do what they always do, waits while
 * busy() is true, at most two seconds. busy must be safe in a signal handler. */
void fatal_install(bool (*busy)(void *context), void *context);

/* The same wait, for an end that is no signal's. Returns at once if nothing was installed. */
void fatal_wait(void);

/* Does not return while the process waits for its end: nothing new may begin then. */
void fatal_stop_here(void);

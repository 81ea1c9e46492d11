#include "thread.h"

#include <assert.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

bool thread_start(pthread_t *thread, const char *name, void *(*run)(void *context), void *context)
{
    sigset_t all;
    sigset_t before;
    assert(strlen(name) < 16);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* a new thread inherits the mask */
    thread_take_faults();
    int error = pthread_create(thread, NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return false;
    }
    pthread_setname_np(*thread, name);
    return true;
}

/* A fault that is blocked ends the process at once, without the handler that waits for the device. */
void thread_take_faults(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        sigaddset(&set, faults[i]);
    }
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

unsigned thread_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        return (unsigned)CPU_COUNT(&set);
    }
    /* More processors than the fixed set has bits. */
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (unsigned)online : 1;
}

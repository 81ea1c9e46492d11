#include "fatal.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_MS 2000

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGQUIT};

static bool (*device_busy)(void *context);
static void *device_context;
static _Atomic pid_t failing; /* the thread that ends the process, 0: none */

static void sleep_ms(long ms)
{
    const struct timespec time = {.tv_nsec = ms * 1000000};
    (void)nanosleep(&time, NULL);
}

static void on_fatal(int number)
{
    int code = errno;
    pid_t self = gettid();
    pid_t nobody = 0;
    if (atomic_compare_exchange_strong(&failing, &nobody, self)) {
        fatal_wait();
    } else if (nobody != self) {
        fatal_stop_here(); /* another thread waits already, and for both */
    }
    (void)signal(number, SIG_DFL);
    (void)raise(number); /* once this handler has returned */
    errno = code;
}

void fatal_install(bool (*busy)(void *context), void *context)
{
    struct sigaction action = {.sa_handler = on_fatal};
    device_busy = busy;
    device_context = context;
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        (void)sigaction(signals[i], &action, NULL);
    }
}

void fatal_wait(void)
{
    for (int waited = 0; waited < PATIENCE_MS && device_busy != NULL && device_busy(device_context);
         waited++) {
        sleep_ms(1);
    }
}

void fatal_stop_here(void)
{
    while (atomic_load(&failing) != 0) {
        sleep_ms(100);
    }
}

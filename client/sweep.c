#include "sweep.h"

#include <signal.h>
#include <string.h>

#include "client.h"
#include "clock.h"
#include "retire.h"

#define SWEEP_NS 100000000

static void *run(void *context)
{
    struct attnd *client = context;
    struct sweep *sweep = &client->sweep;
    (void)pthread_mutex_lock(&sweep->mutex);
    while (!atomic_load(&sweep->stop)) {
        struct timespec until = clock_timespec(clock_deadline(SWEEP_NS));
        (void)pthread_cond_timedwait(&sweep->stopped, &sweep->mutex, &until);
        if (!atomic_load(&sweep->stop) && !loss_happened(&client->loss)) {
            (void)pthread_mutex_unlock(&sweep->mutex);
            stream_check(client);
            retire_and_drop(client, retire_dead, clock_deadline(client->timeout_ns));
            (void)pthread_mutex_lock(&sweep->mutex);
        }
    }
    (void)pthread_mutex_unlock(&sweep->mutex);
    return NULL;
}

static bool start_locked(struct attnd *client, struct wire_error *error)
{
    struct sweep *sweep = &client->sweep;
    sigset_t all;
    sigset_t before;
    if (sweep->running) {
        return true;
    }
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&sweep->thread, NULL, run, client);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        return wire_fail(
            error, WIRE_RESOURCE_EXHAUSTED, "no thread can be started: %s", strerrordesc_np(code));
    }
    (void)pthread_setname_np(sweep->thread, "attnd-sweep");
    sweep->running = true;
    return true;
}

void sweep_init(struct sweep *sweep)
{
    clock_init_condition(&sweep->stopped);
    (void)pthread_mutex_init(&sweep->mutex, NULL);
}

bool sweep_start(struct attnd *client, struct wire_error *error)
{
    (void)pthread_mutex_lock(&client->sweep.mutex);
    bool started = start_locked(client, error);
    (void)pthread_mutex_unlock(&client->sweep.mutex);
    return started;
}

void sweep_stop(struct sweep *sweep)
{
    (void)pthread_mutex_lock(&sweep->mutex);
    bool running = sweep->running;
    atomic_store(&sweep->stop, true);
    sweep->running = false;
    (void)pthread_cond_signal(&sweep->stopped);
    (void)pthread_mutex_unlock(&sweep->mutex);
    if (running) {
        (void)pthread_join(sweep->thread, NULL);
    }
}

void sweep_finish(struct sweep *sweep)
{
    (void)pthread_cond_destroy(&sweep->stopped);
    (void)pthread_mutex_destroy(&sweep->mutex);
}

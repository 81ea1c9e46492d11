#include "watch.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

#define RELEASE_MS 5 /* a daemon's device may still set back what streams wait for */

/* What ends the client must not read as if it had not. */
static enum attnd_status as_loss(enum wire_status status)
{
    bool passing = status == WIRE_AGAIN || status == WIRE_TIMED_OUT;
    return passing ? ATTND_PROTOCOL_ERROR : (enum attnd_status)status;
}

/* What nobody waits for: failures, and answers to calls that were given up. */
static void take_reply(struct attnd *client, const struct wire_reply *reply)
{
    if (reply->kind == WIRE_REPLY_FAILED) {
        (void)pthread_mutex_lock(&client->mutex);
        lane_tell(&client->lanes, reply->failed.lane, reply->failed.sequence, &reply->error);
        (void)pthread_mutex_unlock(&client->mutex);
    } else if (reply->kind == WIRE_REPLY_PLAN && reply->error.status == WIRE_OK) {
        struct wire_request drop = {.kind = WIRE_DROP_PLAN, .drop_plan = reply->plan.plan};
        (void)rpc_send(&client->rpc, &drop, 0);
    } else if (reply->error.status != WIRE_OK && rpc_may_be_about_submission(reply)) {
        loss_declare(&client->loss, as_loss(reply->error.status),
            "the daemon does not take this client's messages: %.180s", reply->error.detail);
    }
}

static void release_waiters(struct attnd *client)
{
    rpc_release_waiters(&client->rpc);
    (void)pthread_mutex_lock(&client->mutex);
    (void)pthread_cond_broadcast(&client->lanes.told);
    (void)pthread_mutex_unlock(&client->mutex);
}

static void *run(void *context)
{
    struct attnd *client = context;
    struct watch *watch = &client->watch;
    struct pollfd poller[] = {
        {.fd = watch->fd, .events = POLLIN},
        {.fd = client->rpc.fd, .events = POLLIN},
        {.fd = client->gate.fd, .events = POLLRDHUP},
        {.fd = client->rpc.monitor_fd, .events = POLLIN},
    };
    int timeout_ms = -1;
    while (!atomic_load(&watch->stop)) {
        (void)poll(poller, sizeof poller / sizeof *poller, timeout_ms);
        if (poller[0].revents) {
            eventfd_t count;
            (void)eventfd_read(watch->fd, &count);
        }
        if (poller[2].revents) {
            loss_declare(&client->loss, ATTND_DISCONNECTED,
                "the daemon has gone: its gate closed the connection");
            poller[2].fd = -1; /* it stays so, and poll() would not wait any more */
            poller[2].revents = 0;
        }
        if (poller[3].revents && rpc_is_closed(&client->rpc)) {
            loss_declare(&client->loss, ATTND_DISCONNECTED,
                "the daemon has gone: there is no connection to its rpc.sock");
        }
        struct wire_reply reply;
        while (rpc_receive(&client->rpc, &reply)) {
            take_reply(client, &reply);
        }
        if (loss_happened(&client->loss)) { /* perhaps as one of them says */
            (void)shutdown(
                client->gate.fd, SHUT_RDWR); /* a daemon that is there drops the session */
            timeout_ms = lane_abandon(&client->lanes) ? RELEASE_MS : -1;
            release_waiters(client);
        }
    }
    return NULL;
}

enum attnd_status watch_open(struct watch *watch)
{
    watch->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watch->fd < 0) {
        return error_set(ATTND_RESOURCE_EXHAUSTED, "the process has no file descriptors left");
    }
    return ATTND_OK;
}

enum attnd_status watch_start(struct attnd *client)
{
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&client->watch.thread, NULL, run, client);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        return error_set(
            ATTND_RESOURCE_EXHAUSTED, "no thread can be started: %s", strerrordesc_np(code));
    }
    (void)pthread_setname_np(client->watch.thread, "attnd-client");
    client->watch.running = true;
    return ATTND_OK;
}

void watch_stop(struct watch *watch)
{
    if (watch->running) {
        atomic_store(&watch->stop, true);
        (void)eventfd_write(watch->fd, 1);
        (void)pthread_join(watch->thread, NULL);
        watch->running = false;
    }
}

void watch_close(struct watch *watch)
{
    if (watch->fd >= 0) {
        (void)close(watch->fd);
        watch->fd = -1;
    }
}

/*
 * The client's end of rpc.sock: a ZeroMQ DEALER that many threads share under one mutex.
 *
 * Whoever has something to say sends it; one thread (watch.h) receives. ZeroMQ's descriptor only
 * tells of changes, and a send may swallow one: then the sender wakes the receiver.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "loss.h"
#include "wire.h"

struct rpc_waiter;

struct rpc {
    void *context; /* NULL: not open */
    void *socket;
    void *monitor;  /* says when the connection has ended; the receiver's alone */
    int fd;         /* of the socket, for polling */
    int monitor_fd; /* likewise */
    int wake_fd;    /* borrowed eventfd that wakes the receiver */
    pthread_mutex_t mutex;
    pthread_cond_t answered;
    struct rpc_waiter *waiters; /* guarded by mutex, like all below */
    uint32_t last_id;
    uint8_t buffer[WIRE_MAX_MESSAGE_BYTES];
    struct loss *loss; /* borrowed */
};

/* Starts to connect; the first sends wait until that is done. On failure there is nothing to close. */
enum attnd_status rpc_open(struct rpc *rpc, const char *directory, int wake_fd, struct loss *loss);

/* In a child of fork() nothing of ZeroMQ can be released safely; its descriptors close on exec. */
void rpc_close(struct rpc *rpc, bool forked);

/* Sends; replies, if any, come out of rpc_receive(). Sets request->id. ATTND_TIMED_OUT: not sent. */
enum attnd_status rpc_send(struct rpc *rpc, struct wire_request *request, int64_t timeout_ns);

/* Sends and waits for the reply. ATTND_OK also if the daemon refused: reply->error says so. */
enum attnd_status rpc_call(
    struct rpc *rpc, struct wire_request *request, struct wire_reply *reply, int64_t timeout_ns);

/* The receiver's: hands replies to those who wait for them and returns the next one for which nobody
 * does. false: none is there. */
bool rpc_receive(struct rpc *rpc, struct wire_reply *reply);

/* The receiver's: whether there is no connection any more, or none could be made. It is never made again,
 * and what was on its way is lost. True once. */
bool rpc_is_closed(struct rpc *rpc);

/* Whether a refusal is one of a submission, or of a message that the daemon could not read. Others
 * come late, when their call has timed out. */
bool rpc_may_be_about_submission(const struct wire_reply *reply);

/* After the loss was declared: nobody waits any longer. */
void rpc_release_waiters(struct rpc *rpc);

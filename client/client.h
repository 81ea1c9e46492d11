/*
 * What a client consists of. The modules own their parts; this only puts them together.
 *
 * Locks, in this order: plans.mutex, mutex, rpc.mutex. blocks.mutex comes before all. None is held
 * while waiting for requests to end; plans.mutex and blocks.mutex are held during a round trip.
 * gate.mutex is held during an exchange and takes no other.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#include "attnd.h"
#include "block.h"
#include "gate.h"
#include "lane.h"
#include "loss.h"
#include "memory.h"
#include "page.h"
#include "plan.h"
#include "rpc.h"
#include "watch.h"
#include "wire.h"

struct attnd {
    pid_t pid; /* a child of fork() has another */
    int64_t timeout_ns;
    int64_t spin_ns; /* before a wait sleeps */
    struct wire_session session;
    struct page *page; /* owned */
    struct loss loss;
    struct gate gate;
    struct rpc rpc;
    struct watch watch;
    struct plans plans;
    struct blocks blocks;
    pthread_mutex_t mutex; /* of lanes and memory */
    struct lanes lanes;
    struct memory memory;
};

/* What every call asks first: a client, and of this process. */
enum attnd_status client_check(const struct attnd *client);

/*
 * What a client consists of. The modules own their parts; this only puts them together.
 *
 * Locks, in this order: devices.mutex, plans.mutex, mutex, rpc.mutex. blocks.mutex and streams.mutex
 * come before all. None is held while waiting for requests to end; devices.mutex, plans.mutex and
 * blocks.mutex are held during a round trip. gate.mutex and sweep.mutex take no other.
 *
 * The CUDA driver may wait for the device, and that for a daemon which is gone: the thread that notices
 * (watch.h) neither calls the driver nor takes a mutex that is held while somebody else does, which are
 * devices.mutex and streams.mutex.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#include "attnd.h"
#include "block.h"
#include "device.h"
#include "driver.h"
#include "gate.h"
#include "lane.h"
#include "loss.h"
#include "memory.h"
#include "page.h"
#include "plan.h"
#include "rpc.h"
#include "stream.h"
#include "sweep.h"
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
    struct driver driver;
    struct streams streams;
    struct devices devices;
    struct sweep sweep;
};

/* What every call asks first: a client, and of this process. */
enum attnd_status client_check(const struct attnd *client);

/* attnd_open() where nothing names the daemon: that of the current CUDA device among those with a
 * directory in `root`, else the one in root/cpu. */
enum attnd_status client_open_found(
    const char *root, const struct attnd_open_options *given, struct attnd **client);

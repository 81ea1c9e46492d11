/*
 * The door: every connection of this process comes in through the accept4() defined here, also those
 * that libzmq accepts, and what it reads from them through the recv() defined here.
 *
 * libzmq's listener ends the process when accept4() fails for lack of descriptors, and it would let
 * anybody in. The executable's own accept4() takes precedence over the C library's: it turns away who
 * is not on the list, whoever comes when descriptors run short and, at the requests' socket, who has
 * more connections than its sessions need, and then says ECONNABORTED, which every caller survives.
 * Its recv() ends a connection of the requests' socket that says what zmtp.h does not allow. Any
 * thread; the connections of the requests' socket belong to the thread that accepts them.
 */
#pragma once

#include <stdint.h>

#include "config.h"

struct door_rules {
    struct config_ids uids;
    struct config_ids gids;
    uint64_t sessions_per_uid;
};

/* Once, before any listener exists: raises the limit of descriptors as far as it goes and begins to
 * judge. Returns the limit, 0 on failure. */
unsigned door_install(const struct door_rules *rules);

/*
 * The door: every connection of this process comes in through the accept4() defined here, also those
 * that libzmq accepts.
 *
 * libzmq's listener ends the process when accept4() fails for lack of descriptors, and it would let
 * anybody in. The executable's own accept4() takes precedence over the C library's: it turns away who
 * is not on the list and whoever comes when descriptors run short, and then says ECONNABORTED, which
 * every caller survives. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "config.h"

struct door_rules {
    struct config_ids uids;
    struct config_ids gids;
};

/* Once, before any listener exists: raises the limit of descriptors as far as it goes and begins to
 * judge. Returns the limit, 0 on failure. */
unsigned door_install(const struct door_rules *rules);

/*
 * The daemon's directory: its lock file, and the paths of its two sockets.
 *
 * Holding the lock is what makes a process the daemon of a directory: a socket's path can be taken
 * over silently, so nothing is removed or bound before the lock is held.
 */
#pragma once

#include "wire.h"

#define HOME_PATH_BYTES 108 /* of sockaddr_un */

struct home {
    int lock;       /* descriptor; -1: not held */
    uint32_t group; /* the directory's */
    char gate_path[HOME_PATH_BYTES];
    char rpc_path[HOME_PATH_BYTES];
};

/* Makes the directory (0750) if it is missing, takes its lock and removes what an earlier daemon
 * left. *error: AGAIN if another daemon holds the lock, PERMISSION_DENIED if others could replace
 * files in the directory, INVALID_ARGUMENT for everything else that is wrong with it. */
bool home_open(struct home *home, const char *directory, struct wire_error *error);

/* Removes the sockets and lets go of the lock. Accepts what home_open() failed on. */
void home_close(struct home *home);

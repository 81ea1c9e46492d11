/*
 * Runs the real attnd on a private directory for a test, and ends it by its pid. The daemon dies with
 * the test's process. A program that uses this defines ATTND_PROGRAM: the path of the executable.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct daemon {
    pid_t pid;          /* 0: not running */
    char directory[64]; /* the address for attnd_open() */
};

/* Makes a directory under /tmp, starts the daemon there and waits until its gate answers. The log is
 * <directory>/log. `arguments` go behind the directory on the command line, NULL-terminated or NULL.
 * false: it did not come up; the log was copied to stderr. */
bool daemon_start(struct daemon *daemon, const char *const *arguments);

/* The same in the directory it already has, for a daemon that ended. */
bool daemon_restart(struct daemon *daemon, const char *const *arguments);

/* Sends the signal and waits for the end, at most 20 s, then SIGKILL. Returns waitpid()'s status. */
int daemon_end(struct daemon *daemon, int signal);

/* SIGTERM if it runs, and removes the directory. true: it was not running or ended with status 0.
 * Otherwise the log was copied to stderr. */
bool daemon_stop(struct daemon *daemon);

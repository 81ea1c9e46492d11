/*
 * A process that the demo starts: its output comes line by line through a pipe, its end is noticed,
 * and it is stopped by its pid. It runs in a process group of its own, so that Ctrl-C reaches the
 * demo alone, which then ends it in order. One thread; SIGCHLD is the caller's to watch.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum {
    CHILD_LINE_BYTES = 512,
    CHILD_TAIL_LINES = 6,
};

typedef void (*child_line_fn)(void *context, const char *line);

struct child {
    const char *name;      /* borrowed; for messages */
    child_line_fn on_line; /* takes each line of standard output and standard error; may be NULL */
    void *context;
    pid_t pid;                   /* 0: not started, or its end was noticed */
    int fd;                      /* the pipe; -1: none. Readable means child_read() has work */
    int status;                  /* of waitpid(), once it has ended */
    char line[CHILD_LINE_BYTES]; /* the one that is not complete yet */
    size_t length;
    char tail[CHILD_TAIL_LINES][CHILD_LINE_BYTES]; /* the last lines, as a ring */
    size_t lines;
};

/* argv[0] is the path of the program. On failure returns false with errno set. */
bool child_start(struct child *child, char *const argv[]);

/* Takes what the pipe holds now. */
void child_read(struct child *child);

/* true: it has ended just now; all of its output was taken. */
bool child_reap(struct child *child);

/* Whether it ended by itself with exit status 0. */
bool child_succeeded(const struct child *child);

/* "ended with exit status 1", "was killed by signal 9 (Killed)" */
void child_describe_end(const struct child *child, char *text, size_t bytes);

/* Prints the last lines to standard error, indented. */
void child_print_tail(const struct child *child);

/* SIGTERM to all that run, SIGKILL to those that still run after a while, waits for every end. */
void child_stop(struct child *const children[], size_t count);

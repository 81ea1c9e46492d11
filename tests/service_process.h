/*
 * Processes that run service_client.c beside a test. They die with the test's process. A program that
 * uses this defines SERVICE_CLIENT: the path of the executable.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct process {
    pid_t pid;
    int out; /* what it says on stdout */
};

/* false: it could not be started. */
bool process_start(
    struct process *process, const char *address, const char *mode, uint64_t seed, uint64_t count);

/* The next line on its stdout, without the newline. false: none came in time, or it has ended. */
bool process_read_line(struct process *process, char *line, size_t capacity, int timeout_ms);

/* Waits for the end; past the time it is killed. Returns waitpid()'s status. */
int process_wait(struct process *process, int timeout_ms);

/* Sends SIGKILL and waits for the end. */
void process_kill(struct process *process);

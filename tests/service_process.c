#include "service_process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define STEP_MS 5

extern char **environ;

static bool spawn(struct process *process, char *const argv[], int out)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    bool spawned = posix_spawnp(&process->pid, argv[0], &actions, NULL, argv, environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    return spawned;
}

bool process_start(
    struct process *process, const char *address, const char *mode, uint64_t seed, uint64_t count)
{
    char setpriv[] = "setpriv";
    char option[] = "--pdeathsig";
    char signal[] = "KILL";
    char program[] = SERVICE_CLIENT;
    char words[4][128];
    int pipe_fds[2];
    (void)snprintf(words[0], sizeof words[0], "%s", address);
    (void)snprintf(words[1], sizeof words[1], "%s", mode);
    (void)snprintf(words[2], sizeof words[2], "%" PRIu64, seed);
    (void)snprintf(words[3], sizeof words[3], "%" PRIu64, count);
    char *argv[] = {setpriv, option, signal, program, words[0], words[1], words[2], words[3], NULL};
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        return false;
    }
    bool spawned = spawn(process, argv, pipe_fds[1]);
    (void)close(pipe_fds[1]);
    process->out = pipe_fds[0];
    return spawned;
}

bool process_read_line(struct process *process, char *line, size_t capacity, int timeout_ms)
{
    struct pollfd ready = {.fd = process->out, .events = POLLIN};
    for (size_t size = 0; size + 1 < capacity; size++) {
        if (poll(&ready, 1, timeout_ms) != 1 || read(process->out, line + size, 1) != 1) {
            return false;
        }
        if (line[size] == '\n') {
            line[size] = '\0';
            return true;
        }
    }
    return false;
}

static int reap(struct process *process)
{
    int status = 0;
    while (waitpid(process->pid, &status, 0) < 0) {}
    (void)close(process->out);
    return status;
}

int process_wait(struct process *process, int timeout_ms)
{
    siginfo_t ended = {0};
    for (int waited = 0; waited < timeout_ms; waited += STEP_MS) {
        if (waitid(P_PID, (id_t)process->pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            ended.si_pid == process->pid) {
            return reap(process);
        }
        (void)poll(NULL, 0, STEP_MS);
    }
    (void)kill(process->pid, SIGKILL);
    return reap(process);
}

void process_kill(struct process *process)
{
    (void)kill(process->pid, SIGKILL);
    (void)reap(process);
}

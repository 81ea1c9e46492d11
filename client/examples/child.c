#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum {
    STOP_PAUSE_MS = 10,
    STOP_PATIENCE_MS = 10000, /* a daemon that drains has little to finish */
};

static int spawn(pid_t *pid, char *const argv[], int output)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    int error = posix_spawn(pid, argv[0], &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

static void end_line(struct child *child)
{
    child->line[child->length] = '\0';
    child->length = 0;
    memcpy(child->tail[child->lines % CHILD_TAIL_LINES], child->line, sizeof(child->line));
    child->lines++;
    if (child->on_line != NULL) {
        child->on_line(child->context, child->line);
    }
}

/* What is too long for a line goes on in the next one. */
static void take(struct child *child, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != '\n') {
            child->line[child->length++] = bytes[i];
        }
        if (bytes[i] == '\n' || child->length == sizeof(child->line) - 1) {
            end_line(child);
        }
    }
}

static void close_pipe(struct child *child)
{
    if (child->fd >= 0) {
        close(child->fd);
        child->fd = -1;
    }
}

static bool any_runs(struct child *const children[], size_t count)
{
    bool runs = false;
    for (size_t i = 0; i < count; i++) {
        if (children[i]->pid != 0) {
            child_read(children[i]); /* a full pipe would keep it from ending */
            runs = !child_reap(children[i]) || runs;
        }
    }
    return runs;
}

static void send_all(struct child *const children[], size_t count, int signal)
{
    for (size_t i = 0; i < count; i++) {
        if (children[i]->pid != 0) {
            kill(children[i]->pid, signal);
        }
    }
}

bool child_start(struct child *child, char *const argv[])
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return false;
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    int error = spawn(&child->pid, argv, ends[1]);
    close(ends[1]);
    if (error != 0) {
        close(ends[0]);
        child->pid = 0;
        child->fd = -1;
        errno = error;
        return false;
    }
    child->fd = ends[0];
    return true;
}

void child_read(struct child *child)
{
    char bytes[4096];
    while (child->fd >= 0) {
        ssize_t count = read(child->fd, bytes, sizeof(bytes));
        if (count > 0) {
            take(child, bytes, (size_t)count);
        } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
            close_pipe(child);
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

bool child_reap(struct child *child)
{
    if (child->pid == 0 || waitpid(child->pid, &child->status, WNOHANG) != child->pid) {
        return false;
    }
    child->pid = 0;
    child_read(child);
    if (child->length > 0) {
        end_line(child);
    }
    close_pipe(child);
    return true;
}

bool child_succeeded(const struct child *child)
{
    return WIFEXITED(child->status) && WEXITSTATUS(child->status) == 0;
}

void child_describe_end(const struct child *child, char *text, size_t bytes)
{
    if (WIFSIGNALED(child->status)) {
        int number = WTERMSIG(child->status);
        snprintf(text, bytes, "was killed by signal %d (SIG%s)", number, sigabbrev_np(number));
    } else {
        snprintf(text, bytes, "ended with exit status %d", WEXITSTATUS(child->status));
    }
}

void child_print_tail(const struct child *child)
{
    size_t first = child->lines > CHILD_TAIL_LINES ? child->lines - CHILD_TAIL_LINES : 0;
    for (size_t i = first; i < child->lines; i++) {
        fprintf(stderr, "  %s: %s\n", child->name, child->tail[i % CHILD_TAIL_LINES]);
    }
}

void child_stop(struct child *const children[], size_t count)
{
    const struct timespec pause = {.tv_nsec = STOP_PAUSE_MS * 1000000L};
    send_all(children, count, SIGTERM);
    for (int waited_ms = 0; any_runs(children, count); waited_ms += STOP_PAUSE_MS) {
        if (waited_ms >= STOP_PATIENCE_MS) {
            send_all(children, count, SIGKILL);
        }
        nanosleep(&pause, NULL);
    }
}

#include "daemon.h"

#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ARGUMENTS 32
#define START_MS 20000
#define END_MS 20000

extern char **environ;

static void show_log(const struct daemon *daemon)
{
    char path[96];
    char line[512];
    (void)snprintf(path, sizeof path, "%s/log", daemon->directory);
    FILE *log = fopen(path, "r");
    while (log && fgets(line, sizeof line, log)) {
        (void)fprintf(stderr, "attnd: %s", line);
    }
    if (log) {
        (void)fclose(log);
    }
}

static void sleep_ms(int ms)
{
    (void)poll(NULL, 0, ms);
}

static bool gate_answers(const struct daemon *daemon)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/gate.sock", daemon->directory);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    bool connected = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    (void)close(fd);
    return connected;
}

/* Whether it ended within the time; pid 0 then. */
static bool reap(struct daemon *daemon, int *status, int ms)
{
    for (int waited = 0; waited <= ms; waited += 5) {
        if (waitpid(daemon->pid, status, WNOHANG) == daemon->pid) {
            daemon->pid = 0;
            return true;
        }
        sleep_ms(5);
    }
    return false;
}

static bool spawn(struct daemon *daemon, const char *const *arguments)
{
    /* setpriv gives it a death signal of its parent, so that no crash of a test leaves it behind. */
    const char *head[] = {
        "setpriv", "--pdeathsig", "KILL", "--", ATTND_PROGRAM, "--directory", daemon->directory};
    char *argv[MAX_ARGUMENTS + 1] = {0};
    size_t count = 0;
    for (; count < sizeof head / sizeof *head; count++) {
        argv[count] = strdup(head[count]);
    }
    while (arguments && *arguments && count < MAX_ARGUMENTS) {
        argv[count++] = strdup(*arguments++);
    }
    char path[96];
    (void)snprintf(path, sizeof path, "%s/log", daemon->directory);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    bool spawned = posix_spawnp(&daemon->pid, argv[0], &actions, NULL, argv, environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    for (size_t i = 0; i < count; i++) {
        free(argv[i]);
    }
    return spawned;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info;
    (void)kind;
    (void)walk;
    return remove(path);
}

bool daemon_restart(struct daemon *daemon, const char *const *arguments)
{
    int status = 0;
    if (!spawn(daemon, arguments)) {
        daemon->pid = 0;
        return false;
    }
    for (int waited = 0; waited <= START_MS; waited += 5) {
        if (gate_answers(daemon)) {
            return true;
        }
        if (reap(daemon, &status, 0)) {
            break;
        }
        sleep_ms(5);
    }
    show_log(daemon);
    return false;
}

bool daemon_start(struct daemon *daemon, const char *const *arguments)
{
    *daemon = (struct daemon){.directory = "/tmp/attnd-test-XXXXXX"};
    return mkdtemp(daemon->directory) && daemon_restart(daemon, arguments);
}

int daemon_end(struct daemon *daemon, int signal)
{
    int status = 0;
    (void)kill(daemon->pid, signal);
    if (!reap(daemon, &status, END_MS)) {
        (void)kill(daemon->pid, SIGKILL);
        (void)reap(daemon, &status, END_MS);
    }
    return status;
}

bool daemon_stop(struct daemon *daemon)
{
    int status = daemon->pid ? daemon_end(daemon, SIGTERM) : 0;
    if (status != 0) {
        show_log(daemon);
    }
    (void)nftw(daemon->directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return status == 0;
}

/* Connections beyond what the daemon has descriptors for, and from whom it does not want: it turns
 * them away and goes on. Plain libzmq would end the process. */
#include <criterion/criterion.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon.h"
#include "raw_client.h"

#define DESCRIPTORS 64
#define CONNECTIONS 150
#define FEW_CONNECTIONS 36 /* with the daemon's own more than three quarters of DESCRIPTORS */

extern char **environ;

static const char *const arguments[] = {"--threads=1", "--max-sessions=4", NULL};

static int connect_to(const struct daemon *daemon, const char *name, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", daemon->directory, name);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

/* Connects again and again without saying a word, and keeps what it gets. */
static void flood(const struct daemon *daemon, const char *name, int type, int *fds, int count)
{
    for (int i = 0; i < count; i++) {
        fds[i] = connect_to(daemon, name, type);
        if (fds[i] < 0) {
            (void)usleep(2000); /* the queue is full: the daemon is at it */
        }
    }
}

static void release(const int *fds, int count)
{
    for (int i = 0; i < count; i++) {
        if (fds[i] >= 0) {
            (void)close(fds[i]);
        }
    }
}

static bool serves(const struct daemon *daemon)
{
    struct raw_client client;
    for (int tries = 0; tries < 100; tries++) {
        bool opened = raw_open(&client, daemon->directory);
        bool works = opened && raw_add_plan(&client) != 0;
        raw_close(&client);
        if (works) {
            return true;
        }
        (void)usleep(50000);
    }
    return false;
}

static bool log_says(const struct daemon *daemon, const char *part)
{
    char path[128];
    char line[512];
    bool found = false;
    (void)snprintf(path, sizeof path, "%s/log", daemon->directory);
    FILE *log = fopen(path, "r");
    while (log && fgets(line, sizeof line, log)) {
        found = found || strstr(line, part) != NULL;
    }
    if (log) {
        (void)fclose(log);
    }
    return found;
}

/* The log comes from another thread than what else can be seen. */
static bool log_soon_says(const struct daemon *daemon, const char *part)
{
    for (int tries = 0; tries < 300 && !log_says(daemon, part); tries++) {
        (void)usleep(10000);
    }
    return log_says(daemon, part);
}

static void limit_descriptors(const struct daemon *daemon)
{
    struct rlimit limit = {DESCRIPTORS, DESCRIPTORS};
    cr_assert_eq(prlimit(daemon->pid, RLIMIT_NOFILE, &limit, NULL), 0);
}

Test(door, the_daemon_survives_the_lack_of_descriptors_at_both_sockets)
{
    struct daemon daemon;
    int fds[CONNECTIONS];
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(serves(&daemon));
    limit_descriptors(&daemon);
    flood(&daemon, "rpc.sock", SOCK_STREAM, fds, CONNECTIONS);
    cr_expect(log_soon_says(&daemon, "no descriptor left"));
    release(fds, CONNECTIONS);
    cr_expect(serves(&daemon));
    flood(&daemon, "gate.sock", SOCK_SEQPACKET, fds, CONNECTIONS);
    release(fds, CONNECTIONS);
    cr_expect(serves(&daemon));
    cr_assert(daemon_stop(&daemon));
}

/* A daemon that has few from its start keeps a rest of them for the gate. */
Test(door, a_flooded_rpc_socket_leaves_the_gate_open)
{
    struct daemon daemon;
    struct raw_client client;
    struct wire_gate_reply reply;
    struct rlimit limit = {DESCRIPTORS, DESCRIPTORS};
    int fds[FEW_CONNECTIONS];
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0); /* inherited */
    cr_assert(daemon_start(&daemon, arguments));
    flood(&daemon, "rpc.sock", SOCK_STREAM, fds, FEW_CONNECTIONS);
    cr_assert(raw_connect(&client, daemon.directory));
    cr_assert(raw_open_session(&client, &reply));
    cr_expect_eq(reply.error.status, WIRE_OK, "%s", reply.error.detail);
    cr_expect(log_soon_says(&daemon, "descriptors run short"));
    raw_close(&client);
    release(fds, FEW_CONNECTIONS);
    cr_expect(serves(&daemon));
    cr_assert(daemon_stop(&daemon));
}

/* Runs a program as the user and group 65534, without other groups; its wait status. */
static int run_as_nobody(const char *program, const char *first, const char *second)
{
    const char *words[] = {"timeout", "10", "setpriv", "--reuid=65534", "--regid=65534",
        "--clear-groups", program, first, second, NULL};
    char *argv[10] = {0};
    pid_t pid = 0;
    int status = 0;
    for (size_t i = 0; words[i]; i++) {
        argv[i] = strdup(words[i]);
    }
    cr_assert_eq(posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ), 0);
    for (size_t i = 0; argv[i]; i++) {
        free(argv[i]);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WEXITSTATUS(status);
}

Test(door, only_who_is_on_the_list_comes_in)
{
    static const char *const allowing[] = {"--threads=1", "--allow-uid=65534", NULL};
    static const char *const by_group[] = {"--threads=1", "--allow-gid=65534", NULL};
    static const char *const others[] = {"--threads=1", "--allow-uid=1", "--allow-gid=2", NULL};

    static const struct {
        const char *const *arguments;
        bool allowed;
    } cases[] = {{arguments, false}, {allowing, true}, {by_group, true}, {others, false}};

    if (geteuid() != 0 || run_as_nobody("test", "-x", SESSION_HOLDER) != 0) {
        cr_skip_test("another user is needed, who may run the helper");
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct daemon daemon;
        cr_assert(daemon_start(&daemon, cases[i].arguments));
        cr_assert_eq(chmod(daemon.directory, 0755), 0);
        int status = run_as_nobody(SESSION_HOLDER, daemon.directory, "probe");
        cr_expect_eq(status, cases[i].allowed ? 0 : 2, "case %zu: %d", i, status);
        cr_expect_eq(log_says(&daemon, "not on the list"), !cases[i].allowed);
        cr_assert(daemon_stop(&daemon));
    }
}

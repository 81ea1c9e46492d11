/* Connections beyond what the daemon has descriptors for, and from whom it does not want: it turns
 * them away and goes on. Plain libzmq would end the process, also by what a peer may say. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
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
#define MAX_SESSIONS 4
#define SPARE_CONNECTIONS 8
#define CLAIMED_NAMES 200
#define FIRST_NAME UINT32_C(0x6b8b4567) /* that libzmq gives */
#define ENDLESS_MIB 64

extern char **environ;

static const char *const arguments[] = {"--threads=1", "--max-sessions=4", NULL};
static const char *const roomy[] = {"--threads=1", "--max-sessions=256", NULL};

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
    for (int tries = 0; tries < 400; tries++) {
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
    for (int tries = 0; tries < 2000 && !log_says(daemon, part); tries++) {
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
    cr_assert(daemon_start(&daemon, roomy));
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
    cr_assert(daemon_start(&daemon, roomy));
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

/* A blocking connection to the requests' socket that has greeted and sent its READY; -1: failed. */
static int speak(const struct daemon *daemon, const void *name, uint8_t name_size)
{
    static const uint8_t greeting[64] = {0xff, [9] = 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    uint8_t ready[64] = "\4\0\5READY\13Socket-Type\0\0\0\6DEALER\10Identity\0\0\0";
    size_t size = 8 + 12 + 10 + 9 + 3;
    ready[size] = name_size;
    memcpy(ready + size + 1, name, name_size);
    size += 1U + name_size;
    ready[1] = (uint8_t)(size - 2);
    int fd = connect_to(daemon, "rpc.sock", SOCK_STREAM);
    struct timeval patience = {.tv_sec = 10};
    if (fd < 0 || fcntl(fd, F_SETFL, 0) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0 ||
        send(fd, greeting, sizeof greeting, MSG_NOSIGNAL) != sizeof greeting ||
        send(fd, ready, size, MSG_NOSIGNAL) != (ssize_t)size) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

/* Whether the daemon hangs up within ten seconds. */
static bool is_cut(int fd)
{
    uint8_t bytes[256];
    ssize_t received = 1;
    while (received > 0) {
        received = recv(fd, bytes, sizeof bytes, 0);
    }
    return received == 0 || errno == ECONNRESET;
}

static bool stays(int fd)
{
    struct timeval patience = {.tv_usec = 300000};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return !is_cut(fd);
}

Test(door, a_peer_that_names_itself_is_cut_and_harms_nobody)
{
    struct daemon daemon;
    struct raw_client honest;
    cr_assert(daemon_start(&daemon, roomy));
    cr_assert(raw_open(&honest, daemon.directory));
    for (uint32_t i = 0; i < CLAIMED_NAMES; i++) {
        uint32_t number = FIRST_NAME + i;
        uint8_t name[] = {0, (uint8_t)(number >> 24), (uint8_t)(number >> 16),
            (uint8_t)(number >> 8), (uint8_t)number};
        int fd = speak(&daemon, name, sizeof name);
        cr_assert(fd >= 0 && is_cut(fd), "name %u", i);
        (void)close(fd);
    }
    cr_expect(log_soon_says(&daemon, "it names itself"));
    int nameless = speak(&daemon, "", 0);
    cr_expect(nameless >= 0 && stays(nameless));
    (void)close(nameless);
    cr_expect_neq(raw_add_plan(&honest), 0);
    raw_close(&honest);
    cr_expect(serves(&daemon));
    cr_assert(daemon_stop(&daemon));
}

static long resident_kib(const struct daemon *daemon)
{
    char path[64];
    char line[256];
    long kib = -1;
    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)daemon->pid);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "VmRSS:", 6) == 0) {
            kib = strtol(line + 6, NULL, 10);
        }
    }
    if (file) {
        (void)fclose(file);
    }
    return kib;
}

Test(door, a_message_without_end_is_cut)
{
    static const uint8_t frame[9 + WIRE_MAX_MESSAGE_BYTES] = {3, [6] = 1}; /* MORE, LONG, 65536 */
    struct daemon daemon;
    struct raw_client honest;
    size_t sent = 0;
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(raw_open(&honest, daemon.directory));
    long before = resident_kib(&daemon);
    int fd = speak(&daemon, "", 0);
    cr_assert(fd >= 0);
    while (sent < ENDLESS_MIB * sizeof frame * 16) {
        ssize_t size = send(fd, frame, sizeof frame, MSG_NOSIGNAL);
        if (size < 0) {
            break;
        }
        sent += (size_t)size;
    }
    cr_expect(is_cut(fd));
    cr_expect_lt(sent, 16 * sizeof frame);
    cr_expect_lt(resident_kib(&daemon), before + 8 * 1024);
    (void)close(fd);
    cr_expect_neq(raw_add_plan(&honest), 0);
    raw_close(&honest);
    cr_expect(serves(&daemon));
    cr_assert(daemon_stop(&daemon));
}

/* Those that have hung up do not count, and who is within the bound is not disturbed. */
Test(door, a_user_has_a_bounded_number_of_connections)
{
    struct daemon daemon;
    struct raw_client honest;
    int fds[MAX_SESSIONS + SPARE_CONNECTIONS - 1];
    size_t count = sizeof fds / sizeof *fds;
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(raw_open(&honest, daemon.directory));
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < count; i++) {
            fds[i] = speak(&daemon, "", 0);
            cr_assert(fds[i] >= 0 && stays(fds[i]), "round %d, connection %zu", round, i);
        }
        int beyond = connect_to(&daemon, "rpc.sock", SOCK_STREAM);
        cr_expect(beyond >= 0 && fcntl(beyond, F_SETFL, 0) == 0 && is_cut(beyond));
        (void)close(beyond);
        cr_expect(log_soon_says(&daemon, "its user has too many"));
        cr_expect_neq(raw_add_plan(&honest), 0);
        release(fds, (int)count);
    }
    raw_close(&honest);
    cr_expect(serves(&daemon));
    cr_assert(daemon_stop(&daemon));
}

#include "facts.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static bool has_group(gid_t group)
{
    gid_t groups[256];
    int count = getgroups((int)(sizeof groups / sizeof groups[0]), groups);
    for (int i = 0; i < count; i++) {
        if (groups[i] == group) {
            return true;
        }
    }
    return getegid() == group;
}

static void look_at_directory(struct facts_daemon *daemon)
{
    struct stat status;
    char path[PATH_MAX + 16];
    daemon->directory_exists = stat(daemon->directory, &status) == 0;
    if (!daemon->directory_exists) {
        return;
    }
    daemon->directory_mode = status.st_mode & 07777;
    daemon->directory_uid = status.st_uid;
    daemon->directory_gid = status.st_gid;
    daemon->directory_enters = faccessat(AT_FDCWD, daemon->directory, X_OK, AT_EACCESS) == 0;
    daemon->in_group = has_group(status.st_gid);
    (void)snprintf(path, sizeof path, "%s/gate.sock", daemon->directory);
    daemon->socket_exists = stat(path, &status) == 0;
}

/* Whoever listens: the kernel says it without a word of theirs. */
static void ask_kernel(struct facts_daemon *daemon)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    int length =
        snprintf(address.sun_path, sizeof address.sun_path, "%s/gate.sock", daemon->directory);
    if (length < 0 || (size_t)length >= sizeof address.sun_path) {
        return;
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return;
    }
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0) {
        daemon->has_peer = true;
        daemon->peer_pid = peer.pid;
        daemon->peer_uid = peer.uid;
    }
    (void)close(fd);
}

static enum facts_answer same_namespace(pid_t pid, const char *kind)
{
    char path[64];
    struct stat own;
    struct stat other;
    (void)snprintf(path, sizeof path, "/proc/self/ns/%s", kind);
    if (stat(path, &own) != 0) {
        return FACTS_UNKNOWN;
    }
    (void)snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, kind);
    if (stat(path, &other) != 0) {
        return FACTS_UNKNOWN;
    }
    return own.st_ino == other.st_ino ? FACTS_YES : FACTS_NO;
}

static FILE *open_of_process(pid_t pid, const char *name)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    return fopen(path, "re");
}

/* "Max open files            1024                 1048576              files" */
static uint64_t read_descriptors(pid_t pid)
{
    char line[256];
    uint64_t number = 0;
    FILE *file = open_of_process(pid, "limits");
    while (file != NULL && number == 0 && fgets(line, sizeof line, file) != NULL) {
        (void)sscanf(line, "Max open files %" SCNu64, &number); /* NOLINT(cert-err34-c) */
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return number;
}

/* "0::/system.slice/system-attnd.slice/attnd@cpu.service" */
static void read_unit(pid_t pid, char unit[FACTS_TEXT])
{
    char line[PATH_MAX];
    FILE *file = open_of_process(pid, "cgroup");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        const char *name = strrchr(line, '/');
        if (name != NULL && strncmp(name, "/attnd@", 7) == 0) {
            (void)snprintf(unit, FACTS_TEXT, "%s", name + 1);
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
}

static void look_at_process(struct facts_daemon *daemon)
{
    if (daemon->has_peer && daemon->peer_pid != 0) {
        daemon->descriptors = read_descriptors(daemon->peer_pid);
        daemon->same_ipc = same_namespace(daemon->peer_pid, "ipc");
        daemon->same_network = same_namespace(daemon->peer_pid, "net");
        read_unit(daemon->peer_pid, daemon->unit);
    }
}

static void ask_daemon(struct facts_daemon *daemon)
{
    struct attnd_open_options options = {.size = sizeof options,
        .address = daemon->directory,
        .timeout_ns = INT64_C(2) * 1000 * 1000 * 1000};
    struct attnd *client = NULL;
    daemon->status = attnd_open(&options, &client);
    if (daemon->status == ATTND_OK) {
        daemon->stats.size = sizeof daemon->stats;
        daemon->info.size = sizeof daemon->info;
        daemon->status = attnd_get_stats(client, &daemon->stats);
        daemon->has_stats = daemon->status == ATTND_OK;
    }
    if (daemon->status == ATTND_OK) {
        daemon->status = attnd_get_info(client, &daemon->info);
        daemon->has_info = daemon->status == ATTND_OK;
    }
    if (daemon->status != ATTND_OK) {
        (void)snprintf(daemon->message, sizeof daemon->message, "%s", attnd_message());
    }
    attnd_close(client);
}

void facts_of_daemon(struct facts_daemon *daemon, const char *directory, bool asked_for)
{
    *daemon = (struct facts_daemon){.asked_for = asked_for};
    (void)snprintf(daemon->directory, sizeof daemon->directory, "%s", directory);
    look_at_directory(daemon);
    ask_kernel(daemon);
    look_at_process(daemon);
    ask_daemon(daemon);
}

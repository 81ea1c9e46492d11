#include "door.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"

#define MAX_GROUPS 1024 /* of a peer; more of them are not looked at */

/* Set by door_install() before there are threads; only the reserve changes afterwards. */
static struct {
    bool installed;
    struct door_rules rules;
    int rpc_ceiling;  /* descriptors from here on are not for rpc connections, */
    int gate_ceiling; /* nor from here on for the gate's */
    pthread_mutex_t mutex;
    int reserve; /* under the mutex: given up for a moment to turn a peer away */
} door = {.mutex = PTHREAD_MUTEX_INITIALIZER, .reserve = -1};

static atomic_ulong turned_away;

/* Anybody may cause these: the log gets the 1st, 2nd, 4th, 8th and so on. */
static void log_refusal(const char *why)
{
    unsigned long count = atomic_fetch_add(&turned_away, 1) + 1;
    if ((count & (count - 1)) == 0) {
        log_warning("door: connection refused, %s; %lu so far", why, count);
    }
}

static bool contains(const struct config_ids *ids, uint32_t id)
{
    for (size_t i = 0; i < ids->count; i++) {
        if (ids->id[i] == id) {
            return true;
        }
    }
    return false;
}

static bool peer_is_allowed(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);
    gid_t groups[MAX_GROUPS];
    socklen_t groups_size = sizeof(groups);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
        return false;
    }
    if (peer.uid == 0 || peer.uid == geteuid() || contains(&door.rules.uids, peer.uid) ||
        contains(&door.rules.gids, peer.gid)) {
        return true;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &groups_size) != 0) {
        return false;
    }
    for (size_t i = 0; i < groups_size / sizeof(groups[0]); i++) {
        if (contains(&door.rules.gids, groups[i])) {
            return true;
        }
    }
    return false;
}

/* The lowest free number is what a new descriptor gets, so its number says how many there are. */
static bool descriptors_are_short(int fd)
{
    int type = 0;
    socklen_t size = sizeof(type);

    (void)getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    return fd >= (type == SOCK_STREAM ? door.rpc_ceiling : door.gate_ceiling);
}

static int open_reserve(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Takes the first of the queue and hangs up on it: left there, it would keep the listener ready and
 * its thread busy. */
static void turn_away(int listener)
{
    (void)pthread_mutex_lock(&door.mutex);
    if (door.reserve >= 0) {
        (void)close(door.reserve);
        long fd = syscall(SYS_accept4, listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            (void)close((int)fd);
        }
    }
    door.reserve = open_reserve();
    (void)pthread_mutex_unlock(&door.mutex);
}

unsigned door_install(const struct door_rules *rules)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return 0;
    }
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    unsigned descriptors = limit.rlim_max > INT32_MAX ? INT32_MAX : (unsigned)limit.rlim_max;
    door.rules = *rules;
    door.rpc_ceiling = (int)(descriptors - descriptors / 4);
    door.gate_ceiling = (int)(descriptors - descriptors / 8);
    door.reserve = open_reserve();
    door.installed = door.reserve >= 0;
    return door.installed ? descriptors : 0;
}

__attribute__((visibility("default"))) int accept4(
    int fd, __SOCKADDR_ARG addr, socklen_t *restrict addr_len, int flags)
{
    int accepted = (int)syscall(SYS_accept4, fd, addr.__sockaddr__, addr_len, flags);

    if (!door.installed) {
        return accepted;
    }
    if (accepted < 0 && (errno == EMFILE || errno == ENFILE)) {
        turn_away(fd);
        log_refusal("no descriptor left");
        errno = ECONNABORTED;
        return -1;
    }
    if (accepted < 0) {
        return -1;
    }
    const char *why = !peer_is_allowed(accepted)        ? "its user is not on the list"
                      : descriptors_are_short(accepted) ? "descriptors run short"
                                                        : NULL;
    if (why != NULL) {
        (void)close(accepted);
        log_refusal(why);
        errno = ECONNABORTED;
        return -1;
    }
    return accepted;
}

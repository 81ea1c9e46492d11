#include "door.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"
#include "thread.h"
#include "zmtp.h"

#define MAX_GROUPS 1024 /* of a peer; more of them are not looked at */
#define MAX_RPC_DESCRIPTORS 65536
#define SPARE_RPC_PER_UID 8 /* connections beside those of its sessions */

/* Set by door_install() before there are threads; only the reserve changes afterwards. */
static struct {
    bool installed;
    struct door_rules rules;
    uint64_t rpc_per_uid;
    int rpc_ceiling;  /* descriptors from here on are not for rpc connections, */
    int gate_ceiling; /* nor from here on for the gate's */
    pthread_mutex_t mutex;
    int reserve; /* under the mutex: given up for a moment to turn a peer away */
} door = {.mutex = PTHREAD_MUTEX_INITIALIZER, .reserve = -1};

/* A connection of the requests' socket, at the number of its descriptor. libzmq closes it without a
 * word, so what is here may be out of date: the cookie tells. */
struct rpc_peer {
    uint64_t cookie; /* 0: none */
    uid_t uid;
    struct zmtp zmtp;
};

/* Only of the thread that accepts those connections, which is also the one that reads from them:
 * libzmq's only I/O thread. Any other thread that comes to recv() is passed through. */
static struct rpc_peer rpc_peers[MAX_RPC_DESCRIPTORS];
static int rpc_end; /* of the descriptors that have ever been there */
static _Thread_local bool accepts_rpc;

static atomic_ulong refused;
static atomic_ulong cut;

/* Anybody may cause these: the log gets the 1st, 2nd, 4th, 8th and so on. */
static void log_some(atomic_ulong *counter, const char *what, const char *why)
{
    unsigned long count = atomic_fetch_add(counter, 1) + 1;
    if ((count & (count - 1)) == 0) {
        log_warning("door: connection %s, %s; %lu so far", what, why, count);
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

static bool peer_is_allowed(int fd, const struct ucred *peer)
{
    gid_t groups[MAX_GROUPS];
    socklen_t size = sizeof(groups);

    if (peer->uid == 0 || peer->uid == geteuid() || contains(&door.rules.uids, peer->uid) ||
        contains(&door.rules.gids, peer->gid)) {
        return true;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) != 0) {
        return false;
    }
    for (size_t i = 0; i < size / sizeof(groups[0]); i++) {
        if (contains(&door.rules.gids, groups[i])) {
            return true;
        }
    }
    return false;
}

/* The kernel's number of a socket, which no other socket ever has; 0: it is none. */
static uint64_t cookie_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t size = sizeof(cookie);

    return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

/* Whether the descriptor is still that connection, and its peer has not hung up. */
static bool is_connected(int fd, const struct rpc_peer *peer)
{
    struct pollfd state = {.fd = fd};

    return cookie_of(fd) == peer->cookie && poll(&state, 1, 0) <= 0;
}

/* The connections of a user, up to the most it may have. Asking the kernel for each is only worth
 * it when it looks as if there were too many. */
static uint64_t count_rpc(uid_t uid, bool ask)
{
    uint64_t count = 0;

    for (int fd = 0; fd < rpc_end && count < door.rpc_per_uid; fd++) {
        const struct rpc_peer *peer = &rpc_peers[fd];
        count += peer->cookie != 0 && peer->uid == uid && (!ask || is_connected(fd, peer));
    }
    return count;
}

static bool add_rpc(int fd, uid_t uid)
{
    struct rpc_peer *peer = &rpc_peers[fd];

    if (!accepts_rpc) {
        accepts_rpc = true;
        thread_take_faults(); /* libzmq blocks all signals there */
    }
    peer->cookie = 0;
    if (count_rpc(uid, false) == door.rpc_per_uid && count_rpc(uid, true) == door.rpc_per_uid) {
        return false;
    }
    peer->cookie = cookie_of(fd);
    peer->uid = uid;
    zmtp_init(&peer->zmtp);
    rpc_end = rpc_end > fd ? rpc_end : fd + 1;
    return true;
}

/* NULL, or why it cannot stay. The lowest free number is what a new descriptor gets, so its number
 * says how many there are. */
static const char *judge(int fd)
{
    struct ucred peer = {.uid = (uid_t)-1, .gid = (gid_t)-1};
    socklen_t size = sizeof(peer);
    int type = 0;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !peer_is_allowed(fd, &peer)) {
        return "its user is not on the list";
    }
    size = sizeof(type);
    (void)getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    bool rpc = type == SOCK_STREAM;
    if (fd >= (rpc ? door.rpc_ceiling : door.gate_ceiling)) {
        return "descriptors run short";
    }
    return rpc && !add_rpc(fd, peer.uid) ? "its user has too many" : NULL;
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
    if (door.rpc_ceiling > MAX_RPC_DESCRIPTORS) {
        door.rpc_ceiling = MAX_RPC_DESCRIPTORS;
    }
    door.rpc_per_uid = rules->sessions_per_uid + SPARE_RPC_PER_UID;
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
        log_some(&refused, "refused", "no descriptor left");
        errno = ECONNABORTED;
        return -1;
    }
    if (accepted < 0) {
        return -1;
    }
    const char *why = judge(accepted);
    if (why != NULL) {
        (void)close(accepted);
        log_some(&refused, "refused", why);
        errno = ECONNABORTED;
        return -1;
    }
    return accepted;
}

__attribute__((visibility("default"))) ssize_t recv(int fd, void *buf, size_t n, int flags)
{
    bool rpc = accepts_rpc && fd >= 0 && fd < rpc_end && rpc_peers[fd].cookie != 0;
    struct zmtp *zmtp = rpc ? &rpc_peers[fd].zmtp : NULL;

    if (zmtp == NULL || zmtp->fault == NULL) {
        ssize_t received = syscall(SYS_recvfrom, fd, buf, n, flags, NULL, NULL);
        if (received <= 0 || zmtp == NULL || zmtp_feed(zmtp, buf, (size_t)received)) {
            return received;
        }
        log_some(&cut, "cut", zmtp->fault);
    }
    errno = ECONNRESET;
    return -1;
}

#include "sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>
#include <unistd.h>

#define BLOCK_BYTES 512 /* the unit of st_blocks */
#define NO_MEMFD "the descriptor is no memfd of ordinary pages (a regular file on tmpfs)"
#define NEEDED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static bool check_kind(int fd, struct stat *status, struct wire_error *error)
{
    struct statfs filesystem;

    if (fstat(fd, status) != 0 || fstatfs(fd, &filesystem) != 0) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY, "the descriptor cannot be examined: %s",
            strerrordesc_np(errno));
    }
    if (!S_ISREG(status->st_mode) || filesystem.f_type != TMPFS_MAGIC) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY, NO_MEMFD);
    }
    int mode = fcntl(fd, F_GETFL);
    if (mode < 0 || (mode & O_ACCMODE) != O_RDWR) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY,
            "the descriptor is not open for both reading and writing");
    }
    return true;
}

static bool check_seals(int seals, struct wire_error *error)
{
    static const struct {
        int seal;
        const char *name;
    } needed[] = {
        {F_SEAL_SHRINK, "F_SEAL_SHRINK"},
        {F_SEAL_GROW, "F_SEAL_GROW"},
        {F_SEAL_SEAL, "F_SEAL_SEAL"},
    };

    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if (!(seals & needed[i].seal)) {
            return wire_fail(
                error, WIRE_UNSUPPORTED_MEMORY, "the descriptor's file lacks %s", needed[i].name);
        }
    }
    if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) {
        return wire_fail(
            error, WIRE_UNSUPPORTED_MEMORY, "the descriptor's file is sealed against writing");
    }
    return true;
}

/* The kernel would try to allocate any amount, and end processes on the way. */
static bool is_more_than_machine(uint64_t bytes)
{
    struct sysinfo info;

    return sysinfo(&info) != 0 ||
           bytes / info.mem_unit >= (uint64_t)info.totalram + (uint64_t)info.totalswap;
}

int sealed_create(const char *name, uint64_t bytes)
{
    if (bytes == 0) {
        return -EINVAL;
    }
    if (is_more_than_machine(bytes)) {
        return -ENOMEM;
    }
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return -errno;
    }
    int failed;
    do { /* a signal undoes a long allocation */
        failed = fallocate(fd, 0, 0, (off_t)bytes);
    } while (failed != 0 && errno == EINTR);
    if (failed != 0 || fcntl(fd, F_ADD_SEALS, NEEDED_SEALS) != 0) {
        int code = errno;
        close(fd);
        return -code;
    }
    return fd;
}

bool sealed_check(int fd, uint64_t bytes, struct wire_error *error)
{
    struct stat status;

    /* Seals first: only under them do size and blocks stay what they are, and whether a file has them
     * is answered without its file system, which may be one that never answers. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) {
        return errno == EINVAL
                   ? wire_fail(error, WIRE_UNSUPPORTED_MEMORY, NO_MEMFD)
                   : wire_fail(error, WIRE_UNSUPPORTED_MEMORY,
                         "the descriptor cannot be examined: %s", strerrordesc_np(errno));
    }
    if (!check_kind(fd, &status, error) || !check_seals(seals, error)) {
        return false;
    }
    if (fstat(fd, &status) != 0 || (uint64_t)status.st_size != bytes) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "bytes is %" PRIu64 ", but the descriptor's file has %" PRIu64, bytes,
            (uint64_t)status.st_size);
    }
    if ((uint64_t)status.st_blocks < bytes / BLOCK_BYTES + (bytes % BLOCK_BYTES != 0)) {
        return wire_fail(error, WIRE_UNSUPPORTED_MEMORY,
            "the descriptor's file has holes: %" PRIu64 " of its %" PRIu64 " bytes are allocated",
            (uint64_t)status.st_blocks * BLOCK_BYTES, bytes);
    }
    return true;
}

void *sealed_map(int fd, uint64_t bytes)
{
    if (bytes > SIZE_MAX) {
        errno = EOVERFLOW;
        return NULL;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

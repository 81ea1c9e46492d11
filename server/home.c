#include "home.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static bool check_directory(struct home *home, const char *directory, struct wire_error *error)
{
    struct stat status;

    if (mkdir(directory, 0750) != 0 && errno != EEXIST) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "directory %s cannot be made: %s", directory,
            strerrordesc_np(errno));
    }
    if (stat(directory, &status) != 0 || !S_ISDIR(status.st_mode)) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "%s is no directory", directory);
    }
    if (status.st_uid != geteuid() || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        return wire_fail(error, WIRE_PERMISSION_DENIED,
            "directory %s: only uid %u, who runs this daemon, may own it and write to it",
            directory, (unsigned)geteuid());
    }
    home->group = status.st_gid;
    return true;
}

static bool take_lock(struct home *home, const char *directory, struct wire_error *error)
{
    char path[HOME_PATH_BYTES];

    (void)snprintf(path, sizeof(path), "%s/attnd.lock", directory);
    home->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    /* Whoever may open it may lock it and so keep the next daemon from starting. */
    if (home->lock < 0 || fchmod(home->lock, 0600) != 0) {
        (void)wire_fail(
            error, WIRE_INVALID_ARGUMENT, "%s cannot be opened: %s", path, strerrordesc_np(errno));
        (void)close(home->lock);
        home->lock = -1;
        return false;
    }
    if (flock(home->lock, LOCK_EX | LOCK_NB) != 0) {
        int code = errno;
        (void)close(home->lock);
        home->lock = -1;
        return code == EWOULDBLOCK ? wire_fail(error, WIRE_AGAIN, "another daemon holds %s", path)
                                   : wire_fail(error, WIRE_INVALID_ARGUMENT,
                                         "%s cannot be locked: %s", path, strerrordesc_np(code));
    }
    /* For people; nobody reads it back. */
    if (ftruncate(home->lock, 0) == 0) {
        (void)dprintf(home->lock, "%d\n", (int)getpid());
    }
    return true;
}

bool home_open(struct home *home, const char *directory, struct wire_error *error)
{
    *home = (struct home){.lock = -1};
    int gate = snprintf(home->gate_path, HOME_PATH_BYTES, "%s/gate.sock", directory);
    int rpc = snprintf(home->rpc_path, HOME_PATH_BYTES, "%s/rpc.sock", directory);
    if (gate >= HOME_PATH_BYTES || rpc >= HOME_PATH_BYTES) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "directory has %zu bytes; with the sockets' names it must stay below %d",
            strlen(directory), HOME_PATH_BYTES);
    }
    if (!check_directory(home, directory, error) || !take_lock(home, directory, error)) {
        return false;
    }
    (void)unlink(home->gate_path);
    (void)unlink(home->rpc_path);
    return true;
}

void home_close(struct home *home)
{
    if (home->lock < 0) {
        return;
    }
    (void)unlink(home->gate_path);
    (void)unlink(home->rpc_path);
    (void)close(home->lock);
    home->lock = -1;
}

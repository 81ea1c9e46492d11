#include "scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool make_in(struct scratch *scratch, const char *parent)
{
    int length = snprintf(scratch->path, sizeof(scratch->path), "%s/attnd-demo-XXXXXX", parent);
    bool made = length < (int)sizeof(scratch->path) && mkdtemp(scratch->path) != NULL;
    if (!made) {
        scratch->path[0] = '\0';
    }
    return made;
}

static void remove_entries(DIR *directory)
{
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) { /* NOLINT(concurrency-mt-unsafe): one thread */
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            unlinkat(dirfd(directory), entry->d_name, 0);
        }
    }
}

bool scratch_open(struct scratch *scratch)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (runtime != NULL && runtime[0] == '/' && make_in(scratch, runtime)) {
        return true;
    }
    return make_in(scratch, "/tmp");
}

bool scratch_close(struct scratch *scratch)
{
    if (scratch->path[0] == '\0') {
        return true;
    }
    DIR *directory = opendir(scratch->path);
    if (directory != NULL) {
        remove_entries(directory);
        closedir(directory);
    }
    bool gone = rmdir(scratch->path) == 0;
    scratch->path[0] = '\0';
    return gone;
}

#include "facts.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static void copy_environment(char *text, size_t bytes, const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    (void)snprintf(text, bytes, "%s", value != NULL ? value : otherwise);
}

static bool is_there(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0;
}

/* The number behind `name` in a file of lines "name: number kB". UINT64_MAX: none. */
static uint64_t read_kilobytes(const char *path, const char *name)
{
    uint64_t number = UINT64_MAX;
    char line[256];
    char format[64];
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return UINT64_MAX;
    }
    (void)snprintf(format, sizeof format, "%s: %%" SCNu64, name);
    while (number == UINT64_MAX && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, format, &number) == 1) { /* NOLINT(cert-err34-c): the kernel's number */
            number *= 1024;
        }
    }
    (void)fclose(file);
    return number;
}

/* A file that holds one number, or "max". UINT64_MAX: none. */
static uint64_t read_number(const char *directory, const char *name)
{
    char path[PATH_MAX + 32];
    uint64_t number = UINT64_MAX;
    (void)snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        /* NOLINTNEXTLINE(cert-err34-c): the kernel's number */
        if (fscanf(file, "%" SCNu64, &number) != 1) {
            number = UINT64_MAX;
        }
        (void)fclose(file);
    }
    return number;
}

static uint64_t left_in(const char *directory)
{
    uint64_t most = read_number(directory, "memory.max");
    uint64_t used = read_number(directory, "memory.current");
    if (most == UINT64_MAX || used == UINT64_MAX) {
        return UINT64_MAX;
    }
    return most > used ? most - used : 0;
}

/* What this process's cgroup leaves and those around it, of which any may have the limit: a slice, a job.
 * Where a container sees itself as the root, so is its cgroup. */
static uint64_t cgroup_left(void)
{
    static const char ROOT[] = "/sys/fs/cgroup";
    char line[PATH_MAX - 64] = "";
    char directory[PATH_MAX];
    (void)snprintf(directory, sizeof directory, "%s", ROOT);
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::", 3) == 0) {
            (void)snprintf(directory, sizeof directory, "%s%s", ROOT, line + 3);
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    uint64_t left = left_in(directory);
    while (strlen(directory) > strlen(ROOT)) {
        *strrchr(directory, '/') = '\0';
        uint64_t around = left_in(directory);
        left = around < left ? around : left;
    }
    return left;
}

static void find_unit_file(char path[PATH_MAX])
{
    static const char *const PLACES[] = {"/etc/systemd/system", "/run/systemd/system",
        "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"};
    for (size_t i = 0; i < sizeof PLACES / sizeof PLACES[0]; i++) {
        (void)snprintf(path, PATH_MAX, "%s/attnd@.service", PLACES[i]);
        if (is_there(path)) {
            return;
        }
    }
    path[0] = '\0';
}

/* "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  ..." */
static void read_module_version(char version[FACTS_TEXT])
{
    char line[256];
    FILE *file = fopen("/proc/driver/nvidia/version", "re");
    version[0] = '\0';
    if (file == NULL) {
        return;
    }
    if (fgets(line, sizeof line, file) != NULL) {
        const char *at = strstr(line, "Module");
        at = at != NULL ? at + strcspn(at, "0123456789") : "";
        (void)snprintf(version, FACTS_TEXT, "%.*s", (int)strspn(at, "0123456789."), at);
    }
    (void)fclose(file);
}

static bool opens(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        (void)close(fd);
    }
    return fd >= 0;
}

void facts_of_process(struct facts_process *process)
{
    char control[PATH_MAX + 16];
    struct rlimit limit;
    *process = (struct facts_process){.uid = geteuid(), .gid = getegid()};
    process->max_connections_set = getenv("CUDA_DEVICE_MAX_CONNECTIONS") != NULL;
    copy_environment(process->max_connections, sizeof process->max_connections,
        "CUDA_DEVICE_MAX_CONNECTIONS", "");
    copy_environment(
        process->visible_devices, sizeof process->visible_devices, "CUDA_VISIBLE_DEVICES", "");
    copy_environment(process->mps_directory, sizeof process->mps_directory,
        "CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");
    (void)snprintf(control, sizeof control, "%s/control", process->mps_directory);
    process->mps_control = is_there(control);
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        process->descriptors = limit.rlim_cur;
    }
}

void facts_of_machine(struct facts_machine *machine)
{
    struct statvfs shm;
    *machine = (struct facts_machine){0};
    uint64_t available = read_kilobytes("/proc/meminfo", "MemAvailable");
    uint64_t left = cgroup_left();
    machine->memory_free = left < available ? left : available;
    machine->shm = statvfs("/dev/shm", &shm) == 0;
    if (machine->shm) {
        machine->shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
        machine->shm_free = (uint64_t)shm.f_bavail * shm.f_frsize;
    }
    machine->systemd = is_there("/run/systemd/system");
    find_unit_file(machine->unit_file);
    read_module_version(machine->module_version);
    machine->nvidia_device = is_there("/dev/nvidiactl");
    machine->nvidia_device_opens = machine->nvidia_device && opens("/dev/nvidiactl");
}

#include "doctor.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The oldest driver that the kernels run with; without CUDA in this build, that any build does. */
#ifndef CUDA_MAJOR
#define CUDA_MAJOR 12
#endif
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

static const char NEWER_DRIVER_ADVICE[] =
    "install a driver for CUDA " TEXT(CUDA_MAJOR) " or newer, or build attnd with an older toolkit";

static const uint64_t MIB = UINT64_C(1) << 20;
static const uint64_t GIB = UINT64_C(1) << 30;

enum {
    OLDEST_CAPABILITY = 80, /* of the kernels: A100's */
    LEAST_BLOCK_KIB = 163, /* of shared memory, that their blocks take nearly all of: A100's, too */
    OLDEST_CUDA = CUDA_MAJOR * 1000,
    FEW_DESCRIPTORS = 64, /* a client needs about half of that for itself */
    ENOUGH_DESCRIPTORS = 256,
    PER_SESSION = 4, /* descriptors that the daemon holds for a client: two sockets, pidfd, spare */
    OF_DAEMON = 64,
    OWN_QUEUES = 8, /* what CUDA takes for CUDA_DEVICE_MAX_CONNECTIONS where it is not set */
    OWN_QUEUES_MPS = 4,
    MOST_QUEUES = 32,
    SHARED_QUEUES = 120, /* of an MPS server, for all its processes: seen on an H200 */
    ENOUGH_QUEUES_MPS = 8,
};

__attribute__((format(printf, 5, 6))) static void add(struct doctor *doctor, const char *name,
    enum doctor_level level, const char *advice, const char *format, ...)
{
    va_list arguments;
    assert(doctor->count < DOCTOR_FINDINGS);
    struct doctor_finding *finding = &doctor->finding[doctor->count++];
    *finding = (struct doctor_finding){.name = name, .level = level, .advice = advice};
    va_start(arguments, format);
    (void)vsnprintf(finding->text, sizeof finding->text, format, arguments);
    va_end(arguments);
}

static bool daemon_has_gpu(const struct facts_daemon *daemon)
{
    return daemon->has_info && daemon->info.device == ATTND_DEVICE_CUDA;
}

/* Whether anything about GPUs means something here. */
static bool concerns_gpu(const struct facts *facts)
{
    return facts->cuda.gpus > 0 || facts->machine.nvidia_device ||
           facts->machine.module_version[0] != '\0' || daemon_has_gpu(&facts->daemon);
}

/* ---- The machine and its GPUs -------------------------------------------------------------- */

static void judge_driver(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_cuda *cuda = &facts->cuda;
    const char *module = facts->machine.module_version;
    if (!cuda->library && !concerns_gpu(facts)) {
        add(doctor, "driver", DOCTOR_OK, "", "no NVIDIA driver; the CPU device needs none");
    } else if (!cuda->library) {
        add(doctor, "driver", DOCTOR_BAD,
            "install the driver's libcuda.so.1; in a container start it with the GPU's libraries "
            "(\"compute\" among NVIDIA_DRIVER_CAPABILITIES)",
            "this machine has an NVIDIA device, but no libcuda.so.1 is found");
    } else if (cuda->error != 0 && cuda->gpus == 0) {
        add(doctor, "driver", DOCTOR_BAD,
            "see that the library is as new as the kernel's module (a reboot after an upgrade), "
            "that /dev/nvidia* may be opened, and on NVSwitch machines that the fabric manager "
            "runs",
            "the driver does not start: %s (%d)", cuda->error_name, cuda->error);
    } else if (cuda->version < OLDEST_CUDA) {
        add(doctor, "driver", DOCTOR_BAD, NEWER_DRIVER_ADVICE,
            "the driver is for CUDA %d.%d, too old for the kernels", cuda->version / 1000,
            cuda->version % 1000 / 10);
    } else {
        add(doctor, "driver", DOCTOR_OK, "", "for CUDA %d.%d%s%s", cuda->version / 1000,
            cuda->version % 1000 / 10, module[0] != '\0' ? ", version " : "", module);
    }
}

static const char OTHER_GPU_ADVICE[] =
    "use the CPU device, or a GPU such as A100 or H100 (compute capability 8.0, 8.7, 9.0, 10.x)";

static void judge_gpu(const struct facts_gpu *gpu, bool mps, struct doctor *doctor)
{
    char uuid[DOCTOR_UUID];
    int capability = gpu->major * 10 + gpu->minor;
    doctor_print_uuid(gpu->uuid, uuid);
    if (capability < OLDEST_CAPABILITY) {
        add(doctor, "gpu", DOCTOR_WARN, OTHER_GPU_ADVICE,
            "%s, %s, has compute capability %d.%d; the kernels need 8.0", gpu->name, uuid,
            gpu->major, gpu->minor);
    } else if (gpu->block_bytes < LEAST_BLOCK_KIB * 1024) {
        add(doctor, "gpu", DOCTOR_WARN, OTHER_GPU_ADVICE,
            "%s, %s, compute capability %d.%d, gives a block %d KiB of shared memory; the kernels "
            "need %d",
            gpu->name, uuid, gpu->major, gpu->minor, gpu->block_bytes / 1024, LEAST_BLOCK_KIB);
    } else if (gpu->compute_mode == FACTS_COMPUTE_PROHIBITED) {
        add(doctor, "gpu", DOCTOR_BAD, "\"nvidia-smi -c DEFAULT\" as root",
            "%s, %s, is in a mode that lets no process compute", gpu->name, uuid);
    } else if (gpu->compute_mode == FACTS_COMPUTE_EXCLUSIVE && !mps) {
        add(doctor, "gpu", DOCTOR_BAD,
            "start MPS (attnd-mps@), or \"nvidia-smi -c DEFAULT\" as root",
            "%s, %s, lets one process compute at a time: daemon and trainer exclude each other",
            gpu->name, uuid);
    } else {
        add(doctor, "gpu", DOCTOR_OK, "", "%s, %s, compute capability %d.%d, %" PRIu64 " GiB",
            gpu->name, uuid, gpu->major, gpu->minor, gpu->memory_bytes / GIB);
    }
}

static void judge_gpus(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_cuda *cuda = &facts->cuda;
    const char *visible = facts->process.visible_devices;
    bool mps = facts->process.mps_control;
    for (size_t i = 0; i < cuda->gpus; i++) {
        judge_gpu(&cuda->gpu[i], mps, doctor);
    }
    if (cuda->gpus > 0 || !concerns_gpu(facts)) {
        return;
    }
    if (facts->machine.nvidia_device && !facts->machine.nvidia_device_opens) {
        add(doctor, "gpu", DOCTOR_BAD,
            "let this user open /dev/nvidia* (its group, or the container's devices)",
            "there is a GPU, but this user may not open /dev/nvidiactl");
    } else if (visible[0] != '\0') {
        add(doctor, "gpu", DOCTOR_WARN, "unset CUDA_VISIBLE_DEVICES, or name a GPU in it",
            "no GPU is seen with CUDA_VISIBLE_DEVICES=%s", visible);
    } else {
        add(doctor, "gpu", DOCTOR_WARN,
            "see what \"nvidia-smi -L\" lists; give a container its GPUs",
            "no GPU is seen from here");
    }
}

static void judge_memory(const struct facts_machine *machine, struct doctor *doctor)
{
    uint64_t free = machine->memory_free;
    char shm[96] = "there is no /dev/shm";
    if (machine->shm) {
        (void)snprintf(shm, sizeof shm, "/dev/shm has %" PRIu64 " of %" PRIu64 " MiB free",
            machine->shm_free / MIB, machine->shm_bytes / MIB);
    }
    if (free == UINT64_MAX) {
        add(doctor, "memory", DOCTOR_OK, "",
            "how much memory is left cannot be found out; %s, which attnd does not use", shm);
    } else {
        bool little = free < GIB;
        add(doctor, "memory", little ? DOCTOR_WARN : DOCTOR_OK,
            little ? "free memory, or raise the container's limit: attnd_alloc() takes from it"
                   : "",
            "%" PRIu64 " MiB are left for shared memory, which counts as the process's own; %s, "
            "which attnd does not use",
            free / MIB, shm);
    }
}

/* ---- The way to the daemon ----------------------------------------------------------------- */

/* The unit opens its directory to its group alone; allow-uid opens the daemon, not the directory. */
static const char ENTER_ADVICE[] =
    "add the user to the directory's group (\"usermod -aG attnd USER\") and log in again; where "
    "users outside of it are named in allow-uid, set RuntimeDirectoryMode=0755 by \"systemctl "
    "edit\"";

static const char *permission_advice(const struct facts_daemon *daemon)
{
    if (!daemon->directory_enters) {
        return ENTER_ADVICE;
    }
    return daemon->in_group
               ? "see allow-uid and allow-gid in the daemon's attnd.conf"
               : "add the user to the directory's group (\"usermod -aG attnd USER\") and log in "
                 "again, or name it in the daemon's allow-uid";
}

static void judge_directory(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_daemon *daemon = &facts->daemon;
    if (!daemon->directory_exists) {
        return; /* which the next finding says */
    }
    unsigned mode = daemon->directory_mode;
    if ((mode & 0002U) != 0) {
        add(doctor, "directory", DOCTOR_BAD,
            "\"chmod o-w\" it: whoever may write there can take the "
            "daemon's place",
            "%s may be written by everybody (mode %04o)", daemon->directory, mode);
    } else if (daemon->has_peer && daemon->directory_uid != daemon->peer_uid &&
               daemon->directory_uid != 0) {
        add(doctor, "directory", DOCTOR_WARN, "let the daemon's user own its directory",
            "%s belongs to user %u, but user %u serves there", daemon->directory,
            (unsigned)daemon->directory_uid, (unsigned)daemon->peer_uid);
    } else if (!daemon->directory_enters) {
        add(doctor, "directory", DOCTOR_BAD, ENTER_ADVICE,
            "user %u may not enter %s (mode %04o, user %u, group %u)", (unsigned)facts->process.uid,
            daemon->directory, mode, (unsigned)daemon->directory_uid,
            (unsigned)daemon->directory_gid);
    } else {
        add(doctor, "directory", DOCTOR_OK, "", "%s, mode %04o, user %u, group %u",
            daemon->directory, mode, (unsigned)daemon->directory_uid,
            (unsigned)daemon->directory_gid);
    }
}

static void judge_connection(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_daemon *daemon = &facts->daemon;
    switch (daemon->status) {
    case ATTND_OK:
        add(doctor, "daemon", DOCTOR_OK, "", "attnd %s answers, pid %u, on %s; user %u may use it",
            daemon->info.daemon_version, (unsigned)daemon->info.pid, daemon->info.device_name,
            (unsigned)facts->process.uid);
        break;
    case ATTND_DISCONNECTED:
    case ATTND_TIMED_OUT:
        add(doctor, "daemon", daemon->asked_for ? DOCTOR_BAD : DOCTOR_WARN,
            "start it (\"systemctl start attnd@cpu\" or attnd@cuda), or name its directory with "
            "--address; if it runs and is silent, see its log",
            "no daemon answers: %s", daemon->message);
        break;
    case ATTND_PERMISSION_DENIED:
        add(doctor, "daemon", DOCTOR_BAD, permission_advice(daemon), "user %u is refused: %s",
            (unsigned)facts->process.uid, daemon->message);
        break;
    case ATTND_VERSION_MISMATCH:
        add(doctor, "daemon", DOCTOR_BAD, "install daemon and library of one version",
            "the daemon speaks another version: %s", daemon->message);
        break;
    case ATTND_RESOURCE_EXHAUSTED:
        add(doctor, "daemon", DOCTOR_BAD,
            "end clients, or raise max-sessions or max-sessions-per-uid in the daemon's attnd.conf",
            "there is no room for one more client: %s", daemon->message);
        break;
    case ATTND_DRAINING:
        add(doctor, "daemon", DOCTOR_WARN, "wait until it has been started again",
            "the daemon is about to end: %s", daemon->message);
        break;
    default:
        add(doctor, "daemon", DOCTOR_BAD, "see the daemon's log", "the daemon refuses: %s (%s)",
            daemon->message, attnd_status_name(daemon->status));
    }
}

static void judge_unit(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_machine *machine = &facts->machine;
    if (facts->daemon.unit[0] != '\0') {
        add(doctor, "unit", DOCTOR_OK, "", "the daemon runs as %s", facts->daemon.unit);
    } else if (!machine->systemd) {
        add(doctor, "unit", DOCTOR_OK, "", "no systemd here: nothing starts a daemon that ended");
    } else if (machine->unit_file[0] == '\0') {
        add(doctor, "unit", DOCTOR_WARN,
            "\"cmake --install\" puts it there; then \"systemctl daemon-reload\"",
            "attnd@.service is not installed: nothing starts a daemon that ended");
    } else if (facts->daemon.has_peer) {
        add(doctor, "unit", DOCTOR_WARN, "\"systemctl enable --now attnd@cpu\", or attnd@cuda",
            "%s is there, but the daemon was not started by it", machine->unit_file);
    } else {
        add(doctor, "unit", DOCTOR_OK, "", "%s is there", machine->unit_file);
    }
}

static void judge_descriptors(const struct facts *facts, struct doctor *doctor)
{
    uint64_t own = facts->process.descriptors;
    const struct facts_daemon *daemon = &facts->daemon;
    if (own < ENOUGH_DESCRIPTORS) {
        add(doctor, "descriptors", own < FEW_DESCRIPTORS ? DOCTOR_BAD : DOCTOR_WARN,
            "raise it: \"ulimit -n 1024\", or LimitNOFILE= of the trainer's unit",
            "a process started from here may have %" PRIu64 " descriptors open", own);
    } else {
        add(doctor, "descriptors", DOCTOR_OK, "",
            "a process started from here may have %" PRIu64 " descriptors open", own);
    }
    if (daemon->descriptors == 0 || !daemon->has_info) {
        return;
    }
    uint64_t needed = (uint64_t)daemon->info.max_sessions * PER_SESSION + OF_DAEMON;
    bool enough = daemon->descriptors >= needed;
    add(doctor, "daemon-descriptors", enough ? DOCTOR_OK : DOCTOR_WARN,
        enough ? "" : "raise the hard limit: LimitNOFILE= of the unit, or lower max-sessions",
        "the daemon may have %" PRIu64 " open; %u clients take about %" PRIu64, daemon->descriptors,
        (unsigned)daemon->info.max_sessions, needed);
}

/* ---- A daemon with a GPU ------------------------------------------------------------------- */

static void judge_device(const struct facts *facts, struct doctor *doctor)
{
    const struct attnd_info *info = &facts->daemon.info;
    char uuid[DOCTOR_UUID];
    doctor_print_uuid(info->device_uuid, uuid);
    for (size_t i = 0; i < facts->cuda.gpus; i++) {
        if (memcmp(facts->cuda.gpu[i].uuid, info->device_uuid, sizeof info->device_uuid) == 0) {
            add(doctor, "device", DOCTOR_OK, "",
                "the daemon's GPU, %s, is number %zu here; driver %s", uuid, i, info->driver);
            return;
        }
    }
    add(doctor, "device", DOCTOR_BAD,
        "give the trainer that GPU (CUDA_VISIBLE_DEVICES, the container's devices), or use the "
        "daemon of a GPU that it sees",
        "the daemon's GPU, %s, %s, is not seen from here", info->device_name, uuid);
}

static void judge_families(const struct attnd_info *info, struct doctor *doctor)
{
    char names[DOCTOR_TEXT / 2] = "";
    bool gpu = false;
    for (uint32_t i = 0; i < info->families; i++) {
        size_t used = strlen(names);
        gpu = gpu || strncmp(info->family[i], "sm", 2) == 0;
        (void)snprintf(
            names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "", info->family[i]);
    }
    if (info->families == 0 || (info->device == ATTND_DEVICE_CUDA && !gpu)) {
        add(doctor, "families", DOCTOR_BAD,
            "build attnd with the CUDA Toolkit, for a GPU that its kernels run on",
            "the daemon has no kernels for its device%s%s", names[0] != '\0' ? ", only " : "",
            names);
    } else {
        add(doctor, "families", DOCTOR_OK, "", "kernels in use: %s", names);
    }
}

static void judge_mps(const struct facts *facts, struct doctor *doctor)
{
    static const char ON[] =
        "on: kernels of all processes share the GPU at a time, a dependent call "
        "takes about 30 us; a process that faults, or is killed within a "
        "kernel, ends every process of its MPS server, the daemon included";
    static const char OFF[] =
        "off: a fault or a kill in one process does not touch the others; the "
        "processes take turns, which costs about 300 us a call";
    bool own = facts->process.mps_control;
    switch (facts->daemon.info.mps) {
    case ATTND_MPS_ON:
        add(doctor, "mps", own ? DOCTOR_OK : DOCTOR_WARN,
            own ? "where trainers crash or are killed often, run without MPS"
                : "set CUDA_MPS_PIPE_DIRECTORY for the trainers as for the daemon; else they take "
                  "turns with it, and the advantage is lost",
            "%s%s", ON, own ? "" : "; no MPS is found from here, though");
        break;
    case ATTND_MPS_OFF:
        add(doctor, "mps", own ? DOCTOR_WARN : DOCTOR_OK,
            own ? "start the daemon with the same CUDA_MPS_PIPE_DIRECTORY, or the trainers without"
                : "for many small calls start attnd-mps@ for this GPU",
            "%s%s", OFF, own ? "; a process started from here would use MPS, though" : "");
        break;
    default:
        add(doctor, "mps", DOCTOR_OK, "see \"systemctl status 'attnd-mps@*'\"",
            "the daemon cannot find out whether it runs under MPS; from here MPS is %s",
            own ? "found" : "not found");
    }
}

/* A handle carries its exporter's pid; the daemon compares it with the pid that the kernel gives. */
static void judge_handles(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_daemon *daemon = &facts->daemon;
    bool same_user = facts->process.uid == daemon->peer_uid || facts->process.uid == 0;
    if (daemon->info.checks_exporter && daemon->info.one_ipc_user) {
        add(doctor, "handles", DOCTOR_OK,
            "users side by side need memory from the virtual memory API (PyTorch: "
            "expandable_segments:True), or attnd_alloc()",
            "cudaMalloc memory is taken from one user at a time (ipc-users = one), by handles that "
            "name the process that sends them");
    } else if (daemon->info.checks_exporter) {
        add(doctor, "handles", DOCTOR_OK,
            "handles can be forged: where users do not trust each other, set ipc-users = one in "
            "the daemon's attnd.conf",
            "cudaMalloc memory is taken from any users (ipc-users = any), by handles that name the "
            "process that sends them");
    } else if (daemon->has_peer && same_user) {
        add(doctor, "handles", DOCTOR_OK,
            "trainers of other users need memory from the virtual memory API, or attnd_alloc()",
            "with this driver the daemon cannot tell whose a handle is: it takes them from its own "
            "user, which this is");
    } else {
        add(doctor, "handles", DOCTOR_BAD,
            "run trainer and daemon as one user, or use memory from the virtual memory API "
            "(PyTorch: expandable_segments:True), or attnd_alloc()",
            "with this driver the daemon cannot tell whose a handle is, and takes them from its "
            "own user alone; this is user %u",
            (unsigned)facts->process.uid);
    }
}

static void judge_namespaces(const struct facts_daemon *daemon, struct doctor *doctor)
{
    if (daemon->has_peer && (uint32_t)daemon->peer_pid != daemon->info.pid) {
        add(doctor, "namespaces", DOCTOR_BAD,
            "start the trainer's container in the daemon's pid namespace (\"--pid=host\")",
            "the daemon is process %u to itself and %d from here: handles carry pids, and are "
            "refused across pid namespaces",
            (unsigned)daemon->info.pid, (int)daemon->peer_pid);
    } else if (daemon->same_ipc == FACTS_NO || daemon->same_network == FACTS_NO) {
        add(doctor, "namespaces", DOCTOR_WARN,
            "if opening memory fails, share them (\"--ipc=host --network=host\"): CUDA talks to "
            "itself through both",
            "the daemon lives in another %s namespace",
            daemon->same_ipc == FACTS_NO ? "IPC" : "network");
    } else {
        add(doctor, "namespaces", DOCTOR_OK, "",
            "one pid namespace%s; rights to trace each other (ptrace) are not needed",
            daemon->same_ipc == FACTS_YES && daemon->same_network == FACTS_YES
                ? ", IPC namespace and network namespace"
                : "; whether one IPC namespace cannot be seen from here");
    }
}

/* Streams of a process that wait share its queues to the device with those that do not. */
static void judge_queues(bool set, long queues, bool mps, struct doctor *doctor)
{
    static const char WHY[] = "a stream that waits for attnd blocks one queue to the device";
    const char *more = mps ? "set CUDA_DEVICE_MAX_CONNECTIONS=8 for trainers with many streams"
                           : "set CUDA_DEVICE_MAX_CONNECTIONS=32 for trainers with many streams";
    long own = mps ? OWN_QUEUES_MPS : OWN_QUEUES;
    if (!set) {
        add(doctor, "connections", DOCTOR_OK, more,
            "CUDA_DEVICE_MAX_CONNECTIONS is not set; %s, and with more than %ld streams waiting in "
            "one process its others stand still",
            WHY, own - 1);
    } else if (queues < own) {
        add(doctor, "connections", DOCTOR_WARN, more,
            "CUDA_DEVICE_MAX_CONNECTIONS is %ld; %s, and with %ld waiting all streams stand still",
            queues, WHY, queues);
    } else if (mps && queues > ENOUGH_QUEUES_MPS) {
        add(doctor, "connections", DOCTOR_WARN,
            "set it to 8, and only for trainers with many streams",
            "CUDA_DEVICE_MAX_CONNECTIONS is %ld, and an MPS server has about %d queues for all its "
            "processes: of those with as many %ld find room, and others do not start",
            queues, SHARED_QUEUES, SHARED_QUEUES / queues);
    } else {
        add(doctor, "connections", DOCTOR_OK, "", "CUDA_DEVICE_MAX_CONNECTIONS is %ld; %s", queues,
            WHY);
    }
}

static void judge_connections(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_process *process = &facts->process;
    char *end = NULL;
    long queues = strtol(process->max_connections, &end, 10);
    if (process->max_connections_set &&
        (end == process->max_connections || *end != '\0' || queues < 1 || queues > MOST_QUEUES)) {
        add(doctor, "connections", DOCTOR_WARN, "set it to a number from 1 to 32",
            "CUDA_DEVICE_MAX_CONNECTIONS is '%s', which CUDA does not take",
            process->max_connections);
    } else {
        judge_queues(
            process->max_connections_set, queues, facts->daemon.info.mps == ATTND_MPS_ON, doctor);
    }
}

/* ---- Public -------------------------------------------------------------------------------- */

const char *doctor_level_name(enum doctor_level level)
{
    static const char *const NAMES[] = {"ok", "warn", "bad"};
    return NAMES[level];
}

void doctor_print_uuid(const uint8_t uuid[16], char text[DOCTOR_UUID])
{
    size_t used = (size_t)snprintf(text, DOCTOR_UUID, "GPU-");
    for (size_t i = 0; i < 16; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        used += (size_t)snprintf(
            text + used, DOCTOR_UUID - used, "%s%02x", dash ? "-" : "", (unsigned)uuid[i]);
    }
}

void doctor_judge(const struct facts *facts, struct doctor *doctor)
{
    doctor->count = 0;
    judge_driver(facts, doctor);
    judge_gpus(facts, doctor);
    judge_memory(&facts->machine, doctor);
    judge_directory(facts, doctor);
    judge_connection(facts, doctor);
    judge_unit(facts, doctor);
    judge_descriptors(facts, doctor);
    if (!facts->daemon.has_info) {
        return;
    }
    judge_families(&facts->daemon.info, doctor);
    if (daemon_has_gpu(&facts->daemon)) {
        judge_device(facts, doctor);
        judge_mps(facts, doctor);
        judge_handles(facts, doctor);
        judge_namespaces(&facts->daemon, doctor);
        judge_connections(facts, doctor);
    }
}

enum doctor_level doctor_worst(const struct doctor *doctor)
{
    enum doctor_level worst = DOCTOR_OK;
    for (size_t i = 0; i < doctor->count; i++) {
        worst = doctor->finding[i].level > worst ? doctor->finding[i].level : worst;
    }
    return worst;
}

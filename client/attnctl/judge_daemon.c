#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "judge.h"

enum {
    OWN_QUEUES = 8, /* what CUDA takes for CUDA_DEVICE_MAX_CONNECTIONS where it is not set */
    OWN_QUEUES_MPS = 4,
    MOST_QUEUES = 32,
    SHARED_QUEUES = 120, /* of an MPS server, for all its processes: seen on an H200 */
    ENOUGH_QUEUES_MPS = 8,
};

static void judge_device(const struct facts *facts, struct doctor *doctor)
{
    const struct attnd_info *info = &facts->daemon.info;
    char uuid[DOCTOR_UUID];
    doctor_print_uuid(info->device_uuid, uuid);
    for (size_t i = 0; i < facts->cuda.gpus; i++) {
        if (memcmp(facts->cuda.gpu[i].uuid, info->device_uuid, sizeof info->device_uuid) == 0) {
            judge_add(doctor, "device", DOCTOR_OK, "",
                "the daemon's GPU, %s, is number %zu here; driver %s", uuid, i, info->driver);
            return;
        }
    }
    judge_add(doctor, "device", DOCTOR_BAD,
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
        judge_add(doctor, "families", DOCTOR_BAD,
            "build attnd with the CUDA Toolkit, for a GPU that its kernels run on",
            "the daemon has no kernels for its device%s%s", names[0] != '\0' ? ", only " : "",
            names);
    } else {
        judge_add(doctor, "families", DOCTOR_OK, "", "kernels in use: %s", names);
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
        judge_add(doctor, "mps", own ? DOCTOR_OK : DOCTOR_WARN,
            own ? "where trainers crash or are killed often, run without MPS"
                : "set CUDA_MPS_PIPE_DIRECTORY for the trainers as for the daemon; else they take "
                  "turns with it, and the advantage is lost",
            "%s%s", ON, own ? "" : "; no MPS is found from here, though");
        break;
    case ATTND_MPS_OFF:
        judge_add(doctor, "mps", own ? DOCTOR_WARN : DOCTOR_OK,
            own ? "start the daemon with the same CUDA_MPS_PIPE_DIRECTORY, or the trainers without"
                : "for many small calls start attnd-mps@ for this GPU",
            "%s%s", OFF, own ? "; a process started from here would use MPS, though" : "");
        break;
    default:
        judge_add(doctor, "mps", DOCTOR_OK, "see \"systemctl status 'attnd-mps@*'\"",
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
        judge_add(doctor, "handles", DOCTOR_OK,
            "users side by side need memory from the virtual memory API (PyTorch: "
            "expandable_segments:True), or attnd_alloc()",
            "cudaMalloc memory is taken from one user at a time (ipc-users = one), by handles that "
            "name the process that sends them");
    } else if (daemon->info.checks_exporter) {
        judge_add(doctor, "handles", DOCTOR_OK,
            "handles can be forged: where users do not trust each other, set ipc-users = one in "
            "the daemon's attnd.conf",
            "cudaMalloc memory is taken from any users (ipc-users = any), by handles that name the "
            "process that sends them");
    } else if (daemon->has_peer && same_user) {
        judge_add(doctor, "handles", DOCTOR_OK,
            "trainers of other users need memory from the virtual memory API, or attnd_alloc()",
            "with this driver the daemon cannot tell whose a handle is: it takes them from its own "
            "user, which this is");
    } else {
        judge_add(doctor, "handles", DOCTOR_BAD,
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
        judge_add(doctor, "namespaces", DOCTOR_BAD,
            "start the trainer's container in the daemon's pid namespace (\"--pid=host\")",
            "the daemon is process %u to itself and %d from here: handles carry pids, and are "
            "refused across pid namespaces",
            (unsigned)daemon->info.pid, (int)daemon->peer_pid);
    } else if (daemon->same_ipc == FACTS_NO || daemon->same_network == FACTS_NO) {
        judge_add(doctor, "namespaces", DOCTOR_WARN,
            "if opening memory fails, share them (\"--ipc=host --network=host\"): CUDA talks to "
            "itself through both",
            "the daemon lives in another %s namespace",
            daemon->same_ipc == FACTS_NO ? "IPC" : "network");
    } else {
        judge_add(doctor, "namespaces", DOCTOR_OK, "",
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
        judge_add(doctor, "connections", DOCTOR_OK, more,
            "CUDA_DEVICE_MAX_CONNECTIONS is not set; %s, and with more than %ld streams waiting in "
            "one process its others stand still",
            WHY, own - 1);
    } else if (queues < own) {
        judge_add(doctor, "connections", DOCTOR_WARN, more,
            "CUDA_DEVICE_MAX_CONNECTIONS is %ld; %s, and with %ld waiting all streams stand still",
            queues, WHY, queues);
    } else if (mps && queues > ENOUGH_QUEUES_MPS) {
        judge_add(doctor, "connections", DOCTOR_WARN,
            "set it to 8, and only for trainers with many streams",
            "CUDA_DEVICE_MAX_CONNECTIONS is %ld, and an MPS server has about %d queues for all its "
            "processes: of those with as many %ld find room, and others do not start",
            queues, SHARED_QUEUES, SHARED_QUEUES / queues);
    } else {
        judge_add(doctor, "connections", DOCTOR_OK, "", "CUDA_DEVICE_MAX_CONNECTIONS is %ld; %s",
            queues, WHY);
    }
}

static void judge_connections(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_process *process = &facts->process;
    char *end = NULL;
    long queues = strtol(process->max_connections, &end, 10);
    if (process->max_connections_set &&
        (end == process->max_connections || *end != '\0' || queues < 1 || queues > MOST_QUEUES)) {
        judge_add(doctor, "connections", DOCTOR_WARN, "set it to a number from 1 to 32",
            "CUDA_DEVICE_MAX_CONNECTIONS is '%s', which CUDA does not take",
            process->max_connections);
    } else {
        judge_queues(
            process->max_connections_set, queues, facts->daemon.info.mps == ATTND_MPS_ON, doctor);
    }
}

void judge_daemon(const struct facts *facts, struct doctor *doctor)
{
    judge_families(&facts->daemon.info, doctor);
    if (judge_daemon_has_gpu(&facts->daemon)) {
        judge_device(facts, doctor);
        judge_mps(facts, doctor);
        judge_handles(facts, doctor);
        judge_namespaces(&facts->daemon, doctor);
        judge_connections(facts, doctor);
    }
}

/*
 * What attnctl finds out: of this process, its machine, the GPUs that it sees, and the daemon. Only
 * collects, judges nothing; what could not be found out says so. One thread, each part once.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "attnd.h"

enum {
    FACTS_GPUS = 16,
    FACTS_TEXT = 64,
    FACTS_MESSAGE = 512,
};

struct facts_process {
    uid_t uid;
    gid_t gid;
    bool max_connections_set; /* CUDA_DEVICE_MAX_CONNECTIONS */
    char max_connections[FACTS_TEXT];
    char visible_devices[FACTS_TEXT]; /* CUDA_VISIBLE_DEVICES; "": not set */
    char mps_directory[PATH_MAX];     /* where CUDA looks for MPS */
    bool mps_control;                 /* and its control socket is there */
    uint64_t descriptors;             /* that it may have open */
};

struct facts_machine {
    uint64_t memory_free; /* that can still be had, of the machine and of this cgroup */
    bool shm;             /* there is a /dev/shm */
    uint64_t shm_bytes;
    uint64_t shm_free;
    bool systemd;                    /* it runs here */
    char unit_file[PATH_MAX];        /* attnd@.service; "": none */
    char module_version[FACTS_TEXT]; /* of NVIDIA's kernel module; "": not loaded */
    bool nvidia_device;              /* there is a /dev/nvidiactl */
    bool nvidia_device_opens;        /* and this user may open it */
};

enum facts_compute_mode { /* as the driver numbers them */
    FACTS_COMPUTE_DEFAULT = 0,
    FACTS_COMPUTE_PROHIBITED = 2,
    FACTS_COMPUTE_EXCLUSIVE = 3,
};

struct facts_gpu {
    char name[FACTS_TEXT];
    uint8_t uuid[16];
    int major; /* compute capability */
    int minor;
    int compute_mode;
    int block_bytes; /* shared memory that a block may have */
    uint64_t memory_bytes;
};

struct facts_cuda {
    bool library; /* libcuda.so.1 was found */
    int error;    /* of the first call that failed; 0: none did */
    char error_name[FACTS_TEXT];
    int version; /* 13000: CUDA 13.0 */
    size_t gpus;
    struct facts_gpu gpu[FACTS_GPUS];
};

enum facts_answer {
    FACTS_UNKNOWN,
    FACTS_YES,
    FACTS_NO,
};

struct facts_daemon {
    char directory[PATH_MAX];
    bool asked_for; /* somebody named the directory */

    bool directory_exists;
    mode_t directory_mode;
    uid_t directory_uid;
    gid_t directory_gid;
    bool directory_enters; /* this user may enter it */
    bool in_group;         /* this process has the directory's group */
    bool socket_exists;

    enum attnd_status status; /* of the connection, and what the library said */
    char message[FACTS_MESSAGE];
    bool has_stats;
    struct attnd_stats stats;
    bool has_info;
    struct attnd_info info;

    bool has_peer;  /* whoever listens, as the kernel knows it */
    pid_t peer_pid; /* 0: not to be seen from here */
    uid_t peer_uid;
    uint64_t descriptors;           /* that it may have open; 0: unknown */
    enum facts_answer same_ipc;     /* whether it is in this process's IPC namespace */
    enum facts_answer same_network; /* and network namespace */
    char unit[FACTS_TEXT];          /* of systemd; "": none, or unknown */
};

struct facts {
    struct facts_process process;
    struct facts_machine machine;
    struct facts_cuda cuda;
    struct facts_daemon daemon;
};

void facts_of_process(struct facts_process *process);
void facts_of_machine(struct facts_machine *machine);
void facts_of_cuda(struct facts_cuda *cuda);

/* Connects, asks, and hangs up. */
void facts_of_daemon(struct facts_daemon *daemon, const char *directory, bool asked_for);

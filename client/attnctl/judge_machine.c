#include <inttypes.h>
#include <stdio.h>

#include "judge.h"

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
};

/* Whether anything about GPUs means something here. */
static bool concerns_gpu(const struct facts *facts)
{
    return facts->cuda.gpus > 0 || facts->machine.nvidia_device ||
           facts->machine.module_version[0] != '\0' || judge_daemon_has_gpu(&facts->daemon);
}

static void judge_driver(const struct facts *facts, struct doctor *doctor)
{
    const struct facts_cuda *cuda = &facts->cuda;
    const char *module = facts->machine.module_version;
    if (!cuda->library && !concerns_gpu(facts)) {
        judge_add(doctor, "driver", DOCTOR_OK, "", "no NVIDIA driver; the CPU device needs none");
    } else if (!cuda->library) {
        judge_add(doctor, "driver", DOCTOR_BAD,
            "install the driver's libcuda.so.1; in a container start it with the GPU's libraries "
            "(\"compute\" among NVIDIA_DRIVER_CAPABILITIES)",
            "this machine has an NVIDIA device, but no libcuda.so.1 is found");
    } else if (cuda->error != 0 && cuda->gpus == 0) {
        judge_add(doctor, "driver", DOCTOR_BAD,
            "see that the library is as new as the kernel's module (a reboot after an upgrade), "
            "that /dev/nvidia* may be opened, and on NVSwitch machines that the fabric manager "
            "runs",
            "the driver does not start: %s (%d)", cuda->error_name, cuda->error);
    } else if (cuda->version < OLDEST_CUDA) {
        judge_add(doctor, "driver", DOCTOR_BAD, NEWER_DRIVER_ADVICE,
            "the driver is for CUDA %d.%d, too old for the kernels", cuda->version / 1000,
            cuda->version % 1000 / 10);
    } else {
        judge_add(doctor, "driver", DOCTOR_OK, "", "for CUDA %d.%d%s%s", cuda->version / 1000,
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
        judge_add(doctor, "gpu", DOCTOR_WARN, OTHER_GPU_ADVICE,
            "%s, %s, has compute capability %d.%d; the kernels need 8.0", gpu->name, uuid,
            gpu->major, gpu->minor);
    } else if (gpu->block_bytes < LEAST_BLOCK_KIB * 1024) {
        judge_add(doctor, "gpu", DOCTOR_WARN, OTHER_GPU_ADVICE,
            "%s, %s, compute capability %d.%d, gives a block %d KiB of shared memory; the kernels "
            "need %d",
            gpu->name, uuid, gpu->major, gpu->minor, gpu->block_bytes / 1024, LEAST_BLOCK_KIB);
    } else if (gpu->compute_mode == FACTS_COMPUTE_PROHIBITED) {
        judge_add(doctor, "gpu", DOCTOR_BAD, "\"nvidia-smi -c DEFAULT\" as root",
            "%s, %s, is in a mode that lets no process compute", gpu->name, uuid);
    } else if (gpu->compute_mode == FACTS_COMPUTE_EXCLUSIVE && !mps) {
        judge_add(doctor, "gpu", DOCTOR_BAD,
            "start MPS (attnd-mps@), or \"nvidia-smi -c DEFAULT\" as root",
            "%s, %s, lets one process compute at a time: daemon and trainer exclude each other",
            gpu->name, uuid);
    } else {
        judge_add(doctor, "gpu", DOCTOR_OK, "", "%s, %s, compute capability %d.%d, %" PRIu64 " GiB",
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
        judge_add(doctor, "gpu", DOCTOR_BAD,
            "let this user open /dev/nvidia* (its group, or the container's devices)",
            "there is a GPU, but this user may not open /dev/nvidiactl");
    } else if (visible[0] != '\0') {
        judge_add(doctor, "gpu", DOCTOR_WARN, "unset CUDA_VISIBLE_DEVICES, or name a GPU in it",
            "no GPU is seen with CUDA_VISIBLE_DEVICES=%s", visible);
    } else {
        judge_add(doctor, "gpu", DOCTOR_WARN,
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
        judge_add(doctor, "memory", DOCTOR_OK, "",
            "how much memory is left cannot be found out; %s, which attnd does not use", shm);
    } else {
        bool little = free < GIB;
        judge_add(doctor, "memory", little ? DOCTOR_WARN : DOCTOR_OK,
            little ? "free memory, or raise the container's limit: attnd_alloc() takes from it"
                   : "",
            "%" PRIu64 " MiB are left for shared memory, which counts as the process's own; %s, "
            "which attnd does not use",
            free / MIB, shm);
    }
}

void judge_machine(const struct facts *facts, struct doctor *doctor)
{
    judge_driver(facts, doctor);
    judge_gpus(facts, doctor);
    judge_memory(&facts->machine, doctor);
}

#include "backend.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "choose.h"
#include "cuda_device.h"
#include "cuda_memory.h"
#include "cuda_warm.h"
#include "fatal.h"
#include "log.h"

/* Enough that the device always has the next one, few enough that who comes new need not wait long. */
#define MAX_GROUPS 3

#define BLOCKS_PER_PROCESSOR 2 /* of the largest tiles, at a time */

/* Only until the first groups have been measured. */
#define FIRST_GUESS_FLOPS_PER_PROCESSOR 1e12

/* What the kernels compute while a byte comes from the GPU's memory. */
#define FLOPS_PER_BYTE 80

/* A block waits for memory once or twice before it can go on: about half a microsecond. */
#define STEP_FLOPS 0x1p19

/* Nothing cuts a tile, and one processor of the device works on it: about a second. */
#define MAX_TILE_FLOPS 0x1p40

#define LOOK_NS 1000000 /* how often the runtime is asked for errors while groups run */

#define WORD_BYTES 128 /* each launch's word has its own cache lines */

/* A place for a group on the device: a stream, and a word that the stream writes behind the group. */
struct launch {
    struct group *group; /* borrowed; NULL: free */
    enum wire_status status;
    cudaStream_t stream; /* owned */
    _Atomic uint32_t *word;
    CUdeviceptr device_word;
    _Atomic uint32_t ticket; /* the group has ended when the word is this */
};

struct cuda {
    struct backend backend;
    struct cuda_device device;
    struct cuda_memory *memory; /* owned */
    void *words;                /* owned, pinned */
    struct launch launch[MAX_GROUPS];
    uint64_t looked_ns;
    CUstreamBatchMemOpParams writes[GROUP_MAX_MEMBERS + 1];
};

static struct cuda *cuda_of(struct backend *backend)
{
    return (struct cuda *)(void *)backend;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* -- errors ------------------------------------------------------------------------------------- */

/* After such an error nothing works in this process any more, and the runtime's own ending may hang. */
static _Noreturn void leave(cudaError_t code)
{
    log_error("the GPU is lost, the daemon ends: %s (%s)", cudaGetErrorString(code),
        cudaGetErrorName(code));
    _exit(EX_SOFTWARE);
}

/* Errors of a request go away when they have been told; what comes back with the next call does not. */
static void leave_if_lost(const struct launch *launch)
{
    (void)cudaGetLastError();
    cudaError_t code = cudaStreamQuery(launch->stream);
    if (code != cudaSuccess && code != cudaErrorNotReady) {
        leave(code);
    }
    (void)cudaGetLastError(); /* "not ready" counts as one */
}

static enum wire_status status_of(int code)
{
    bool lacks_something =
        code == cudaErrorMemoryAllocation || code == cudaErrorLaunchOutOfResources;
    return lacks_something ? WIRE_RESOURCE_EXHAUSTED : WIRE_INTERNAL;
}

/* -- groups ------------------------------------------------------------------------------------- */

static CUstreamBatchMemOpParams write_of(CUdeviceptr address, uint32_t value)
{
    return (CUstreamBatchMemOpParams){
        .writeValue = {
            .operation = CU_STREAM_MEM_OP_WRITE_VALUE_32,
            .address = address,
            .value = value,
            .flags = CU_STREAM_WRITE_VALUE_DEFAULT, /* with a barrier: outputs before words */
        }};
}

/* Behind what the stream holds: the marks, unless the group has failed, and then the word. */
static void enqueue_end(struct cuda *cuda, const struct launch *launch)
{
    const struct group *group = launch->group;
    unsigned count = 0;
    for (size_t i = 0; launch->status == WIRE_OK && i < group->marks; i++) {
        cuda->writes[count++] = write_of((CUdeviceptr)group->mark[i].word, group->mark[i].value);
    }
    cuda->writes[count++] = write_of(launch->device_word, atomic_load(&launch->ticket));
    CUresult code = cuda->device.driver.stream_batch_mem_op(launch->stream, count, cuda->writes, 0);
    if (code != CUDA_SUCCESS) {
        leave((cudaError_t)code); /* nobody would ever know when the group has ended */
    }
}

static struct launch *free_launch(struct cuda *cuda)
{
    for (size_t i = 0; i < MAX_GROUPS; i++) {
        if (cuda->launch[i].group == NULL) {
            return &cuda->launch[i];
        }
    }
    return NULL;
}

/* A launch that fails may have enqueued a part of the group, so that it ends like any other. */
static enum wire_status submit(struct backend *backend, struct group *group)
{
    struct cuda *cuda = cuda_of(backend);
    struct launch *launch = free_launch(cuda);
    assert(launch != NULL);
    const struct attn_target target = {.stream = launch->stream};
    cudaError_t use = cudaSetDevice(cuda->device.ordinal);
    if (use != cudaSuccess) {
        leave(use);
    }
    launch->group = group;
    launch->status = WIRE_OK;
    atomic_fetch_add(&launch->ticket, 1);
    fatal_stop_here();
    int code = attn_launch(group->family, group->direction, group->slice, group->members, &target);
    if (code != 0) {
        leave_if_lost(launch);
        launch->status = status_of(code);
        log_warning("a group of %zu requests was not launched: %s", group->members,
            cudaGetErrorString((cudaError_t)code));
    }
    enqueue_end(cuda, launch);
    return WIRE_OK;
}

static bool is_running(const struct launch *launch)
{
    return atomic_load_explicit(launch->word, memory_order_acquire) !=
           atomic_load_explicit(&launch->ticket, memory_order_relaxed);
}

/* A fault on the device writes no word. */
static void look_for_faults(struct cuda *cuda)
{
    uint64_t now = now_ns();
    if (now - cuda->looked_ns < LOOK_NS) {
        return;
    }
    cuda->looked_ns = now;
    for (size_t i = 0; i < MAX_GROUPS; i++) {
        if (cuda->launch[i].group != NULL) {
            leave_if_lost(&cuda->launch[i]);
        }
    }
}

static struct group *poll_ended(struct backend *backend, enum wire_status *status)
{
    struct cuda *cuda = cuda_of(backend);
    bool any = false;
    for (size_t i = 0; i < MAX_GROUPS; i++) {
        struct launch *launch = &cuda->launch[i];
        struct group *group = launch->group;
        if (group != NULL && !is_running(launch)) {
            *status = launch->status;
            launch->group = NULL;
            return group;
        }
        any |= group != NULL;
    }
    if (any) {
        look_for_faults(cuda);
    }
    return NULL;
}

/* Another process's fault may cost this one its device, where MPS shares it. */
static void look(struct backend *backend)
{
    struct cuda *cuda = cuda_of(backend);
    cudaError_t use = cudaSetDevice(cuda->device.ordinal);
    if (use != cudaSuccess) {
        leave(use);
    }
    leave_if_lost(&cuda->launch[0]);
}

/* In a signal handler. */
static bool is_busy(void *context)
{
    const struct cuda *cuda = context;
    for (size_t i = 0; i < MAX_GROUPS; i++) {
        if (is_running(&cuda->launch[i])) {
            return true;
        }
    }
    return false;
}

/* -- the rest of the table ---------------------------------------------------------------------- */

static bool map_region(struct backend *backend, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    return cuda_memory_map(cuda_of(backend)->memory, offer, base, error);
}

static bool extend_region(struct backend *backend, void *base, uint64_t bytes,
    const struct backend_offer *piece, struct wire_error *error)
{
    return cuda_memory_extend(cuda_of(backend)->memory, base, bytes, piece, error);
}

static void unmap_region(struct backend *backend, void *base, uint64_t bytes)
{
    (void)bytes;
    cuda_memory_unmap(cuda_of(backend)->memory, base);
}

static bool pin_page(
    struct backend *backend, struct page *page, void **device, struct wire_error *error)
{
    return cuda_memory_pin_page(cuda_of(backend)->memory, page, device, error);
}

static void unpin_page(struct backend *backend, struct page *page)
{
    cuda_memory_unpin_page(cuda_of(backend)->memory, page);
}

/* -- beginning and end -------------------------------------------------------------------------- */

static void destroy(struct backend *backend)
{
    struct cuda *cuda = cuda_of(backend);
    for (size_t i = 0; i < MAX_GROUPS; i++) {
        if (cuda->launch[i].stream != NULL) {
            (void)cudaStreamDestroy(cuda->launch[i].stream);
        }
    }
    (void)cudaFree(backend->workspace);
    (void)cudaFreeHost(cuda->words);
    cuda_memory_destroy(cuda->memory);
    free(cuda);
}

static const struct backend_ops cuda_ops = {
    .map = map_region,
    .extend = extend_region,
    .unmap = unmap_region,
    .pin_page = pin_page,
    .unpin_page = unpin_page,
    .choose = choose_family,
    .submit = submit,
    .poll = poll_ended,
    .look = look,
    .destroy = destroy,
};

static bool create_launches(struct cuda *cuda, struct wire_error *error)
{
    void *device_words = NULL;
    size_t bytes = (size_t)MAX_GROUPS * WORD_BYTES;
    if (!CUDA_OK(error, WIRE_INTERNAL,
            cudaHostAlloc(&cuda->words, bytes, cudaHostAllocMapped | cudaHostAllocPortable)) ||
        !CUDA_OK(error, WIRE_INTERNAL, cudaHostGetDevicePointer(&device_words, cuda->words, 0))) {
        return false;
    }
    memset(cuda->words, 0, bytes);
    for (size_t i = 0; i < MAX_GROUPS; i++) {
        struct launch *launch = &cuda->launch[i];
        launch->word = (void *)((char *)cuda->words + i * WORD_BYTES);
        launch->device_word = (CUdeviceptr)device_words + i * WORD_BYTES;
        if (!CUDA_OK(error, WIRE_INTERNAL,
                cudaStreamCreateWithFlags(&launch->stream, cudaStreamNonBlocking))) {
            return false;
        }
    }
    return true;
}

static bool create_parts(struct cuda *cuda, uint64_t workspace_bytes, struct wire_error *error)
{
    struct backend *backend = &cuda->backend;
    cuda->memory = cuda_memory_create(&cuda->device, error);
    if (cuda->memory == NULL || !create_launches(cuda, error) ||
        !CUDA_OK(error, WIRE_INTERNAL, cudaMalloc(&backend->workspace, workspace_bytes))) {
        return false;
    }
    backend->workspace_bytes = workspace_bytes;
    return cuda_warm_up(backend, cuda->launch[0].stream, error);
}

static void describe(struct cuda *cuda)
{
    const struct cuda_device *device = &cuda->device;
    struct backend *backend = &cuda->backend;
    backend->ops = &cuda_ops;
    backend->device_kind = WIRE_DEVICE_CUDA;
    memcpy(backend->device_name, device->name, sizeof(backend->device_name));
    memcpy(backend->device_uuid, device->uuid, sizeof(backend->device_uuid));
    backend->max_groups = MAX_GROUPS;
    backend->fill_tiles = (uint64_t)device->processors * BLOCKS_PER_PROCESSOR;
    backend->flops_per_second = FIRST_GUESS_FLOPS_PER_PROCESSOR * device->processors;
    backend->flops_per_byte = FLOPS_PER_BYTE;
    backend->step_flops = STEP_FLOPS;
    backend->max_tile_flops = MAX_TILE_FLOPS;
    memcpy(backend->facts.driver, device->driver_version, sizeof(backend->facts.driver));
    backend->facts.mps = device->mps;
    backend->facts.checks_exporter = device->exporter_offset != CUDA_EXPORTER_UNKNOWN;
    backend->facts.capability = device->capability;
}

static void log_device(const struct cuda_device *device)
{
    static const char *const mps[] = {"unknown", "off", "on"};
    char uuid[CUDA_UUID_TEXT_BYTES];
    cuda_uuid_text(device->uuid, uuid);
    log_info("GPU: name=\"%s\" uuid=%s driver=\"%s\" capability=%d.%d processors=%d memory=%" PRIu64
             " mps=%s exporters=%s",
        device->name, uuid, device->driver_version, device->capability / 10,
        device->capability % 10, device->processors, device->memory_bytes, mps[device->mps],
        device->exporter_offset == CUDA_EXPORTER_UNKNOWN ? "own user" : "checked");
}

struct backend *backend_cuda_create(
    const char *device, uint64_t workspace_bytes, struct wire_error *error)
{
    struct cuda *cuda = calloc(1, sizeof(*cuda));
    if (cuda == NULL) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
        return NULL;
    }
    if (!cuda_device_open(&cuda->device, device, error)) {
        free(cuda);
        return NULL;
    }
    describe(cuda);
    log_device(&cuda->device);
    if (!create_parts(cuda, workspace_bytes, error)) {
        destroy(&cuda->backend);
        return NULL;
    }
    if (cuda->device.mps == WIRE_MPS_ON) {
        fatal_install(is_busy, cuda);
    }
    return &cuda->backend;
}

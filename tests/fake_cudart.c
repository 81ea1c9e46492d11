#include "fake_cudart_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORTER_PLACE 8

struct fake_cudart fake = {.lock = PTHREAD_MUTEX_INITIALIZER};
_Thread_local int fake_current = -1;

/* -- for the tests ------------------------------------------------------------------------------ */

static void lock(void)
{
    pthread_mutex_lock(&fake.lock);
}

int fake_unlock(int code)
{
    pthread_mutex_unlock(&fake.lock);
    return code;
}

void fake_cudart_init(int gpus)
{
    pthread_mutex_t kept = PTHREAD_MUTEX_INITIALIZER;
    memset(&fake, 0, sizeof(fake));
    fake.lock = kept;
    fake.gpus = gpus;
    fake.exporter_times = 1;
    fake.block_bytes = (size_t)163 << 10;
    fake_current = -1;
}

void fake_cudart_fail(const char *function, int code, bool sticky)
{
    lock();
    fake.fails = function;
    fake.code = code;
    fake.fails_sticky = sticky;
    fake_unlock(0);
}

void fake_cudart_lose(int code)
{
    lock();
    fake.lost = code;
    fake_unlock(0);
}

void fake_cudart_repeat_exporter(int times)
{
    fake.exporter_times = times;
}

void fake_cudart_set_mps(bool on)
{
    fake.mps = on;
}

void fake_cudart_set_block(size_t bytes)
{
    fake.block_bytes = bytes;
}

static struct fake_allocation *free_place(struct fake_allocation *table)
{
    for (int i = 0; i < FAKE_PLACES; i++) {
        if (table[i].memory == NULL) {
            return &table[i];
        }
    }
    abort();
}

struct fake_range *fake_find_range(struct fake_range *table, const char *begin)
{
    for (int i = 0; i < FAKE_PLACES; i++) {
        if (table[i].begin == begin) {
            return &table[i];
        }
    }
    return NULL;
}

void fake_add_range(struct fake_range *table, char *begin, size_t bytes)
{
    struct fake_range *range = fake_find_range(table, NULL);
    if (range == NULL) {
        abort();
    }
    *range = (struct fake_range){.begin = begin, .bytes = bytes, .gpu = fake_current};
}

static int count_ranges(const struct fake_range *table)
{
    int count = 0;
    for (int i = 0; i < FAKE_PLACES; i++) {
        count += table[i].begin != NULL;
    }
    return count;
}

static void write_handle(uint8_t handle[64], int pid)
{
    memset(handle, 0xa5, 64);
    uint64_t number = ++fake.exports;
    memcpy(handle + 12, &number, sizeof(number));
    for (int i = 0; i < fake.exporter_times; i++) {
        memcpy(handle + EXPORTER_PLACE + 16 * i, &pid, sizeof(pid));
    }
}

static void *new_memory(size_t bytes)
{
    size_t pages = (bytes + 4095) / 4096 * 4096;
    void *memory = mmap(NULL, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void *fake_cudart_export(int gpu, size_t bytes, int pid, uint8_t handle[64])
{
    lock();
    struct fake_allocation *place = free_place(fake.foreign);
    *place = (struct fake_allocation){.memory = new_memory(bytes), .bytes = bytes, .gpu = gpu};
    write_handle(place->handle, pid);
    memcpy(handle, place->handle, 64);
    void *memory = place->memory;
    fake_unlock(0);
    return memory;
}

int fake_cudart_export_piece(int gpu, size_t bytes)
{
    char name[] = "piece-0";
    name[6] = (char)('0' + gpu);
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        abort();
    }
    return fd;
}

void fake_write_pending(void)
{
    for (size_t i = 0; i < fake.pendings; i++) {
        atomic_store_explicit(fake.pending[i].word, fake.pending[i].value, memory_order_release);
    }
    fake.pendings = 0;
}

void fake_cudart_hold_streams(bool hold)
{
    lock();
    fake.holds_streams = hold;
    if (!hold) {
        fake_write_pending();
    }
    fake_unlock(0);
}

struct fake_cudart_counts fake_cudart_count(void)
{
    struct fake_cudart_counts counts = {0};
    lock();
    for (int i = 0; i < FAKE_PLACES; i++) {
        counts.allocations += fake.own[i].memory != NULL;
        counts.imports += fake.foreign[i].references > 0;
        counts.references += fake.foreign[i].references;
        counts.handles += fake.handle[i].bytes != 0;
    }
    counts.reservations = count_ranges(fake.reserved);
    counts.pieces = count_ranges(fake.piece);
    counts.registered = count_ranges(fake.registered);
    counts.pinned = fake.pinned;
    counts.streams = fake.streams;
    fake_unlock(0);
    return counts;
}

/* -- the answer to each call -------------------------------------------------------------------- */

/* Takes the lock; what it returns is the call's answer, if not 0. */
static int enter_any(const char *function)
{
    lock();
    if (fake.lost == 0 && fake.fails != NULL && strcmp(fake.fails, function) == 0) {
        fake.fails = NULL;
        fake.lost = fake.fails_sticky ? fake.code : 0;
        return fake.code;
    }
    return fake.lost;
}

int fake_enter(const char *function)
{
    int code = enter_any(function);
    return code == 0 && fake_current < 0 ? (int)cudaErrorDeviceUninitialized : code;
}

#define ENTER_ANY()                             \
    int code_ = enter_any(__func__);            \
    if (code_ != 0) {                           \
        return (cudaError_t)fake_unlock(code_); \
    }
#define ENTER()                                 \
    int code_ = fake_enter(__func__);           \
    if (code_ != 0) {                           \
        return (cudaError_t)fake_unlock(code_); \
    }
#define LEAVE(code) return (cudaError_t)fake_unlock(code)

/* -- the runtime -------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER_ANY()
    *count = fake.gpus;
    LEAVE(fake.gpus < 0 ? cudaErrorInsufficientDriver : fake.gpus == 0 ? cudaErrorNoDevice : 0);
}

cudaError_t cudaInitDevice(int device, unsigned device_flags, unsigned flags)
{
    (void)device_flags;
    (void)flags;
    ENTER_ANY()
    LEAVE(device < fake.gpus ? 0 : cudaErrorInvalidDevice);
}

cudaError_t cudaSetDevice(int device)
{
    ENTER_ANY()
    fake_current = device;
    LEAVE(0);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    static const char first[FAKE_GPUS] = {0x10, 0x11, 0x20};
    ENTER_ANY()
    memset(properties, 0, sizeof(*properties));
    (void)snprintf(properties->name, sizeof(properties->name), "Fake GPU %d", device);
    memset(properties->uuid.bytes, 0x7b, sizeof(properties->uuid.bytes));
    properties->uuid.bytes[0] = first[device];
    properties->major = 8;
    properties->minor = 6;
    properties->multiProcessorCount = 10;
    properties->totalGlobalMem = FAKE_MEMORY;
    properties->sharedMemPerBlockOptin = fake.block_bytes;
    LEAVE(0);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    (void)device;
    ENTER_ANY()
    *value = fake.mps;
    LEAVE(attribute == cudaDevAttrMpsEnabled ? 0 : cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    ENTER_ANY()
    *version = 13000;
    LEAVE(0);
}

cudaError_t cudaGetLastError(void)
{
    lock();
    return (cudaError_t)fake_unlock(fake.lost);
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the fake";
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaErrorInsufficientDriver ? "cudaErrorInsufficientDriver" : "cudaErrorFake";
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    ENTER()
    struct fake_allocation *place = free_place(fake.own);
    *place =
        (struct fake_allocation){.memory = new_memory(bytes), .bytes = bytes, .gpu = fake_current};
    *memory = place->memory;
    LEAVE(*memory == NULL ? cudaErrorMemoryAllocation : 0);
}

static void release_allocation(struct fake_allocation *place)
{
    munmap(place->memory, (place->bytes + 4095) / 4096 * 4096);
    *place = (struct fake_allocation){0};
}

cudaError_t cudaFree(void *memory)
{
    ENTER()
    for (int i = 0; memory != NULL && i < FAKE_PLACES; i++) {
        if (fake.own[i].memory == memory) {
            release_allocation(&fake.own[i]);
            LEAVE(0);
        }
    }
    LEAVE(memory == NULL ? 0 : cudaErrorInvalidValue);
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *memory)
{
    (void)memory;
    ENTER()
    write_handle((uint8_t *)handle->reserved, getpid());
    LEAVE(0);
}

cudaError_t cudaIpcOpenMemHandle(void **memory, cudaIpcMemHandle_t handle, unsigned flags)
{
    (void)flags;
    ENTER()
    for (int i = 0; i < FAKE_PLACES; i++) {
        struct fake_allocation *place = &fake.foreign[i];
        if (place->memory != NULL && memcmp(place->handle, handle.reserved, 64) == 0) {
            place->references++;
            *memory = place->memory;
            LEAVE(0);
        }
    }
    LEAVE(cudaErrorInvalidResourceHandle);
}

struct fake_allocation *fake_find_foreign(const void *memory)
{
    for (int i = 0; i < FAKE_PLACES; i++) {
        if (fake.foreign[i].memory == memory && fake.foreign[i].references > 0) {
            return &fake.foreign[i];
        }
    }
    return NULL;
}

cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    ENTER()
    struct fake_allocation *place = fake_find_foreign(memory);
    if (place == NULL) {
        LEAVE(cudaErrorInvalidValue);
    }
    place->references--;
    LEAVE(0);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *memory)
{
    ENTER()
    const struct fake_allocation *place = fake_find_foreign(memory);
    memset(attributes, 0, sizeof(*attributes));
    attributes->device = place != NULL ? place->gpu : fake_current;
    LEAVE(0);
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    (void)flags;
    ENTER()
    if (fake_find_range(fake.registered, memory) != NULL) {
        LEAVE(cudaErrorHostMemoryAlreadyRegistered);
    }
    fake_add_range(fake.registered, memory, bytes);
    LEAVE(0);
}

cudaError_t cudaHostUnregister(void *memory)
{
    ENTER()
    struct fake_range *range = fake_find_range(fake.registered, memory);
    if (range == NULL) {
        LEAVE(cudaErrorHostMemoryNotRegistered);
    }
    *range = (struct fake_range){0};
    LEAVE(0);
}

cudaError_t cudaHostGetDevicePointer(void **device, void *memory, unsigned flags)
{
    (void)flags;
    ENTER()
    *device = (void *)((uintptr_t)memory + FAKE_DEVICE_OFFSET);
    LEAVE(fake_find_range(fake.registered, memory) != NULL ? 0 : cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    (void)flags;
    ENTER()
    *memory = new_memory(bytes);
    fake_add_range(fake.registered, *memory, bytes);
    fake.pinned++;
    LEAVE(0);
}

cudaError_t cudaFreeHost(void *memory)
{
    ENTER()
    struct fake_range *range = fake_find_range(fake.registered, memory);
    if (memory == NULL || range == NULL) {
        LEAVE(memory == NULL ? 0 : cudaErrorInvalidValue);
    }
    munmap(range->begin, (range->bytes + 4095) / 4096 * 4096);
    *range = (struct fake_range){0};
    fake.pinned--;
    LEAVE(0);
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    ENTER()
    memset(memory, value, bytes);
    LEAVE(0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    ENTER()
    *stream = (cudaStream_t)(uintptr_t)++fake.streams;
    LEAVE(0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    (void)stream;
    ENTER()
    fake.streams--;
    LEAVE(0);
}

/* Whoever waits for what streams hold waits for ever. */
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    (void)stream;
    ENTER()
    if (fake.pendings > 0) {
        (void)fprintf(stderr, "fake CUDA: somebody waits for a stream that a test holds\n");
        abort();
    }
    LEAVE(0);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    (void)stream;
    ENTER()
    LEAVE(fake.pendings > 0 ? cudaErrorNotReady : 0);
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
    unsigned long long flags, enum cudaDriverEntryPointQueryResult *result)
#else
cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result)
#endif
{
#if CUDART_VERSION >= 12050
    (void)version;
#endif
    (void)flags;
    ENTER_ANY()
    void (*found)(void) = fake_driver_function(name);
    memcpy(function, &found, sizeof(found));
    *result = found != NULL ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    LEAVE(0);
}

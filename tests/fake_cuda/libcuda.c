/* The driver's side: contexts, pointers, handles. Streams are in stream.c. */
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "handle.h"
#include "internal.h"

#define MAX_ALLOCATIONS 1024
#define MAX_DEPTH 16
#define TOTAL_BYTES (UINT64_C(1) << 30)

struct allocation {
    uint64_t base;
    uint64_t bytes; /* 0: an empty place */
    uint64_t range_begin;
    uint64_t range_bytes;
    uint64_t id;
    enum fake_memory kind;
    int ordinal;
    int fd;
};

/* Addresses that were given back. */
struct hole {
    uint64_t base;
    uint64_t bytes;
};

struct reservation {
    uint64_t base;
    uint64_t bytes;
};

static struct fake_context contexts[2 * FAKE_DEVICES] = {
    {.ordinal = 0}, {.ordinal = 0}, {.ordinal = 1}, {.ordinal = 1}};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct allocation allocations[MAX_ALLOCATIONS];
static struct hole holes[MAX_ALLOCATIONS];
static struct reservation reservations[16];
static size_t hole_count;
static size_t reservation_count;
static uint64_t last_id = 900;
static size_t registered;
static size_t exported;
static void (*_Atomic at_export)(void);
static _Thread_local void *stack[MAX_DEPTH];
static _Thread_local int depth;
static _Thread_local int capture_mode;

/* ---- Contexts ----------------------------------------------------------------------------------- */

static struct fake_context *current(void)
{
    return depth > 0 ? stack[depth - 1] : NULL;
}

struct fake_context *fake_current(void)
{
    return current();
}

int fake_check(void)
{
    struct fake_context *context = current();
    if (!context) {
        return DRIVER_INVALID_CONTEXT;
    }
    return atomic_load(&context->broken) ? DRIVER_ILLEGAL_ADDRESS : DRIVER_SUCCESS;
}

void *fake_cuda_context(int ordinal, bool primary)
{
    return &contexts[2 * ordinal + !primary];
}

void fake_cuda_break(void *context)
{
    atomic_store(&((struct fake_context *)context)->broken, true);
}

FAKE_EXPORT int cuGetErrorName(int result, const char **name);

int cuGetErrorName(int result, const char **name)
{
    *name = result == DRIVER_ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
    return DRIVER_SUCCESS;
}

FAKE_EXPORT int cuDeviceGet(int *device, int ordinal);

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal + FAKE_FIRST_DEVICE;
    return ordinal >= 0 && ordinal < FAKE_DEVICES ? DRIVER_SUCCESS : 101;
}

int cuDeviceGetUuid_v2(uint8_t *uuid, int device)
{
    fake_uuid(device - FAKE_FIRST_DEVICE, uuid);
    return DRIVER_SUCCESS;
}

FAKE_EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device);

int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    (void)device;
    *bytes = TOTAL_BYTES;
    return DRIVER_SUCCESS;
}

FAKE_EXPORT int cuDevicePrimaryCtxRetain(void **context, int device);

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = fake_cuda_context(device - FAKE_FIRST_DEVICE, true);
    atomic_fetch_add(&((struct fake_context *)*context)->retained, 1);
    return DRIVER_SUCCESS;
}

FAKE_EXPORT int cuDevicePrimaryCtxRelease_v2(int device);

int cuDevicePrimaryCtxRelease_v2(int device)
{
    struct fake_context *context = fake_cuda_context(device - FAKE_FIRST_DEVICE, true);
    int before = atomic_fetch_sub(&context->retained, 1);
    assert(before > 0);
    (void)before;
    return DRIVER_SUCCESS;
}

int cuCtxGetCurrent(void **context)
{
    *context = current();
    return DRIVER_SUCCESS;
}

FAKE_EXPORT int cuCtxGetDevice(int *device);

int cuCtxGetDevice(int *device)
{
    struct fake_context *context = current();
    *device = context ? context->ordinal + FAKE_FIRST_DEVICE : 0;
    return context ? DRIVER_SUCCESS : DRIVER_INVALID_CONTEXT;
}

int cuCtxPushCurrent_v2(void *context)
{
    assert(depth < MAX_DEPTH);
    stack[depth++] = context;
    return DRIVER_SUCCESS;
}

int cuCtxPopCurrent_v2(void **context)
{
    assert(depth > 0);
    *context = stack[--depth];
    return DRIVER_SUCCESS;
}

FAKE_EXPORT int cuThreadExchangeStreamCaptureMode(int *mode);

int cuThreadExchangeStreamCaptureMode(int *mode)
{
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return DRIVER_SUCCESS;
}

/* ---- Memory ------------------------------------------------------------------------------------- */

static struct allocation *find(uint64_t address)
{
    for (size_t i = 0; i < MAX_ALLOCATIONS; i++) {
        struct allocation *at = &allocations[i];
        if (at->bytes != 0 && address >= at->base && address - at->base < at->bytes) {
            return at;
        }
    }
    return NULL;
}

static struct allocation *new_allocation(void)
{
    struct allocation *at = allocations;
    while (at->bytes != 0) {
        at++;
        assert(at < &allocations[MAX_ALLOCATIONS]);
    }
    *at = (struct allocation){.id = ++last_id};
    return at;
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + FAKE_PIECE_BYTES - 1) / FAKE_PIECE_BYTES * FAKE_PIECE_BYTES;
}

static uint64_t reserve(uint64_t bytes)
{
    for (size_t i = 0; i < hole_count; i++) {
        if (holes[i].bytes == bytes) {
            uint64_t base = holes[i].base;
            holes[i] = holes[--hole_count];
            return base;
        }
    }
    void *memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory != MAP_FAILED ? (uintptr_t)memory : 0;
}

static void fill_locked(
    struct allocation *made, int ordinal, enum fake_memory kind, uint64_t base, uint64_t bytes)
{
    uint64_t whole = round_up(bytes);
    made->base = base;
    made->bytes = bytes;
    made->kind = kind;
    made->ordinal = ordinal;
    made->fd = memfd_create("fake-device-memory", MFD_CLOEXEC);
    int code = ftruncate(made->fd, (off_t)whole);
    void *mapped = mmap((void *)(uintptr_t)base, whole, PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_FIXED, made->fd, 0);
    assert(code == 0 && mapped != MAP_FAILED);
    (void)code;
    (void)mapped;
}

void *fake_cuda_alloc(int ordinal, enum fake_memory kind, uint64_t bytes)
{
    (void)pthread_mutex_lock(&lock);
    struct allocation *made = new_allocation();
    uint64_t base = reserve(round_up(bytes));
    fill_locked(made, ordinal, kind, base, bytes);
    made->range_begin = base;
    made->range_bytes = bytes;
    (void)pthread_mutex_unlock(&lock);
    return (void *)(uintptr_t)base;
}

void fake_cuda_free(void *memory)
{
    (void)pthread_mutex_lock(&lock);
    struct allocation *at = find((uintptr_t)memory);
    assert(at && at->base == (uintptr_t)memory);
    void *gone = mmap(memory, round_up(at->bytes), PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    assert(gone != MAP_FAILED);
    (void)gone;
    (void)close(at->fd);
    if (at->kind < FAKE_MAPPED) {
        assert(hole_count < MAX_ALLOCATIONS);
        holes[hole_count++] = (struct hole){at->base, round_up(at->bytes)};
    }
    at->bytes = 0;
    (void)pthread_mutex_unlock(&lock);
}

void *fake_cuda_reserve(uint64_t pieces)
{
    uint64_t bytes = pieces * FAKE_PIECE_BYTES;
    (void)pthread_mutex_lock(&lock);
    uint64_t base = reserve(bytes);
    reservations[reservation_count++] = (struct reservation){base, bytes};
    (void)pthread_mutex_unlock(&lock);
    return (void *)(uintptr_t)base;
}

void fake_cuda_split(void *address)
{
    uint64_t at = (uintptr_t)address;
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < reservation_count; i++) {
        struct reservation *reserved = &reservations[i];
        if (at > reserved->base && at - reserved->base < reserved->bytes) {
            uint64_t left = at - reserved->base;
            reservations[reservation_count++] = (struct reservation){at, reserved->bytes - left};
            reserved->bytes = left;
            break;
        }
    }
    (void)pthread_mutex_unlock(&lock);
}

void fake_cuda_map(int ordinal, enum fake_memory kind, void *address)
{
    (void)pthread_mutex_lock(&lock);
    struct allocation *made = new_allocation();
    fill_locked(made, ordinal, kind, (uintptr_t)address, FAKE_PIECE_BYTES);
    for (size_t i = 0; i < reservation_count; i++) {
        if (made->base - reservations[i].base < reservations[i].bytes) {
            made->range_begin = reservations[i].base;
            made->range_bytes = reservations[i].bytes;
        }
    }
    (void)pthread_mutex_unlock(&lock);
}

static void write_attribute(const struct allocation *at, int attribute, void *data)
{
    static const struct allocation none = {.ordinal = -2};

    const struct allocation *known = at ? at : &none;
    unsigned type = known->kind == FAKE_PINNED ? 1 : DRIVER_MEMORY_TYPE_DEVICE;
    void *pool = at && known->kind == FAKE_POOL ? contexts : NULL;
    switch (attribute) {
    case DRIVER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = at ? type : 0;
        break;
    case DRIVER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)data = known->id;
        break;
    case DRIVER_ATTRIBUTE_IS_MANAGED:
        *(unsigned char *)data = at && known->kind == FAKE_MANAGED;
        break;
    case DRIVER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = known->ordinal;
        break;
    case DRIVER_ATTRIBUTE_MEMPOOL_HANDLE:
        memcpy(data, &pool, sizeof pool);
        break;
    case DRIVER_ATTRIBUTE_RANGE_START:
        *(unsigned long long *)data = known->range_begin;
        break;
    default:
        assert(attribute == DRIVER_ATTRIBUTE_RANGE_BYTES);
        *(size_t *)data = known->range_bytes;
        break;
    }
}

FAKE_EXPORT int cuPointerGetAttributes(
    unsigned count, int *attributes, void **data, uint64_t address);

int cuPointerGetAttributes(unsigned count, int *attributes, void **data, uint64_t address)
{
    (void)pthread_mutex_lock(&lock);
    const struct allocation *at = find(address);
    for (unsigned i = 0; i < count; i++) {
        write_attribute(at, attributes[i], data[i]);
    }
    (void)pthread_mutex_unlock(&lock);
    return DRIVER_SUCCESS;
}

/* Copies what is known about the address. */
static int look_up(uint64_t address, struct allocation *copy)
{
    int result = fake_check();
    if (result != DRIVER_SUCCESS) {
        return result;
    }
    (void)pthread_mutex_lock(&lock);
    const struct allocation *at = find(address);
    *copy = at ? *at : (struct allocation){0};
    (void)pthread_mutex_unlock(&lock);
    return at ? DRIVER_SUCCESS : DRIVER_INVALID_VALUE;
}

FAKE_EXPORT int cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t address);

int cuMemGetAddressRange_v2(uint64_t *base, size_t *bytes, uint64_t address)
{
    struct allocation at;
    int result = look_up(address, &at);
    *base = result == DRIVER_SUCCESS ? at.base : 0;
    *bytes = result == DRIVER_SUCCESS ? at.bytes : 0;
    return result;
}

FAKE_EXPORT int cuIpcGetMemHandle(uint8_t *handle, uint64_t address);

int cuIpcGetMemHandle(uint8_t *handle, uint64_t address)
{
    struct allocation at;
    int result = look_up(address, &at);
    if (result == DRIVER_SUCCESS && at.kind != FAKE_MALLOC) {
        result = DRIVER_INVALID_VALUE;
    }
    if (result == DRIVER_SUCCESS) {
        fake_handle_make(handle, at.fd, at.bytes);
        (void)pthread_mutex_lock(&lock);
        exported++;
        (void)pthread_mutex_unlock(&lock);
    }
    return result;
}

FAKE_EXPORT int cuMemRetainAllocationHandle(unsigned long long *allocation, void *address);

int cuMemRetainAllocationHandle(unsigned long long *allocation, void *address)
{
    struct allocation at;
    int result = look_up((uintptr_t)address, &at);
    if (result == DRIVER_SUCCESS && (at.kind < FAKE_MAPPED || at.kind > FAKE_MAPPED_REFUSED)) {
        result = DRIVER_INVALID_VALUE;
    }
    *allocation = result == DRIVER_SUCCESS ? at.base : 0;
    return result;
}

FAKE_EXPORT int cuMemExportToShareableHandle(
    void *handle, unsigned long long allocation, int type, unsigned long long flags);

int cuMemExportToShareableHandle(
    void *handle, unsigned long long allocation, int type, unsigned long long flags)
{
    struct allocation at;
    int result = look_up(allocation, &at);
    bool shared = at.kind == FAKE_MAPPED || at.kind == FAKE_MAPPED_REFUSED;
    if (result == DRIVER_SUCCESS &&
        (!shared || type != DRIVER_HANDLE_TYPE_POSIX_FD || flags != 0)) {
        result = DRIVER_INVALID_VALUE;
    }
    if (result == DRIVER_SUCCESS) {
        int fd = at.kind == FAKE_MAPPED ? dup(at.fd) : open("/dev/null", O_RDWR);
        memcpy(handle, &fd, sizeof fd);
        (void)pthread_mutex_lock(&lock);
        exported++;
        (void)pthread_mutex_unlock(&lock);
        void (*hook)(void) = atomic_exchange(&at_export, NULL);
        if (hook) {
            hook();
        }
    }
    return result;
}

FAKE_EXPORT int cuMemRelease(unsigned long long allocation);

int cuMemRelease(unsigned long long allocation)
{
    return allocation != 0 ? DRIVER_SUCCESS : DRIVER_INVALID_VALUE;
}

size_t fake_cuda_exported(void)
{
    (void)pthread_mutex_lock(&lock);
    size_t count = exported;
    (void)pthread_mutex_unlock(&lock);
    return count;
}

void fake_cuda_at_export(void (*hook)(void))
{
    atomic_store(&at_export, hook);
}

/* ---- Host memory -------------------------------------------------------------------------------- */

static int register_more(int difference)
{
    int result = fake_check();
    if (result == DRIVER_SUCCESS || difference < 0) {
        (void)pthread_mutex_lock(&lock);
        registered += (size_t)difference;
        (void)pthread_mutex_unlock(&lock);
    }
    return result;
}

FAKE_EXPORT int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags);

int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags)
{
    assert(flags == (DRIVER_HOST_REGISTER_PORTABLE | DRIVER_HOST_REGISTER_DEVICEMAP));
    assert((uintptr_t)memory % 4096 == 0 && bytes % 4096 == 0);
    (void)memory;
    (void)bytes;
    (void)flags;
    return register_more(1);
}

FAKE_EXPORT int cuMemHostUnregister(void *memory);

int cuMemHostUnregister(void *memory)
{
    (void)memory;
    return register_more(-1);
}

FAKE_EXPORT int cuMemHostGetDevicePointer_v2(uint64_t *address, void *memory, unsigned flags);

/* Another number than the host's, as the device may see it elsewhere. */
int cuMemHostGetDevicePointer_v2(uint64_t *address, void *memory, unsigned flags)
{
    *address = (uintptr_t)memory + FAKE_HOST_DISTANCE;
    return flags == 0 ? fake_check() : DRIVER_INVALID_VALUE;
}

size_t fake_cuda_registered(void)
{
    (void)pthread_mutex_lock(&lock);
    size_t count = registered;
    (void)pthread_mutex_unlock(&lock);
    return count;
}

#include "driver.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define LIBRARY "libcuda.so.1"

static const struct {
    size_t offset;
    const char *symbol;
} functions[] = {
    {offsetof(struct driver_functions, cuGetErrorName), "cuGetErrorName"},
    {offsetof(struct driver_functions, cuDeviceGet), "cuDeviceGet"},
    {offsetof(struct driver_functions, cuDeviceGetUuid), "cuDeviceGetUuid_v2"},
    {offsetof(struct driver_functions, cuDeviceTotalMem), "cuDeviceTotalMem_v2"},
    {offsetof(struct driver_functions, cuDevicePrimaryCtxRetain), "cuDevicePrimaryCtxRetain"},
    {offsetof(struct driver_functions, cuDevicePrimaryCtxRelease), "cuDevicePrimaryCtxRelease_v2"},
    {offsetof(struct driver_functions, cuCtxGetCurrent), "cuCtxGetCurrent"},
    {offsetof(struct driver_functions, cuCtxGetDevice), "cuCtxGetDevice"},
    {offsetof(struct driver_functions, cuCtxPushCurrent), "cuCtxPushCurrent_v2"},
    {offsetof(struct driver_functions, cuCtxPopCurrent), "cuCtxPopCurrent_v2"},
    {offsetof(struct driver_functions, cuPointerGetAttributes), "cuPointerGetAttributes"},
    {offsetof(struct driver_functions, cuMemGetAddressRange), "cuMemGetAddressRange_v2"},
    {offsetof(struct driver_functions, cuIpcGetMemHandle), "cuIpcGetMemHandle"},
    {offsetof(struct driver_functions, cuMemRetainAllocationHandle), "cuMemRetainAllocationHandle"},
    {offsetof(struct driver_functions, cuMemExportToShareableHandle),
        "cuMemExportToShareableHandle"},
    {offsetof(struct driver_functions, cuMemRelease), "cuMemRelease"},
    {offsetof(struct driver_functions, cuMemHostRegister), "cuMemHostRegister_v2"},
    {offsetof(struct driver_functions, cuMemHostUnregister), "cuMemHostUnregister"},
    {offsetof(struct driver_functions, cuMemHostGetDevicePointer), "cuMemHostGetDevicePointer_v2"},
    {offsetof(struct driver_functions, cuThreadExchangeStreamCaptureMode),
        "cuThreadExchangeStreamCaptureMode"},
    {offsetof(struct driver_functions, cuStreamGetCtx), "cuStreamGetCtx"},
    {offsetof(struct driver_functions, cuStreamGetId), "cuStreamGetId"},
    {offsetof(struct driver_functions, cuStreamIsCapturing), "cuStreamIsCapturing"},
    {offsetof(struct driver_functions, cuStreamBatchMemOp), "cuStreamBatchMemOp_v2"},
};

static bool fail(const struct driver *driver, struct wire_error *error, enum wire_status status,
    const char *what, int result)
{
    const char *name = NULL;
    if (driver->call.cuGetErrorName(result, &name) != DRIVER_SUCCESS || !name) {
        name = "an unknown error";
    }
    return wire_fail(error, status, "%s: CUDA says %s (%d)", what, name, result);
}

/* Streams that record what they are given instead of doing it, or are in the way of one that does. */
static bool fail_stream(const struct driver *driver, struct wire_error *error, int result)
{
    if (result >= DRIVER_FIRST_CAPTURE_ERROR && result <= DRIVER_LAST_CAPTURE_ERROR) {
        return wire_fail(error, WIRE_UNSUPPORTED,
            "stream is being captured, or waits for one that is; a graph's replays would wait for "
            "the request of its capture");
    }
    bool fault = result >= DRIVER_FIRST_FAULT && result <= DRIVER_LAST_FAULT &&
                 result != DRIVER_CONTEXT_IS_DESTROYED;
    return fail(driver, error, fault ? WIRE_DEVICE_FAULT : WIRE_INVALID_ARGUMENT,
        "stream cannot be used", result);
}

static bool find_functions(void *library, struct driver_functions *call, struct wire_error *error)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *found = dlsym(library, functions[i].symbol);
        if (!found) {
            return wire_fail(error, WIRE_UNSUPPORTED,
                "the CUDA driver of this process is older than 12.0: it has no %s",
                functions[i].symbol);
        }
        memcpy((char *)call + functions[i].offset, &found, sizeof found);
    }
    return true;
}

static bool open_locked(struct driver *driver, struct wire_error *error)
{
    if (driver->library) {
        return true;
    }
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_NOLOAD);
    if (!library) {
        return wire_fail(
            error, WIRE_INVALID_ARGUMENT, "this process has not loaded the CUDA driver, " LIBRARY);
    }
    if (!find_functions(library, &driver->call, error)) {
        (void)dlclose(library);
        return false;
    }
    driver->library = library;
    return true;
}

/* The thread's current one, or the primary one of the device, kept until driver_close(). */
static bool find_context(
    struct driver *driver, int ordinal, void **context, struct wire_error *error)
{
    int device = 0;
    *context = NULL;
    int result = driver->call.cuCtxGetCurrent(context);
    if (result == DRIVER_SUCCESS && !*context) {
        result = driver->call.cuDeviceGet(&device, ordinal);
        if (result == DRIVER_SUCCESS) {
            result = driver->call.cuDevicePrimaryCtxRetain(context, device);
        }
        if (result == DRIVER_SUCCESS) {
            (void)pthread_mutex_lock(&driver->mutex);
            if (driver->retained) {
                (void)driver->call.cuDevicePrimaryCtxRelease(device);
            }
            driver->retained = true;
            driver->retained_device = device;
            (void)pthread_mutex_unlock(&driver->mutex);
        }
    }
    return result == DRIVER_SUCCESS ||
           fail(driver, error, WIRE_INVALID_ARGUMENT, "no CUDA context for this thread", result);
}

static bool takes_work(const struct driver *driver, void *stream, struct wire_error *error)
{
    int status = DRIVER_CAPTURE_STATUS_NONE;
    int result = driver->call.cuStreamIsCapturing(stream, &status);
    if (result == DRIVER_SUCCESS && status != DRIVER_CAPTURE_STATUS_NONE) {
        result = DRIVER_FIRST_CAPTURE_ERROR;
    }
    return result == DRIVER_SUCCESS || fail_stream(driver, error, result);
}

void driver_init(struct driver *driver)
{
    *driver = (struct driver){0};
    (void)pthread_mutex_init(&driver->mutex, NULL);
}

bool driver_open(struct driver *driver, struct wire_error *error)
{
    (void)pthread_mutex_lock(&driver->mutex);
    bool open = open_locked(driver, error);
    (void)pthread_mutex_unlock(&driver->mutex);
    return open;
}

void driver_close(struct driver *driver)
{
    if (driver->retained) {
        (void)driver->call.cuDevicePrimaryCtxRelease(driver->retained_device);
    }
    if (driver->library) {
        (void)dlclose(driver->library);
    }
    (void)pthread_mutex_destroy(&driver->mutex);
    *driver = (struct driver){0};
}

bool driver_current_uuid(const struct driver *driver, uint8_t uuid[WIRE_UUID_BYTES])
{
    int device;
    return driver->call.cuCtxGetDevice(&device) == DRIVER_SUCCESS &&
           driver->call.cuDeviceGetUuid(uuid, device) == DRIVER_SUCCESS;
}

bool driver_uuid(const struct driver *driver, int ordinal, uint8_t uuid[WIRE_UUID_BYTES],
    struct wire_error *error)
{
    int device;
    int result = driver->call.cuDeviceGet(&device, ordinal);
    if (result == DRIVER_SUCCESS) {
        result = driver->call.cuDeviceGetUuid(uuid, device);
    }
    return result == DRIVER_SUCCESS ||
           fail(driver, error, WIRE_INVALID_ARGUMENT, "device_id is no device", result);
}

uint64_t driver_total_memory(const struct driver *driver, int ordinal)
{
    int device;
    size_t bytes = 0;
    bool known = driver->call.cuDeviceGet(&device, ordinal) == DRIVER_SUCCESS &&
                 driver->call.cuDeviceTotalMem(&bytes, device) == DRIVER_SUCCESS;
    return known ? bytes : 0;
}

bool driver_enter_context(const struct driver *driver, void *context, struct driver_scope *scope)
{
    *scope = (struct driver_scope){.mode = DRIVER_CAPTURE_MODE_RELAXED};
    scope->pushed = driver->call.cuCtxPushCurrent(context) == DRIVER_SUCCESS;
    if (scope->pushed) {
        (void)driver->call.cuThreadExchangeStreamCaptureMode(&scope->mode);
    }
    return scope->pushed;
}

bool driver_enter(struct driver *driver, void *stream, int ordinal, struct driver_scope *scope,
    void **context, struct wire_error *error)
{
    void *current;
    *scope = (struct driver_scope){0};
    if (!find_context(driver, ordinal, &current, error)) {
        return false;
    }
    if (!driver_enter_context(driver, current, scope)) {
        return wire_fail(
            error, WIRE_INVALID_ARGUMENT, "the CUDA context of this thread was destroyed");
    }
    if (!takes_work(driver, stream, error)) { /* any other question would spoil a capture */
        driver_leave(driver, scope);
        return false;
    }
    int result = driver->call.cuStreamGetCtx(stream, context);
    if (result == DRIVER_SUCCESS && *context != current) {
        driver_leave(driver, scope);
        if (driver_enter_context(driver, *context, scope)) {
            return true;
        }
        result = DRIVER_INVALID_CONTEXT;
    }
    if (result != DRIVER_SUCCESS) {
        driver_leave(driver, scope);
        return fail_stream(driver, error, result);
    }
    return true;
}

void driver_leave(const struct driver *driver, const struct driver_scope *scope)
{
    if (scope->pushed) {
        int mode = scope->mode;
        void *popped;
        (void)driver->call.cuThreadExchangeStreamCaptureMode(&mode);
        (void)driver->call.cuCtxPopCurrent(&popped);
    }
}

bool driver_stream_id(
    const struct driver *driver, void *stream, uint64_t *id, struct wire_error *error)
{
    unsigned long long number = 0;
    if (!takes_work(driver, stream, error)) {
        return false;
    }
    int result = driver->call.cuStreamGetId(stream, &number);
    *id = number;
    return result == DRIVER_SUCCESS || fail_stream(driver, error, result);
}

bool driver_is_broken(const struct driver *driver, void *pinned)
{
    uint64_t address;
    return driver->call.cuMemHostGetDevicePointer(&address, pinned, 0) != DRIVER_SUCCESS;
}

static union driver_operation operation(int kind, struct driver_word word)
{
    return (union driver_operation){
        .word = {.operation = kind, .address = word.address, .value = word.value}};
}

bool driver_enqueue(const struct driver *driver, void *stream, struct driver_word before,
    struct driver_word until, struct driver_word after, struct wire_error *error)
{
    union driver_operation operations[] = {operation(DRIVER_WRITE_VALUE_32, before),
        operation(DRIVER_WAIT_VALUE_32, until), operation(DRIVER_WRITE_VALUE_32, after)};
    operations[1].word.flags = DRIVER_WAIT_VALUE_GEQ;
    int result = driver->call.cuStreamBatchMemOp(
        stream, sizeof operations / sizeof *operations, operations, 0);
    return result == DRIVER_SUCCESS ||
           fail(driver, error, WIRE_DEVICE_FAULT, "stream takes no work", result);
}

bool driver_pin(const struct driver *driver, void *memory, size_t bytes, uint64_t *address,
    struct wire_error *error)
{
    int result = driver->call.cuMemHostRegister(
        memory, bytes, DRIVER_HOST_REGISTER_PORTABLE | DRIVER_HOST_REGISTER_DEVICEMAP);
    if (result != DRIVER_SUCCESS) {
        return fail(driver, error, WIRE_RESOURCE_EXHAUSTED,
            "the control page cannot be shown to the device", result);
    }
    result = driver->call.cuMemHostGetDevicePointer(address, memory, 0);
    if (result != DRIVER_SUCCESS) {
        driver_unpin(driver, memory);
        return fail(
            driver, error, WIRE_UNSUPPORTED, "the device does not see the control page", result);
    }
    return true;
}

void driver_unpin(const struct driver *driver, void *memory)
{
    (void)driver->call.cuMemHostUnregister(memory);
}

bool driver_describe(const struct driver *driver, uint64_t address, struct driver_memory *memory)
{
    int attributes[] = {DRIVER_ATTRIBUTE_MEMORY_TYPE, DRIVER_ATTRIBUTE_BUFFER_ID,
        DRIVER_ATTRIBUTE_IS_MANAGED, DRIVER_ATTRIBUTE_DEVICE_ORDINAL,
        DRIVER_ATTRIBUTE_MEMPOOL_HANDLE, DRIVER_ATTRIBUTE_RANGE_START,
        DRIVER_ATTRIBUTE_RANGE_BYTES};
    unsigned type = 0;
    unsigned long long id = 0;
    unsigned managed = 0; /* of which the driver writes a byte or a word */
    int ordinal = -1;
    void *pool = NULL;
    unsigned long long begin = 0;
    size_t bytes = 0;
    void *data[] = {&type, &id, &managed, &ordinal, &pool, &begin, &bytes};
    int result = driver->call.cuPointerGetAttributes(
        sizeof attributes / sizeof *attributes, attributes, data, address);
    *memory = (struct driver_memory){.id = id,
        .ordinal = ordinal,
        .range_end = begin + bytes,
        .is_device = type == DRIVER_MEMORY_TYPE_DEVICE,
        .is_managed = managed != 0,
        .is_pooled = pool != NULL};
    return result == DRIVER_SUCCESS && type != 0;
}

bool driver_range(const struct driver *driver, uint64_t address, uint64_t *base, uint64_t *bytes)
{
    size_t size = 0;
    int result = driver->call.cuMemGetAddressRange(base, &size, address);
    *bytes = size;
    return result == DRIVER_SUCCESS && *base <= address && address - *base < size;
}

bool driver_ipc_handle(
    const struct driver *driver, uint64_t base, uint8_t handle[WIRE_HANDLE_BYTES])
{
    return driver->call.cuIpcGetMemHandle(handle, base) == DRIVER_SUCCESS;
}

static bool retain(const struct driver *driver, uint64_t base, unsigned long long *allocation)
{
    void *address = (void *)(uintptr_t)base;
    return driver->call.cuMemRetainAllocationHandle(allocation, address) == DRIVER_SUCCESS;
}

bool driver_is_mapped(const struct driver *driver, uint64_t base)
{
    unsigned long long allocation;
    bool mapped = retain(driver, base, &allocation);
    if (mapped) {
        (void)driver->call.cuMemRelease(allocation);
    }
    return mapped;
}

int driver_export(const struct driver *driver, uint64_t base)
{
    int fd = -1;
    unsigned long long allocation;
    if (!retain(driver, base, &allocation)) {
        return -1;
    }
    if (driver->call.cuMemExportToShareableHandle(
            &fd, allocation, DRIVER_HANDLE_TYPE_POSIX_FD, 0) != DRIVER_SUCCESS) {
        fd = -1;
    }
    (void)driver->call.cuMemRelease(allocation);
    return fd;
}

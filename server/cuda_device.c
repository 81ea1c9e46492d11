#include "cuda_device.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define DRIVER_FUNCTIONS_OF 12000 /* the version whose signatures struct cuda_driver has */
#define EXPORTER_PROBES 3

/* Shared memory that a block may have on the GPU that the kernels are made for, and many take nearly all
 * of it. GPUs of a larger number may have 99. */
#define BLOCK_BYTES ((size_t)163 << 10)
#define BLOCK_SINCE 80 /* capability: those before it are too old, which is said elsewhere */

static bool is_name(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

bool cuda_ok(int code, const char *call, enum wire_status status, struct wire_error *error)
{
    if (code == cudaSuccess) {
        return true;
    }
    /* The function's name is the last word before the arguments. */
    const char *end = strchr(call, '(');
    const char *begin = end != NULL ? end : call + strlen(call);
    int length = 0;
    for (; begin > call && is_name(begin[-1]); begin--) {
        length++;
    }
    (void)cudaGetLastError(); /* so that nobody takes it for that of a later call */
    return wire_fail(error, code == cudaErrorMemoryAllocation ? WIRE_RESOURCE_EXHAUSTED : status,
        "%.*s: %s (%s)", length, begin, cudaGetErrorString((cudaError_t)code),
        cudaGetErrorName((cudaError_t)code));
}

void cuda_uuid_text(const uint8_t uuid[WIRE_UUID_BYTES], char text[CUDA_UUID_TEXT_BYTES])
{
    int used = snprintf(text, CUDA_UUID_TEXT_BYTES, "GPU-");
    for (int i = 0; i < WIRE_UUID_BYTES; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        used += snprintf(
            text + used, (size_t)(CUDA_UUID_TEXT_BYTES - used), "%s%02x", dash ? "-" : "", uuid[i]);
    }
}

bool cuda_device_use(const struct cuda_device *device, struct wire_error *error)
{
    return CUDA_OK(error, WIRE_INTERNAL, cudaSetDevice(device->ordinal));
}

/* -- which one ---------------------------------------------------------------------------------- */

static bool has_uuid(int ordinal, const char *beginning)
{
    struct cudaDeviceProp properties;
    char text[CUDA_UUID_TEXT_BYTES];
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    cuda_uuid_text((const uint8_t *)properties.uuid.bytes, text);
    return strncasecmp(text, beginning, strlen(beginning)) == 0;
}

static bool find_uuid(const char *name, int count, int *ordinal, struct wire_error *error)
{
    int found = 0;
    for (int i = 0; i < count; i++) {
        if (has_uuid(i, name)) {
            *ordinal = i;
            found++;
        }
    }
    if (found == 1) {
        return true;
    }
    return wire_fail(error, WIRE_NOT_FOUND,
        "device: %s of the %d GPUs here has a UUID that begins with %s",
        found == 0 ? "none" : "more than one", count, name);
}

static bool find_device(const char *name, int *ordinal, struct wire_error *error)
{
    int count = 0;
    struct wire_error reason;
    if (!CUDA_OK(&reason, WIRE_NOT_FOUND, cudaGetDeviceCount(&count))) {
        return wire_fail(error, reason.status, "device: there is no GPU that CUDA can use: %.180s",
            reason.detail);
    }
    if (!isdigit((unsigned char)name[0])) {
        return find_uuid(name, count, ordinal, error);
    }
    long index = strtol(name, NULL, 10);
    if (index >= count) {
        return wire_fail(error, WIRE_NOT_FOUND, "device: there is no GPU %s; this machine shows %d",
            name, count);
    }
    *ordinal = (int)index;
    return true;
}

/* -- what it is --------------------------------------------------------------------------------- */

static void describe_driver(struct cuda_device *device)
{
    int version = 0;
    char module[32] = "";
    FILE *file = fopen("/sys/module/nvidia/version", "re");
    if (file != NULL) {
        if (fgets(module, sizeof(module), file) == NULL) {
            module[0] = '\0';
        }
        module[strcspn(module, "\n")] = '\0';
        (void)fclose(file);
    }
    (void)cudaDriverGetVersion(&version);
    (void)snprintf(device->driver_version, sizeof(device->driver_version), "%s%sCUDA %d.%d", module,
        module[0] != '\0' ? ", " : "", version / 1000, version % 1000 / 10);
}

static enum wire_mps find_mps(int ordinal)
{
    int enabled = 0;
    if (cudaDeviceGetAttribute(&enabled, cudaDevAttrMpsEnabled, ordinal) != cudaSuccess) {
        (void)cudaGetLastError();
        return WIRE_MPS_UNKNOWN;
    }
    return enabled != 0 ? WIRE_MPS_ON : WIRE_MPS_OFF;
}

static bool describe(struct cuda_device *device, struct wire_error *error)
{
    struct cudaDeviceProp properties;
    if (!CUDA_OK(error, WIRE_INTERNAL, cudaGetDeviceProperties(&properties, device->ordinal))) {
        return false;
    }
    wire_copy_text(device->name, sizeof(device->name), properties.name);
    memcpy(device->uuid, properties.uuid.bytes, sizeof(device->uuid));
    device->capability = 10 * properties.major + properties.minor;
    device->processors = properties.multiProcessorCount;
    device->memory_bytes = properties.totalGlobalMem;
    device->block_bytes = properties.sharedMemPerBlockOptin;
    describe_driver(device);
    device->mps = find_mps(device->ordinal);
    return true;
}

static bool check_block(const struct cuda_device *device, struct wire_error *error)
{
    return device->capability < BLOCK_SINCE || device->block_bytes >= BLOCK_BYTES ||
           wire_fail(error, WIRE_UNSUPPORTED,
               "device: %.64s has %zu KiB of shared memory for a block, but the kernels need %zu; "
               "compute capabilities 8.0, 8.7, 9.0 and 10.x have that much, its %d.%d does not",
               device->name, device->block_bytes / 1024, BLOCK_BYTES / 1024,
               device->capability / 10, device->capability % 10);
}

static bool find_function(const char *name, void *function, struct wire_error *error)
{
    enum cudaDriverEntryPointQueryResult result;
    void *found = NULL;
#if CUDART_VERSION >= 12050
    cudaError_t code = cudaGetDriverEntryPointByVersion(
        name, &found, DRIVER_FUNCTIONS_OF, cudaEnableDefault, &result);
#else
    cudaError_t code = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
    if (code != cudaSuccess || result != cudaDriverEntryPointSuccess || found == NULL) {
        (void)cudaGetLastError();
        return wire_fail(error, WIRE_UNSUPPORTED,
            "device: the driver has no %s; one for CUDA %d.%d or later is needed", name,
            DRIVER_FUNCTIONS_OF / 1000, DRIVER_FUNCTIONS_OF % 1000 / 10);
    }
    memcpy(function, &found, sizeof(found));
    return true;
}

static bool find_functions(struct cuda_driver *driver, struct wire_error *error)
{
    const struct {
        const char *name;
        void *function;
    } functions[] = {
        {"cuMemGetAddressRange", &driver->mem_get_address_range},
        {"cuMemGetAllocationGranularity", &driver->mem_get_allocation_granularity},
        {"cuMemGetAllocationPropertiesFromHandle", &driver->mem_get_allocation_properties},
        {"cuMemImportFromShareableHandle", &driver->mem_import},
        {"cuMemAddressReserve", &driver->mem_address_reserve},
        {"cuMemAddressFree", &driver->mem_address_free},
        {"cuMemMap", &driver->mem_map},
        {"cuMemSetAccess", &driver->mem_set_access},
        {"cuMemUnmap", &driver->mem_unmap},
        {"cuMemRelease", &driver->mem_release},
        {"cuStreamBatchMemOp", &driver->stream_batch_mem_op},
    };

    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        if (!find_function(functions[i].name, functions[i].function, error)) {
            return false;
        }
    }
    return true;
}

/* Where this process's pid is in a handle of its own, as far as `places` (a bit per word) goes. */
static uint32_t places_of_pid(uint32_t places, size_t bytes)
{
    cudaIpcMemHandle_t handle;
    void *memory = NULL;
    pid_t pid = getpid();
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    if (cudaIpcGetMemHandle(&handle, memory) != cudaSuccess) {
        (void)cudaGetLastError();
        places = 0;
    }
    for (size_t i = 0; i < sizeof(handle) / sizeof(pid); i++) {
        if (places != 0 && memcmp(handle.reserved + i * sizeof(pid), &pid, sizeof(pid)) != 0) {
            places &= ~(UINT32_C(1) << i);
        }
    }
    (void)cudaFree(memory);
    return places;
}

/* Legacy handles are not documented. Of several places none is believed. */
static int find_exporter_offset(void)
{
    uint32_t places = (UINT32_C(1) << sizeof(cudaIpcMemHandle_t) / sizeof(pid_t)) - 1;
    for (size_t i = 0; i < EXPORTER_PROBES; i++) {
        places = places_of_pid(places, (size_t)1 << (20 + i));
    }
    if (places == 0 || (places & (places - 1)) != 0) {
        return CUDA_EXPORTER_UNKNOWN;
    }
    return __builtin_ctz(places) * (int)sizeof(pid_t);
}

bool cuda_device_open(struct cuda_device *device, const char *name, struct wire_error *error)
{
    *device = (struct cuda_device){0};
    if (!find_device(name, &device->ordinal, error)) {
        return false;
    }
    /* Nobody waits for the device by a call, except while the daemon starts. */
    if (!CUDA_OK(error, WIRE_INTERNAL,
            cudaInitDevice(
                device->ordinal, cudaDeviceScheduleBlockingSync, cudaInitDeviceFlagsAreValid)) ||
        !cuda_device_use(device, error) || !describe(device, error) ||
        !check_block(device, error) || !find_functions(&device->driver, error)) {
        return false;
    }
    device->exporter_offset = find_exporter_offset();
    return true;
}

#include "cuda_memory.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "list.h"
#include "log.h"
#include "shared_memory.h"

/* Address space is not memory, but it ends as well: no user gets more than a part of it. */
#define MAX_RESERVED_PER_UID (UINT64_C(32) << 40)

#define PAGE_BYTES 4096
#define REGISTER_FLAGS (cudaHostRegisterMapped | cudaHostRegisterPortable)

struct mapping {
    struct list_node node;
    enum wire_memory_kind kind;
    uint32_t uid;
    void *base; /* as the device sees it */
    void *host; /* SHM: as this process sees it */
    uint64_t bytes;
    uint64_t reserved; /* VMM: address space */
};

struct cuda_memory {
    const struct cuda_device *device; /* borrowed */
    uint64_t granularity;             /* of the virtual memory API */
    pthread_mutex_t lock;
    struct list mappings; /* owned */
};

/* -- the list ----------------------------------------------------------------------------------- */

/* A mapping in the list, without memory yet. NULL: *error. */
static struct mapping *begin(
    struct cuda_memory *memory, const struct backend_offer *offer, struct wire_error *error)
{
    struct mapping *mapping = calloc(1, sizeof(*mapping));
    if (mapping == NULL) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
        return NULL;
    }
    mapping->kind = offer->kind;
    mapping->uid = offer->uid;
    mapping->bytes = offer->bytes;
    pthread_mutex_lock(&memory->lock);
    list_append(&memory->mappings, &mapping->node);
    pthread_mutex_unlock(&memory->lock);
    return mapping;
}

static void take(struct cuda_memory *memory, struct mapping *mapping)
{
    pthread_mutex_lock(&memory->lock);
    list_remove(&mapping->node);
    pthread_mutex_unlock(&memory->lock);
}

static struct mapping *find_locked(struct cuda_memory *memory, const void *base)
{
    list_for_each(at, &memory->mappings) {
        struct mapping *mapping = list_entry(at, struct mapping, node);
        if (mapping->base == base) {
            return mapping;
        }
    }
    assert(false);
    return NULL;
}

/* Of several mappings at one address any is as good as another: the driver counts. */
static struct mapping *find(struct cuda_memory *memory, const void *base, bool and_take)
{
    pthread_mutex_lock(&memory->lock);
    struct mapping *mapping = find_locked(memory, base);
    if (and_take) {
        list_remove(&mapping->node);
    }
    pthread_mutex_unlock(&memory->lock);
    return mapping;
}

static void set_base(struct cuda_memory *memory, struct mapping *mapping, void *base)
{
    pthread_mutex_lock(&memory->lock);
    mapping->base = base;
    pthread_mutex_unlock(&memory->lock);
}

/* For what has to succeed: there is nothing that could be done about it. */
static void warn_unless(bool ok, const struct wire_error *error)
{
    if (!ok) {
        log_warning("memory is not let go: %s", error->detail);
    }
}

/* Says of an error of the driver's which field of the offer was at fault. */
static bool blame(struct wire_error *error, const char *field)
{
    struct wire_error reason = *error;
    return wire_fail(error, reason.status, "%s: %.200s", field, reason.detail);
}

/* -- shared memory ------------------------------------------------------------------------------ */

static bool make_visible(void *host, uint64_t bytes, void **device, struct wire_error *error)
{
    if (!CUDA_OK(error, WIRE_RESOURCE_EXHAUSTED, cudaHostRegister(host, bytes, REGISTER_FLAGS))) {
        return false;
    }
    if (!CUDA_OK(error, WIRE_INTERNAL, cudaHostGetDevicePointer(device, host, 0))) {
        (void)cudaHostUnregister(host);
        return false;
    }
    return true;
}

static bool map_shared(struct mapping *mapping, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    if (!shared_memory_map(offer, &mapping->host, error)) {
        return false;
    }
    if (!make_visible(mapping->host, offer->bytes, base, error)) {
        shared_memory_unmap(mapping->host, offer->bytes);
        return false;
    }
    return true;
}

static void unmap_shared(const struct mapping *mapping)
{
    struct wire_error error;
    warn_unless(CUDA_OK(&error, WIRE_INTERNAL, cudaHostUnregister(mapping->host)), &error);
    shared_memory_unmap(mapping->host, mapping->bytes);
}

/* -- legacy IPC --------------------------------------------------------------------------------- */

/* Refuses handles that are passed on as they are. A forger writes his own pid into one: the driver does
 * not go by it. */
static bool check_exporter(
    const struct cuda_device *device, const struct backend_offer *offer, struct wire_error *error)
{
    pid_t exporter;
    if (device->exporter_offset == CUDA_EXPORTER_UNKNOWN) {
        return offer->uid == geteuid() ||
               wire_fail(error, WIRE_PERMISSION_DENIED,
                   "handle: with this driver it can't be told whose memory it is of, so that only "
                   "the daemon's own user may send one");
    }
    memcpy(&exporter, offer->handle + device->exporter_offset, sizeof(exporter));
    return (offer->pid > 0 && exporter == offer->pid) ||
           wire_fail(error, WIRE_PERMISSION_DENIED,
               "handle: not of memory of the process that sends it (processes in another PID "
               "namespace than the daemon can't send any)");
}

static bool check_allocation(
    const struct cuda_device *device, void *base, uint64_t bytes, struct wire_error *error)
{
    struct cudaPointerAttributes attributes;
    CUdeviceptr begin = 0;
    size_t size = 0;
    if (!CUDA_OK(error, WIRE_INTERNAL, cudaPointerGetAttributes(&attributes, base)) ||
        !CUDA_OK(error, WIRE_INTERNAL,
            device->driver.mem_get_address_range(&begin, &size, (CUdeviceptr)base))) {
        return false;
    }
    if (attributes.device != device->ordinal) {
        return wire_fail(
            error, WIRE_INVALID_ARGUMENT, "handle: of another GPU's memory than the daemon's");
    }
    uint64_t there = size - ((CUdeviceptr)base - begin);
    if (bytes > there) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "bytes is %" PRIu64 ", but the allocation has %" PRIu64, bytes, there);
    }
    return true;
}

static bool map_ipc(const struct cuda_device *device, const struct backend_offer *offer,
    void **base, struct wire_error *error)
{
    cudaIpcMemHandle_t handle;
    _Static_assert(sizeof(handle) == WIRE_HANDLE_BYTES, "handles travel whole");
    memcpy(&handle, offer->handle, sizeof(handle));
    if (!check_exporter(device, offer, error)) {
        return false;
    }
    if (!CUDA_OK(error, WIRE_INVALID_ARGUMENT,
            cudaIpcOpenMemHandle(base, handle, cudaIpcMemLazyEnablePeerAccess))) {
        return blame(error, "handle");
    }
    if (!check_allocation(device, *base, offer->bytes, error)) {
        (void)cudaIpcCloseMemHandle(*base);
        return false;
    }
    return true;
}

static void unmap_ipc(const struct mapping *mapping)
{
    struct wire_error error;
    warn_unless(CUDA_OK(&error, WIRE_INTERNAL, cudaIpcCloseMemHandle(mapping->base)), &error);
}

/* -- virtual memory ----------------------------------------------------------------------------- */

static uint64_t round_up(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

static bool check_pieces(
    const struct cuda_memory *memory, const struct backend_offer *offer, struct wire_error *error)
{
    if (offer->bytes == 0 || offer->bytes % memory->granularity != 0) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "bytes is %" PRIu64 ", not a multiple of %" PRIu64, offer->bytes, memory->granularity);
    }
    return true;
}

static bool check_piece(
    const struct cuda_device *device, CUmemGenericAllocationHandle handle, struct wire_error *error)
{
    CUmemAllocationProp properties;
    if (!CUDA_OK(error, WIRE_INVALID_ARGUMENT,
            device->driver.mem_get_allocation_properties(&properties, handle))) {
        return false;
    }
    if (properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        properties.location.id != device->ordinal) {
        return wire_fail(
            error, WIRE_INVALID_ARGUMENT, "descriptor: of other memory than the daemon's GPU's");
    }
    return true;
}

/* The driver maps no more than an allocation has, which is the only check of a piece's size there is. */
static bool map_piece(const struct cuda_device *device, CUmemGenericAllocationHandle handle,
    CUdeviceptr at, uint64_t bytes, struct wire_error *error)
{
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->ordinal},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    if (!check_piece(device, handle, error)) {
        return false;
    }
    if (!CUDA_OK(error, WIRE_INVALID_ARGUMENT, device->driver.mem_map(at, bytes, 0, handle, 0))) {
        return blame(error, "bytes: more than the descriptor's memory has");
    }
    if (!CUDA_OK(error, WIRE_INTERNAL, device->driver.mem_set_access(at, bytes, &access, 1))) {
        (void)device->driver.mem_unmap(at, bytes);
        return false;
    }
    return true;
}

static bool add_piece(const struct cuda_device *device, CUdeviceptr at,
    const struct backend_offer *piece, struct wire_error *error)
{
    CUmemGenericAllocationHandle handle;
    if (!CUDA_OK(error, WIRE_INVALID_ARGUMENT,
            device->driver.mem_import(
                &handle, (void *)(intptr_t)piece->fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR))) {
        return blame(error, "descriptor: not of a GPU's memory");
    }
    bool mapped = map_piece(device, handle, at, piece->bytes, error);
    (void)device->driver.mem_release(handle); /* what is mapped keeps the memory */
    return mapped;
}

/* Counts the mapping's address space in, if its user may have so much more. */
static bool reserve(
    struct cuda_memory *memory, struct mapping *mapping, uint64_t wanted, struct wire_error *error)
{
    uint64_t all = 0;
    /* What is more than the GPU has never comes. */
    uint64_t most = round_up(memory->device->memory_bytes, memory->granularity);
    uint64_t bytes = wanted < most ? round_up(wanted, memory->granularity) : most;
    if (bytes < mapping->bytes || wanted > MAX_RESERVED_PER_UID) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "reserve is %" PRIu64 " bytes; it may be from those of the first piece to %" PRIu64,
            wanted, MAX_RESERVED_PER_UID);
    }
    pthread_mutex_lock(&memory->lock);
    list_for_each(at, &memory->mappings) {
        const struct mapping *other = list_entry(at, struct mapping, node);
        all += other->uid == mapping->uid ? other->reserved : 0;
    }
    if (all + bytes <= MAX_RESERVED_PER_UID) {
        mapping->reserved = bytes;
    }
    pthread_mutex_unlock(&memory->lock);
    return mapping->reserved != 0 ||
           wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
               "reserve: the user's regions have %" PRIu64 " bytes of address space already", all);
}

static bool map_virtual(struct cuda_memory *memory, struct mapping *mapping,
    const struct backend_offer *offer, void **base, struct wire_error *error)
{
    const struct cuda_device *device = memory->device;
    CUdeviceptr at = 0;
    if (!check_pieces(memory, offer, error) || !reserve(memory, mapping, offer->reserve, error) ||
        !CUDA_OK(error, WIRE_RESOURCE_EXHAUSTED,
            device->driver.mem_address_reserve(&at, mapping->reserved, 0, 0, 0))) {
        return false;
    }
    if (!add_piece(device, at, offer, error)) {
        (void)device->driver.mem_address_free(at, mapping->reserved);
        return false;
    }
    *base = (void *)at;
    return true;
}

static void unmap_virtual(const struct cuda_device *device, const struct mapping *mapping)
{
    struct wire_error error;
    CUdeviceptr at = (CUdeviceptr)mapping->base;
    warn_unless(
        CUDA_OK(&error, WIRE_INTERNAL, device->driver.mem_unmap(at, mapping->bytes)) &&
            CUDA_OK(&error, WIRE_INTERNAL, device->driver.mem_address_free(at, mapping->reserved)),
        &error);
}

static bool find_granularity(struct cuda_memory *memory, struct wire_error *error)
{
    const CUmemAllocationProp properties = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = memory->device->ordinal},
    };
    size_t granularity = 0;
    if (!CUDA_OK(error, WIRE_UNSUPPORTED,
            memory->device->driver.mem_get_allocation_granularity(
                &granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM))) {
        return false;
    }
    memory->granularity = granularity;
    return true;
}

/* -- the interface ------------------------------------------------------------------------------ */

struct cuda_memory *cuda_memory_create(const struct cuda_device *device, struct wire_error *error)
{
    struct cuda_memory *memory = calloc(1, sizeof(*memory));
    if (memory == NULL) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
        return NULL;
    }
    memory->device = device;
    pthread_mutex_init(&memory->lock, NULL);
    list_init(&memory->mappings);
    if (!find_granularity(memory, error)) {
        cuda_memory_destroy(memory);
        return NULL;
    }
    return memory;
}

void cuda_memory_destroy(struct cuda_memory *memory)
{
    if (memory != NULL) {
        assert(list_empty(&memory->mappings));
        pthread_mutex_destroy(&memory->lock);
        free(memory);
    }
}

bool cuda_memory_map(struct cuda_memory *memory, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    struct mapping *mapping = begin(memory, offer, error);
    bool mapped = false;
    if (mapping == NULL) {
        return false;
    }
    if (cuda_device_use(memory->device, error)) {
        switch (offer->kind) {
        case WIRE_MEMORY_SHM:
            mapped = map_shared(mapping, offer, base, error);
            break;
        case WIRE_MEMORY_CUDA_IPC:
            mapped = map_ipc(memory->device, offer, base, error);
            break;
        case WIRE_MEMORY_CUDA_VMM:
            mapped = map_virtual(memory, mapping, offer, base, error);
            break;
        }
    }
    if (!mapped) {
        take(memory, mapping);
        free(mapping);
        return false;
    }
    set_base(memory, mapping, *base);
    return true;
}

bool cuda_memory_extend(struct cuda_memory *memory, void *base, uint64_t bytes,
    const struct backend_offer *piece, struct wire_error *error)
{
    struct mapping *mapping = find(memory, base, false);
    if (mapping->kind != WIRE_MEMORY_CUDA_VMM || mapping->bytes != bytes) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "region: only one of the virtual memory API grows, and only at its end");
    }
    if (piece->bytes > mapping->reserved - mapping->bytes) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "bytes: of the %" PRIu64 " that the region reserved, %" PRIu64 " are left",
            mapping->reserved, mapping->reserved - mapping->bytes);
    }
    if (!cuda_device_use(memory->device, error) || !check_pieces(memory, piece, error) ||
        !add_piece(memory->device, (CUdeviceptr)base + mapping->bytes, piece, error)) {
        return false;
    }
    mapping->bytes += piece->bytes;
    return true;
}

void cuda_memory_unmap(struct cuda_memory *memory, void *base)
{
    struct mapping *mapping = find(memory, base, true);
    struct wire_error error;
    warn_unless(cuda_device_use(memory->device, &error), &error);
    switch (mapping->kind) {
    case WIRE_MEMORY_SHM:
        unmap_shared(mapping);
        break;
    case WIRE_MEMORY_CUDA_IPC:
        unmap_ipc(mapping);
        break;
    case WIRE_MEMORY_CUDA_VMM:
        unmap_virtual(memory->device, mapping);
        break;
    }
    free(mapping);
}

bool cuda_memory_pin_page(
    struct cuda_memory *memory, struct page *page, void **device, struct wire_error *error)
{
    return cuda_device_use(memory->device, error) &&
           make_visible(page, round_up(sizeof(*page), PAGE_BYTES), device, error);
}

void cuda_memory_unpin_page(struct cuda_memory *memory, struct page *page)
{
    struct wire_error error;
    warn_unless(cuda_device_use(memory->device, &error) &&
                    CUDA_OK(&error, WIRE_INTERNAL, cudaHostUnregister(page)),
        &error);
}

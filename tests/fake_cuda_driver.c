#include "fake_cudart_state.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_MAPPED ((size_t)64 << 20)

#define DRIVER_ENTER(name)                   \
    int code_ = fake_enter(name);            \
    if (code_ != 0) {                        \
        return (CUresult)fake_unlock(code_); \
    }
#define DRIVER_LEAVE(code) return (CUresult)fake_unlock(code)

static CUresult get_address_range(CUdeviceptr *begin, size_t *size, CUdeviceptr at)
{
    DRIVER_ENTER("cuMemGetAddressRange")
    const struct fake_allocation *place = fake_find_foreign((void *)at);
    if (place == NULL) {
        DRIVER_LEAVE(CUDA_ERROR_NOT_FOUND);
    }
    *begin = at;
    *size = place->bytes;
    DRIVER_LEAVE(0);
}

static CUresult get_granularity(size_t *granularity, const CUmemAllocationProp *properties,
    CUmemAllocationGranularity_flags option)
{
    (void)properties;
    (void)option;
    DRIVER_ENTER("cuMemGetAllocationGranularity")
    *granularity = FAKE_GRANULARITY;
    DRIVER_LEAVE(0);
}

/* The name that fake_cudart_export_piece() gave the memfd. */
static int gpu_of_piece(int fd)
{
    char path[32];
    char target[64] = "";
    int gpu = -1;
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (readlink(path, target, sizeof(target) - 1) > 0) {
        (void)sscanf(target, "/memfd:piece-%d", &gpu);
    }
    return gpu;
}

static CUresult import(
    CUmemGenericAllocationHandle *handle, void *descriptor, CUmemAllocationHandleType type)
{
    int fd = (int)(intptr_t)descriptor;
    struct stat status;
    DRIVER_ENTER("cuMemImportFromShareableHandle")
    int gpu = gpu_of_piece(fd);
    if (gpu < 0 || fstat(fd, &status) != 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        DRIVER_LEAVE(CUDA_ERROR_INVALID_VALUE);
    }
    for (int i = 0; i < FAKE_PLACES; i++) {
        if (fake.handle[i].bytes == 0) {
            fake.handle[i] = (struct fake_range){.bytes = (size_t)status.st_size, .gpu = gpu};
            fake.handle_fd[i] = dup(fd);
            *handle = (CUmemGenericAllocationHandle)i + 1;
            DRIVER_LEAVE(0);
        }
    }
    DRIVER_LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
}

static CUresult get_properties(CUmemAllocationProp *properties, CUmemGenericAllocationHandle handle)
{
    DRIVER_ENTER("cuMemGetAllocationPropertiesFromHandle")
    memset(properties, 0, sizeof(*properties));
    properties->location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties->location.id = fake.handle[handle - 1].gpu;
    DRIVER_LEAVE(0);
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
    DRIVER_ENTER("cuMemRelease")
    close(fake.handle_fd[handle - 1]);
    fake.handle[handle - 1] = (struct fake_range){0};
    DRIVER_LEAVE(0);
}

/* Addresses that only tests of their number ask for are not there. */
static size_t mapped_of(size_t reserved)
{
    return reserved < MOST_MAPPED ? reserved : MOST_MAPPED;
}

static CUresult address_reserve(
    CUdeviceptr *at, size_t bytes, size_t alignment, CUdeviceptr wish, unsigned long long flags)
{
    DRIVER_ENTER("cuMemAddressReserve")
    (void)alignment;
    (void)wish;
    (void)flags;
    void *begin =
        mmap(NULL, mapped_of(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) {
        DRIVER_LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    }
    fake_add_range(fake.reserved, begin, bytes);
    *at = (CUdeviceptr)begin;
    DRIVER_LEAVE(0);
}

static CUresult address_free(CUdeviceptr at, size_t bytes)
{
    DRIVER_ENTER("cuMemAddressFree")
    struct fake_range *range = fake_find_range(fake.reserved, (char *)at);
    if (range == NULL || range->bytes != bytes) {
        DRIVER_LEAVE(CUDA_ERROR_INVALID_VALUE);
    }
    munmap(range->begin, mapped_of(bytes));
    *range = (struct fake_range){0};
    DRIVER_LEAVE(0);
}

static bool is_reserved(const char *at, size_t bytes)
{
    for (int i = 0; i < FAKE_PLACES; i++) {
        const struct fake_range *range = &fake.reserved[i];
        if (range->begin != NULL && at >= range->begin &&
            at + bytes <= range->begin + range->bytes) {
            return true;
        }
    }
    return false;
}

static CUresult map(CUdeviceptr at, size_t bytes, size_t offset,
    CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    (void)flags;
    DRIVER_ENTER("cuMemMap")
    int fd = fake.handle_fd[handle - 1];
    if (offset != 0 || bytes > fake.handle[handle - 1].bytes || !is_reserved((char *)at, bytes) ||
        mmap((void *)at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
            MAP_FAILED) {
        DRIVER_LEAVE(CUDA_ERROR_INVALID_VALUE);
    }
    fake_add_range(fake.piece, (char *)at, bytes);
    DRIVER_LEAVE(0);
}

static CUresult set_access(
    CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
    DRIVER_ENTER("cuMemSetAccess")
    const struct fake_range *range = fake_find_range(fake.piece, (char *)at);
    bool good = range != NULL && range->bytes == bytes && count == 1 &&
                access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE &&
                access->location.id == fake_current;
    DRIVER_LEAVE(good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

/* As the driver: whole pieces, as many as there are in the range, and nothing else. */
static CUresult unmap(CUdeviceptr at, size_t bytes)
{
    DRIVER_ENTER("cuMemUnmap")
    size_t left = bytes;
    while (left > 0) {
        struct fake_range *range = fake_find_range(fake.piece, (char *)at);
        if (range == NULL || range->bytes > left) {
            DRIVER_LEAVE(CUDA_ERROR_INVALID_VALUE);
        }
        (void)mmap(range->begin, range->bytes, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        at += range->bytes;
        left -= range->bytes;
        *range = (struct fake_range){0};
    }
    DRIVER_LEAVE(0);
}

/* What a device may write: registered host memory. */
static _Atomic uint32_t *word_at(CUdeviceptr address)
{
    char *host = (char *)(uintptr_t)(address - FAKE_DEVICE_OFFSET);
    for (int i = 0; i < FAKE_PLACES; i++) {
        const struct fake_range *range = &fake.registered[i];
        if (range->begin != NULL && host >= range->begin && host < range->begin + range->bytes) {
            return (_Atomic uint32_t *)(void *)host;
        }
    }
    return NULL;
}

static CUresult batch_mem_op(
    CUstream stream, unsigned count, CUstreamBatchMemOpParams *operations, unsigned flags)
{
    (void)stream;
    (void)flags;
    DRIVER_ENTER("cuStreamBatchMemOp")
    for (unsigned i = 0; i < count; i++) {
        _Atomic uint32_t *word = word_at(operations[i].writeValue.address);
        if (operations[i].operation != CU_STREAM_MEM_OP_WRITE_VALUE_32 ||
            operations[i].writeValue.flags != CU_STREAM_WRITE_VALUE_DEFAULT || word == NULL ||
            fake.pendings == FAKE_WRITES) {
            DRIVER_LEAVE(CUDA_ERROR_INVALID_VALUE);
        }
        fake.pending[fake.pendings++] =
            (struct fake_pending){.word = word, .value = operations[i].writeValue.value};
    }
    if (!fake.holds_streams) {
        fake_write_pending();
    }
    DRIVER_LEAVE(0);
}

#define FUNCTION(name, function)         \
    {                                    \
        name, (void (*)(void))(function) \
    }

void (*fake_driver_function(const char *name))(void)
{
    static const struct {
        const char *name;
        void (*function)(void);
    } functions[] = {
        FUNCTION("cuMemGetAddressRange", get_address_range),
        FUNCTION("cuMemGetAllocationGranularity", get_granularity),
        FUNCTION("cuMemGetAllocationPropertiesFromHandle", get_properties),
        FUNCTION("cuMemImportFromShareableHandle", import),
        FUNCTION("cuMemAddressReserve", address_reserve),
        FUNCTION("cuMemAddressFree", address_free),
        FUNCTION("cuMemMap", map),
        FUNCTION("cuMemSetAccess", set_access),
        FUNCTION("cuMemUnmap", unmap),
        FUNCTION("cuMemRelease", release),
        FUNCTION("cuStreamBatchMemOp", batch_mem_op),
    };

    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        if (strcmp(name, functions[i].name) == 0) {
            return functions[i].function;
        }
    }
    return NULL;
}

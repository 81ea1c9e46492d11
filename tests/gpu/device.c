#include "device.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* -- the driver's functions ----------------------------------------------------------------- */

static void find(void *place, const char *name)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    CU(cudaGetDriverEntryPointByVersion(name, place, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
        (void)fprintf(stderr, "the driver has no %s\n", name);
        exit(1);
    }
}

const struct driver *device_driver(void)
{
    static struct driver driver;
    if (driver.mem_create == NULL) {
        find(&driver.mem_release, "cuMemRelease");
        find(&driver.mem_reserve, "cuMemAddressReserve");
        find(&driver.mem_free, "cuMemAddressFree");
        find(&driver.mem_map, "cuMemMap");
        find(&driver.mem_unmap, "cuMemUnmap");
        find(&driver.mem_set_access, "cuMemSetAccess");
        find(&driver.mem_export, "cuMemExportToShareableHandle");
        find(&driver.mem_create, "cuMemCreate");
    }
    return &driver;
}

/* -- public --------------------------------------------------------------------------------- */

void device_check(int error, const char *call, const char *file, int line)
{
    if (error != 0) {
        (void)fprintf(
            stderr, "%s:%d: %s: %s\n", file, line, call, cudaGetErrorString((cudaError_t)error));
        _Exit(1);
    }
}

void device_check_driver(int error, const char *call, const char *file, int line)
{
    if (error != 0) {
        (void)fprintf(stderr, "%s:%d: %s: driver error %d\n", file, line, call, error);
        _Exit(1);
    }
}

bool device_present(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

void device_require(const char *program)
{
    if (!device_present()) {
        (void)printf("%s: skipped, this machine has no GPU\n", program);
        exit(SKIPPED);
    }
    CU(cudaSetDevice(0));
}

size_t device_free_bytes(void)
{
    size_t unused = 0;
    size_t total = 0;
    CU(cudaMemGetInfo(&unused, &total));
    return unused;
}

uint64_t device_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void device_sleep_ms(int ms)
{
    (void)poll(NULL, 0, ms);
}

void device_describe(char *text, size_t capacity)
{
    struct cudaDeviceProp properties;
    int driver = 0;
    CU(cudaGetDeviceProperties(&properties, 0));
    CU(cudaDriverGetVersion(&driver));
    (void)snprintf(text, capacity, "%s sm_%d%d, CUDA driver %d.%d", properties.name,
        properties.major, properties.minor, driver / 1000, driver % 1000 / 10);
}

/*
 * A libcuda.so.1 with as much of the driver's interface as attnctl asks: one GPU, or an error.
 *     FAKE_CUDA_ERROR=N        cuInit() returns N
 *     FAKE_CUDA_CAPABILITY=NM  compute capability N.M instead of 9.0
 *     FAKE_CUDA_BLOCK_KIB=N    shared memory of a block instead of 227 KiB
 *     FAKE_CUDA_UUID=N         all bytes of its UUID but the last, which then is 0
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int cuInit(unsigned flags);
EXPORT int cuDriverGetVersion(int *version);
EXPORT int cuGetErrorName(int error, const char **name);
EXPORT int cuDeviceGetCount(int *count);
EXPORT int cuDeviceGet(int *device, int ordinal);
EXPORT int cuDeviceGetName(char *name, int bytes, int device);
EXPORT int cuDeviceGetUuid_v2(uint8_t uuid[16], int device);
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device);
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device);

static int from_environment(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? atoi(text) : otherwise;
}

int cuInit(unsigned flags)
{
    return flags == 0 ? from_environment("FAKE_CUDA_ERROR", 0) : 1;
}

int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return 0;
}

int cuGetErrorName(int error, const char **name)
{
    *name = error == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR_UNKNOWN";
    return 0;
}

int cuDeviceGetCount(int *count)
{
    *count = 1;
    return 0;
}

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal + 40; /* a handle is no ordinal */
    return ordinal == 0 ? 0 : 101;
}

int cuDeviceGetName(char *name, int bytes, int device)
{
    strncpy(name, "Fake GPU", (size_t)bytes);
    return device == 40 ? 0 : 101;
}

int cuDeviceGetUuid_v2(uint8_t uuid[16], int device)
{
    int byte = from_environment("FAKE_CUDA_UUID", -1);
    for (int i = 0; i < 16; i++) {
        uuid[i] = (uint8_t)(byte < 0 ? i * 17 : i < 15 ? byte : 0);
    }
    return device == 40 ? 0 : 101;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    int capability = from_environment("FAKE_CUDA_CAPABILITY", 90);
    int block_bytes = 1024 * from_environment("FAKE_CUDA_BLOCK_KIB", 227);
    *value = attribute == 75   ? capability / 10
             : attribute == 76 ? capability % 10
             : attribute == 97 ? block_bytes
                               : 0;
    return device == 40 ? 0 : 101;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    *bytes = (size_t)3 << 30;
    return device == 40 ? 0 : 101;
}

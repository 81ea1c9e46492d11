#include "twin.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#define SKIPPED 77

static int up(struct twin *twin, void *device, const void *host, size_t bytes)
{
    return (int)cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, twin->stream);
}

static int down(struct twin *twin, void *host, const void *device, size_t bytes)
{
    cudaError_t error = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, twin->stream);
    return (int)(error != cudaSuccess ? error : cudaStreamSynchronize(twin->stream));
}

static int poison(struct twin *twin, void *device, size_t bytes)
{
    return (int)cudaMemsetAsync(device, 0xff, bytes, twin->stream);
}

static void destroy(struct twin *twin)
{
    cudaFreeHost(twin->arena.bytes);
    cudaFreeHost(twin->returned);
    cudaFree(twin->device);
    cudaFree(twin->workspace);
    cudaStreamDestroy(twin->stream);
    free(twin);
}

static const struct twin_device memory = {up, down, poison, destroy};

static void check(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        fprintf(stderr, "twin: %s: %s\n", what, cudaGetErrorString(error));
        exit(1);
    }
}

/* Without a driver, without a device, or with one that is too old for the family. */
static bool has_device(const struct attn_family *family)
{
    int count = 0;
    int major = 0;
    int minor = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        return false;
    }
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "capability");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "capability");
    return 10 * major + minor >= attn_family_capability(family);
}

struct twin *twin_create(const struct attn_family *family, size_t arena_size, size_t workspace_size)
{
    if (attn_family_device(family) != ATTN_DEVICE_CUDA) {
        return NULL;
    }
    if (!has_device(family)) {
        fprintf(stderr, "twin: no GPU here for family %s\n", attn_family_name(family));
        exit(SKIPPED);
    }
    struct twin *twin = calloc(1, sizeof *twin);
    cudaStream_t stream = NULL;
    void *host = NULL;
    void *returned = NULL;
    void *device = NULL;
    void *workspace = NULL;
    if (twin == NULL) {
        abort();
    }
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    check(cudaMallocHost(&host, arena_size), "memory of the host");
    check(cudaMallocHost(&returned, workspace_size), "memory of the host");
    check(cudaMalloc(&device, arena_size), "memory of the device");
    check(cudaMalloc(&workspace, workspace_size), "memory of the device");
    *twin = (struct twin){.memory = &memory,
        .arena = {host, arena_size, 0},
        .device = device,
        .workspace = workspace,
        .returned = returned,
        .workspace_size = workspace_size,
        .stream = stream};
    return twin;
}

void twin_seed(uint64_t seed)
{
    (void)seed;
}

#include "backend_open.h"

#include <string.h>

#define MIB (UINT64_C(1) << 20)
#define CPU_WORKSPACE_BYTES (256 * MIB)
#define CUDA_WORKSPACE_BYTES (2048 * MIB) /* gradients of 16,384 rows of 2,048 take 140 MiB */

static uint64_t workspace_bytes(const struct config *config, uint64_t usual)
{
    return config->workspace_bytes > 0 ? config->workspace_bytes : usual;
}

static struct backend *open_cpu(const struct config *config, struct wire_error *error)
{
    struct backend *backend =
        backend_cpu_create((unsigned)config->threads, workspace_bytes(config, CPU_WORKSPACE_BYTES));
    if (backend == NULL) {
        (void)wire_fail(
            error, WIRE_RESOURCE_EXHAUSTED, "there are no threads, or no memory for the workspace");
    }
    return backend;
}

#ifdef ATTND_CUDA
#define CUDA_PREFIX "cuda:"

static struct backend *open_cuda(const struct config *config, struct wire_error *error)
{
    const char *name = config->device;
    if (strcmp(name, "cuda") == 0) {
        name = "0";
    } else if (strncmp(name, CUDA_PREFIX, strlen(CUDA_PREFIX)) == 0) {
        name += strlen(CUDA_PREFIX);
    }
    return backend_cuda_create(name, workspace_bytes(config, CUDA_WORKSPACE_BYTES), error);
}
#else
static struct backend *open_cuda(const struct config *config, struct wire_error *error)
{
    (void)wire_fail(
        error, WIRE_UNSUPPORTED, "this attnd was built without CUDA: it has no %s", config->device);
    return NULL;
}
#endif

struct backend *backend_open(const struct config *config, struct wire_error *error)
{
    return strcmp(config->device, "cpu") == 0 ? open_cpu(config, error) : open_cuda(config, error);
}

#include "facts.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* The driver's interface, as much of it as is asked here: its ABI does not change. */
enum {
    CAPABILITY_MAJOR = 75, /* attributes of a device */
    CAPABILITY_MINOR = 76,
    COMPUTE_MODE = 20,
    BLOCK_BYTES = 97,
};

struct driver {
    void *library;
    int (*init)(unsigned flags);
    int (*version)(int *version);
    int (*error_name)(int error, const char **name);
    int (*count)(int *count);
    int (*get)(int *device, int ordinal);
    int (*name)(char *name, int bytes, int device);
    int (*uuid)(uint8_t uuid[16], int device);
    int (*attribute)(int *value, int attribute, int device);
    int (*memory)(size_t *bytes, int device);
};

/* dlsym() returns an object's pointer; that a function's has the same form is POSIX's promise. */
static bool find(const struct driver *driver, void *function, const char *name)
{
    void *symbol = dlsym(driver->library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool load(struct driver *driver)
{
    driver->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return driver->library != NULL && find(driver, &driver->init, "cuInit") &&
           find(driver, &driver->version, "cuDriverGetVersion") &&
           find(driver, &driver->error_name, "cuGetErrorName") &&
           find(driver, &driver->count, "cuDeviceGetCount") &&
           find(driver, &driver->get, "cuDeviceGet") &&
           find(driver, &driver->name, "cuDeviceGetName") &&
           (find(driver, &driver->uuid, "cuDeviceGetUuid_v2") ||
               find(driver, &driver->uuid, "cuDeviceGetUuid")) &&
           find(driver, &driver->attribute, "cuDeviceGetAttribute") &&
           find(driver, &driver->memory, "cuDeviceTotalMem_v2");
}

static int ask_gpu(const struct driver *driver, int ordinal, struct facts_gpu *gpu)
{
    int device = 0;
    size_t bytes = 0;
    int error = driver->get(&device, ordinal);
    error = error != 0 ? error : driver->name(gpu->name, (int)sizeof gpu->name, device);
    error = error != 0 ? error : driver->uuid(gpu->uuid, device);
    error = error != 0 ? error : driver->attribute(&gpu->major, CAPABILITY_MAJOR, device);
    error = error != 0 ? error : driver->attribute(&gpu->minor, CAPABILITY_MINOR, device);
    error = error != 0 ? error : driver->attribute(&gpu->compute_mode, COMPUTE_MODE, device);
    error = error != 0 ? error : driver->attribute(&gpu->block_bytes, BLOCK_BYTES, device);
    error = error != 0 ? error : driver->memory(&bytes, device);
    gpu->name[sizeof gpu->name - 1] = '\0';
    gpu->memory_bytes = bytes;
    return error;
}

static int ask(const struct driver *driver, struct facts_cuda *cuda)
{
    int count = 0;
    int error = driver->version(&cuda->version);
    error = error != 0 ? error : driver->init(0);
    error = error != 0 ? error : driver->count(&count);
    for (int i = 0; error == 0 && i < count && i < FACTS_GPUS; i++) {
        error = ask_gpu(driver, i, &cuda->gpu[i]);
        cuda->gpus += error == 0 ? 1 : 0;
    }
    return error;
}

/* The library stays loaded: a driver that was initialised does not like to go. */
void facts_of_cuda(struct facts_cuda *cuda)
{
    struct driver driver = {0};
    *cuda = (struct facts_cuda){0};
    if (!load(&driver)) {
        return;
    }
    cuda->library = true;
    cuda->error = ask(&driver, cuda);
    if (cuda->error != 0) {
        const char *name = NULL;
        (void)driver.error_name(cuda->error, &name);
        (void)snprintf(
            cuda->error_name, sizeof cuda->error_name, "%s", name != NULL ? name : "unknown error");
    }
}

#include "gpu.h"

#include <dlfcn.h>
#include <string.h>

/* The driver's numbers of attributes, and what the kernels want of each. */
enum {
    CAPABILITY_MAJOR = 75,
    LEAST_MAJOR = 8,
    BLOCK_BYTES =
        97, /* shared memory that a block may have: GPUs of the same major number differ */
    LEAST_BLOCK_BYTES = 163 * 1024,
};

struct driver {
    int (*init)(unsigned flags);
    int (*get_device)(int *device, int ordinal);
    int (*get_attribute)(int *value, int attribute, int device);
};

static bool find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof(symbol));
    return symbol != NULL;
}

static bool load(struct driver *driver)
{
    void *library =
        dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* stays: it does not like to go */
    return library != NULL && find(library, "cuInit", &driver->init) &&
           find(library, "cuDeviceGet", &driver->get_device) &&
           find(library, "cuDeviceGetAttribute", &driver->get_attribute);
}

static bool has_at_least(const struct driver *driver, int device, int attribute, int least)
{
    int value = 0;
    return driver->get_attribute(&value, attribute, device) == 0 && value >= least;
}

bool gpu_is_usable(void)
{
    struct driver driver;
    int device = 0;
    return load(&driver) && driver.init(0) == 0 && driver.get_device(&device, 0) == 0 &&
           has_at_least(&driver, device, CAPABILITY_MAJOR, LEAST_MAJOR) &&
           has_at_least(&driver, device, BLOCK_BYTES, LEAST_BLOCK_BYTES);
}

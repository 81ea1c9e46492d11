#include "gpu.h"

#include <dlfcn.h>
#include <string.h>

enum {
    CAPABILITY_MAJOR = 75, /* the driver's number for this attribute */
    OLDEST_MAJOR = 8,
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

bool gpu_is_usable(void)
{
    struct driver driver;
    int device = 0;
    int major = 0;
    return load(&driver) && driver.init(0) == 0 && driver.get_device(&device, 0) == 0 &&
           driver.get_attribute(&major, CAPABILITY_MAJOR, device) == 0 && major >= OLDEST_MAJOR;
}

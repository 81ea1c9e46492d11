#include "gpu.h"

#include <dlfcn.h>
#include <string.h>

bool gpu_is_there(void)
{
    int (*init)(unsigned flags);
    int (*get_count)(int *count);
    int count = 0;
    void *driver =
        dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); /* stays: it does not like to go */
    if (driver == NULL) {
        return false;
    }
    void *symbols[] = {dlsym(driver, "cuInit"), dlsym(driver, "cuDeviceGetCount")};
    if (symbols[0] == NULL || symbols[1] == NULL) {
        return false;
    }
    memcpy(&init, &symbols[0], sizeof(init));
    memcpy(&get_count, &symbols[1], sizeof(get_count));
    return init(0) == 0 && get_count(&count) == 0 && count > 0;
}

/* CUDA tensors in a process that has not loaded the CUDA driver, and where no GPU's daemon is. */
#include <dlfcn.h>
#include <string.h>

#include "attnd.h"
#include "check.h"
#include "daemon.h"

static void expect(struct attnd *client, enum attnd_status status, const char *sentence)
{
    static char nothing[4096];

    int64_t shape[] = {1, 4, 2, 8};
    DLTensor tensor = {.data = nothing,
        .device = {kDLCUDA, 0},
        .ndim = 4,
        .dtype = {kDLFloat, 16, 1},
        .shape = shape};
    DLTensor out = tensor;
    out.byte_offset = 2048;
    enum attnd_status got =
        attnd_forward(client, NULL, &tensor, &tensor, &tensor, &out, NULL, NULL, NULL);
    if (got != status || !strstr(attnd_message(), sentence)) {
        (void)fprintf(stderr, "%s: %s\n", attnd_status_name(got), attnd_message());
    }
    CHECK(got == status && strstr(attnd_message(), sentence));
}

int main(void)
{
    struct daemon daemon = {0};
    struct attnd *client = NULL;
    struct attnd_open_options options = {.size = sizeof options, .address = daemon.directory};
    CHECK(daemon_start(&daemon, NULL));
    CHECK(attnd_open(&options, &client) == ATTND_OK);
    if (ATTND_OF_GPU) {
        expect(client, ATTND_INVALID_ARGUMENT, "has not loaded the CUDA driver, libcuda.so.1");
    } else {
        expect(client, ATTND_UNSUPPORTED, "this client's daemon computes in host memory");
        CHECK(attnd_trim(client, ATTND_FOREVER) == ATTND_OK);
    }
    CHECK(attnd_lane_reset(client, NULL) == ATTND_OK);
    CHECK(!dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD));
    attnd_close(client);
    CHECK(daemon_stop(&daemon));
    return 0;
}

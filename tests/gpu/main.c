/*
 * gpu_tests SUITE [ARGUMENT...]: the tests that run on a GPU in one program, since each program that
 * holds the kernels is large.
 */
#include "main.h"

#include <stdio.h>
#include <string.h>

struct suite {
    const char *name;
    int (*run)(int argc, char **argv);
};

static const struct suite suites[] = {
    {"service", service_main},
    {"kernels", kernels_main},
    {"draws", draws_main},
};

int main(int argc, char **argv)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; argc > 1 && i < sizeof suites / sizeof *suites; i++) {
        if (strcmp(suites[i].name, argv[1]) == 0) {
            return suites[i].run(argc - 1, argv + 1);
        }
    }
    (void)fprintf(stderr, "usage: gpu_tests service|kernels|draws [ARGUMENT...]\n");
    return 2;
}

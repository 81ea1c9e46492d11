#include "machine.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef BENCH_OPENBLAS
#include <cblas.h>
#endif

static void read_processor(char *name, size_t bytes)
{
    char line[512];
    (void)snprintf(name, bytes, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            (void)snprintf(name, bytes, "%.*s", (int)strcspn(colon + 1, "\n"), colon + 1);
            memmove(name, name + strspn(name, " "), strlen(name + strspn(name, " ")) + 1);
            break;
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
}

static const char *simd_level(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        return wide ? "avx512" : "avx2";
    }
#endif
    return "portable";
}

void machine_describe(struct machine *machine)
{
    cpu_set_t set;
    time_t now = time(NULL);
    struct tm utc;
    *machine = (struct machine){.simd = simd_level(), .processors = 1};
    read_processor(machine->processor, sizeof machine->processor);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        machine->processors = (unsigned)CPU_COUNT(&set);
    }
    if (getloadavg(&machine->load, 1) != 1) {
        machine->load = -1;
    }
    (void)gmtime_r(&now, &utc);
    (void)strftime(machine->date, sizeof machine->date, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

#ifdef BENCH_OPENBLAS

struct product {
    int size;
    float *a; /* owned, as the next two */
    float *b;
    float *c;
};

static void multiply(void *context)
{
    const struct product *p = context;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, p->size, p->size, p->size, 1, p->a,
        p->size, p->b, p->size, 0, p->c, p->size);
}

const char *machine_blas(void)
{
    return "OpenBLAS";
}

struct measure machine_sgemm(int size, unsigned threads, const struct measure_limits *limits)
{
    size_t count = (size_t)size * (size_t)size;
    struct product p = {size, calloc(count, sizeof(float)), calloc(count, sizeof(float)),
        calloc(count, sizeof(float))};
    struct measure measure = {0};
    if (p.a != NULL && p.b != NULL && p.c != NULL) {
        for (size_t i = 0; i < count; i++) {
            p.a[i] = (float)(i % 17) - 8;
            p.b[i] = (float)(i % 13) - 6;
        }
        openblas_set_num_threads((int)threads);
        measure = measure_run(limits, multiply, &p);
    }
    free(p.a);
    free(p.b);
    free(p.c);
    return measure;
}

#else

const char *machine_blas(void)
{
    return NULL;
}

struct measure machine_sgemm(int size, unsigned threads, const struct measure_limits *limits)
{
    (void)size;
    (void)threads;
    (void)limits;
    return (struct measure){0};
}

#endif

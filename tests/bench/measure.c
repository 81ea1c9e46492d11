#include "measure.h"

#include <stdlib.h>
#include <time.h>

#define MAX_RUNS 4096

static double read_clock(clockid_t clock)
{
    struct timespec now;
    (void)clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, int count, double part)
{
    return sorted[(int)(part * (count - 1) + 0.5)];
}

double measure_now(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

struct measure measure_run(const struct measure_limits *limits, measure_fn run, void *context)
{
    double wall[MAX_RUNS];
    double cpu[MAX_RUNS];
    int runs = 0;
    double start = measure_now();
    do { /* caches, page tables and the processor's clock get used to it */
        run(context);
    } while (measure_now() - start < 0.2 * limits->seconds);
    start = measure_now();
    do {
        double wall_before = measure_now();
        double cpu_before = read_clock(CLOCK_PROCESS_CPUTIME_ID);
        run(context);
        wall[runs] = measure_now() - wall_before;
        cpu[runs++] = read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu_before;
    } while (runs < MAX_RUNS && (runs < limits->runs || measure_now() - start < limits->seconds));
    qsort(wall, (size_t)runs, sizeof wall[0], compare);
    qsort(cpu, (size_t)runs, sizeof cpu[0], compare);
    return (struct measure){runs, quantile(wall, runs, 0.5), wall[0], quantile(wall, runs, 0.1),
        quantile(wall, runs, 0.9), quantile(cpu, runs, 0.5)};
}

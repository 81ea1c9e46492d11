/*
 * What the figures were measured on, and a yardstick measured beside them. Any thread.
 */
#pragma once

#include "measure.h"

struct machine {
    char processor[128];
    const char *simd;    /* the widest instructions that the kernels can use here */
    unsigned processors; /* that this process may use */
    double load;         /* runnable processes, mean of the last minute */
    char date[32];       /* UTC, ISO 8601 */
};

void machine_describe(struct machine *machine);

/* The library's name, NULL if this build has none: then there is no yardstick. */
const char *machine_blas(void);

/* OpenBLAS's product of two fp32 matrices of size x size. */
struct measure machine_sgemm(int size, unsigned threads, const struct measure_limits *limits);

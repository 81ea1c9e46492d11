/*
 * How long something takes: warm-up, then runs until there are enough, and their spread.
 *
 * Wall clock and processor time of the whole process. One measurement at a time.
 */
#pragma once

struct measure_limits {
    int runs;       /* at least so many, after the warm-up */
    double seconds; /* at least so long */
};

struct measure {
    int runs;
    double median; /* seconds of one run, as the next three */
    double min;
    double p10;
    double p90;
    double cpu; /* processor seconds of the median run */
};

typedef void (*measure_fn)(void *context);

struct measure measure_run(const struct measure_limits *limits, measure_fn run, void *context);

/* Seconds since some point in the past. */
double measure_now(void);

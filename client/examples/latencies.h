/*
 * How long calls took: keeps each, and sorts them to say what most stayed below. One thread.
 */
#pragma once

#include <stddef.h>

struct latencies {
    float *us; /* owned */
    size_t count;
    size_t room;
};

/* One that finds no memory is not kept: no reason to stop what is measured. */
void latencies_note(struct latencies *latencies, double us);
void latencies_finish(struct latencies *latencies);

void latencies_sort(struct latencies *latencies);

/* Of sorted ones, the one that this share of them does not exceed; 0 where there are none. */
double latencies_percentile_us(const struct latencies *latencies, double share);

#include "latencies.h"

#include <stdlib.h>

enum {
    FIRST_ROOM = 1024,
};

static int compare_floats(const void *left, const void *right)
{
    const float *a = left;
    const float *b = right;
    return (*a > *b) - (*a < *b);
}

void latencies_note(struct latencies *latencies, double us)
{
    if (latencies->count == latencies->room) {
        size_t room = latencies->room > 0 ? latencies->room * 2 : (size_t)FIRST_ROOM;
        float *grown = realloc(latencies->us, room * sizeof(*grown));
        if (grown == NULL) {
            return;
        }
        latencies->us = grown;
        latencies->room = room;
    }
    latencies->us[latencies->count++] = (float)us;
}

void latencies_finish(struct latencies *latencies)
{
    free(latencies->us);
}

void latencies_sort(struct latencies *latencies)
{
    if (latencies->count > 0) {
        qsort(latencies->us, latencies->count, sizeof(*latencies->us), compare_floats);
    }
}

double latencies_percentile_us(const struct latencies *latencies, double share)
{
    if (latencies->count == 0) {
        return 0.0;
    }
    double place = share * (double)(latencies->count - 1);
    return (double)latencies->us[(size_t)(place + 0.5)];
}

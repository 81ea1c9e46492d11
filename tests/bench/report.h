/*
 * What `attnd-bench kernels` found: lines of a table on standard output, and a JSON file.
 * One thread.
 */
#pragma once

#include "check.h"
#include "json.h"
#include "machine.h"
#include "shape.h"

struct result {
    const char *family;
    const struct shape *shape;
    enum attn_direction direction;
    const char *unsupported; /* the family's sentence; then there is nothing else */
    struct check check;
    struct measure time; /* runs == 0: not measured, because it is wrong */
    double flops;
    double workspace_bytes;
    double scratch_bytes; /* of all threads */
    double score_bytes;
};

struct report {
    FILE *file; /* owned; NULL: no JSON was asked for */
    struct json json;
    int label_width;
    double sgemm_rate; /* FLOP/s; 0: not measured */
};

/* Prints what it ran on and the table's head. Takes the file. */
void report_open(struct report *report, FILE *file, unsigned threads, const struct measure *sgemm,
    int sgemm_size);
void report_add(struct report *report, const struct result *result);

/* false: the file could not be written. */
bool report_close(struct report *report);

/*
 * What a trainer says on its standard output, one line each, and how the demo reads it back:
 *     step=12 steps=60 loss=3.1416
 *     result first_loss=5.5 last_loss=2.9 calls=528 p50_us=... p99_us=... mean_group=...
 *            checked=... failed=... max_rel_error=...             (one line)
 * Any other line is a message for people.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>

struct report_step {
    int step; /* 1 to steps */
    int steps;
    double loss; /* of this step's batch, nats a byte */
};

struct report_result {
    double first_loss; /* of the held-out batch, before the first step */
    double last_loss;  /* and after the last */
    uint64_t calls;
    double p50_us;
    double p99_us;
    double mean_group;
    uint64_t checked;
    uint64_t failed; /* of the checked, past the numeric bar */
    double max_rel_error;
};

enum report_kind {
    REPORT_MESSAGE,
    REPORT_STEP,
    REPORT_RESULT,
};

void report_print_step(FILE *file, const struct report_step *step);
void report_print_result(FILE *file, const struct report_result *result);

/* Says what the line is and fills the one that it is. */
enum report_kind report_parse(
    const char *line, struct report_step *step, struct report_result *result);

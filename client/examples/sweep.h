/*
 * What the demo knows of its trainers: their learning rates, what they reported, and the conclusion
 * as a table, a JSON file and a verdict. Starts, stops and draws nothing. One thread.
 */
#pragma once

#include "child.h"
#include "report.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    SWEEP_TRAINERS = 32, /* at most */
};

struct sweep_trainer {
    struct child child;
    char name[32];
    double learning_rate;
    struct report_step step;
    struct report_result result;
    bool has_result;
};

struct sweep {
    struct sweep_trainer trainers[SWEEP_TRAINERS];
    size_t count;
    int steps;
    const char *text;  /* borrowed */
    uint64_t requests; /* as the daemon counts them at the end, like the next two */
    uint64_t failed_requests;
    uint64_t groups;
};

/* Trainers that differ in their learning rate alone, from low to high. */
void sweep_init(struct sweep *sweep, size_t count, int steps, const char *text);

/* Takes one line of a trainer's output and says what it was. */
enum report_kind sweep_take_line(struct sweep_trainer *trainer, const char *line);

/* Prints the table, what was asked for and what came, and the last line. true: all is as asked. */
bool sweep_conclude(const struct sweep *sweep);

/* All of the table's and the last line's content. */
void sweep_print_json(const struct sweep *sweep, FILE *file);

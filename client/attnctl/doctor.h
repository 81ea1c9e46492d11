/*
 * Judges facts: what is well, what will hurt, what is broken, and what to do about each. A pure
 * function of the facts.
 */
#pragma once

#include <stddef.h>

#include "facts.h"

enum {
    DOCTOR_FINDINGS = FACTS_GPUS + 16,
    DOCTOR_TEXT = 640,
};

enum doctor_level {
    DOCTOR_OK,
    DOCTOR_WARN, /* works, not as well as it could */
    DOCTOR_BAD,  /* does not work */
};

struct doctor_finding {
    const char *name; /* of what was looked at */
    enum doctor_level level;
    char text[DOCTOR_TEXT];
    const char *advice; /* what to do; "": nothing */
};

struct doctor {
    size_t count;
    struct doctor_finding finding[DOCTOR_FINDINGS];
};

/* "ok", "warn", "bad" */
const char *doctor_level_name(enum doctor_level level);

/* A GPU's UUID as NVIDIA's tools print it. */
enum {
    DOCTOR_UUID = 41,
};

void doctor_print_uuid(const uint8_t uuid[16], char text[DOCTOR_UUID]);

void doctor_judge(const struct facts *facts, struct doctor *doctor);

enum doctor_level doctor_worst(const struct doctor *doctor);

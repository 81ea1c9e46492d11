/*
 * What the daemon said, for people and for programs. Prints to stdout; one thread.
 */
#pragma once

#include "doctor.h"
#include "facts.h"

/* The daemon has answered. */
void status_print(const struct facts_daemon *daemon, bool json);

void status_print_findings(const struct doctor *doctor, bool json);

/* A failure as JSON: {"error": ..., "message": ...}. */
void status_print_failure(const struct facts_daemon *daemon);

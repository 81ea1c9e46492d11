/*
 * The doctor's judgements, by what they are about. Each adds what it finds; doctor.c says in which order.
 */
#pragma once

#include "doctor.h"

/* A finding. advice lives for ever; "": nothing to do. */
__attribute__((format(printf, 5, 6))) void judge_add(struct doctor *doctor, const char *name,
    enum doctor_level level, const char *advice, const char *format, ...);

bool judge_daemon_has_gpu(const struct facts_daemon *daemon);

/* Driver, GPUs, memory. */
void judge_machine(const struct facts *facts, struct doctor *doctor);

/* From here to the daemon: directory, connection, unit, descriptors. */
void judge_way(const struct facts *facts, struct doctor *doctor);

/* A daemon that answers: its kernels; with a GPU, what it and this process share of that. */
void judge_daemon(const struct facts *facts, struct doctor *doctor);

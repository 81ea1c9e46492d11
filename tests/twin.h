/*
 * A device's memory beside the host's: what lies in a twin's arena, the device has at the same place of
 * a copy of it. Where a family computes on the host's memory, as processors and emulated devices do,
 * there is no twin but NULL. One thread per twin.
 */
#pragma once

#include "trial.h"

#define TWIN_WORKSPACES 64

struct twin;

/* How a device copies: 0 or its error. */
struct twin_device {
    int (*up)(struct twin *twin, void *device, const void *host, size_t bytes);
    int (*down)(struct twin *twin, void *host, const void *device, size_t bytes); /* waits */
    int (*poison)(struct twin *twin, void *device, size_t bytes);
    void (*destroy)(struct twin *twin);
};

struct twin_span {
    size_t begin;
    size_t bytes;
};

struct twin {
    const struct twin_device *memory;
    struct trial_arena arena; /* the host's side; owned, as all memory here */
    unsigned char *device;
    unsigned char *workspace; /* on the device */
    unsigned char *returned;  /* the host's copy of it */
    size_t workspace_size;
    size_t workspace_used;
    struct twin_span spans[TWIN_WORKSPACES]; /* of the workspace: one for each that was asked for */
    size_t span_count;
    void *stream;
};

/* Of the family's device. Ends the program with status 77 if it is not there. */
struct twin *twin_create(
    const struct attn_family *family, size_t arena_size, size_t workspace_size);

/* Says which case comes next, for devices where something is left to chance. */
void twin_seed(uint64_t seed);

void twin_destroy(struct twin *twin);

/* The problem with the device's addresses. */
struct attn_problem twin_problem(const struct twin *twin, const struct attn_problem *problem);

/* Scratch of a problem. */
void *twin_workspace(struct twin *twin, size_t bytes);

/* Takes what is used of the arena to the device, and makes the workspace NaN there. */
int twin_up(struct twin *twin);

/* Waits for the device and takes the arena back. */
int twin_down(struct twin *twin);

/* Gives all workspaces back. false: something beside them was written. */
bool twin_release(struct twin *twin);

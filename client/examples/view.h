/*
 * Shows a running sweep: on a terminal one live line per trainer, rewritten in place; elsewhere a
 * plain line now and then. Owns the cursor between begin and end. One thread.
 */
#pragma once

#include "sweep.h"

#include <stdbool.h>
#include <stddef.h>

struct view {
    const struct sweep *sweep; /* borrowed */
    bool live;
    bool drawn; /* the lines are on the screen */
    bool stale; /* and no longer say what is so */
};

/* On a terminal hides the cursor. */
void view_begin(struct view *view, const struct sweep *sweep);

/* This trainer's step is new. */
void view_note(struct view *view, const struct sweep_trainer *trainer);

/* Brings the screen up to date. */
void view_draw(struct view *view);

/* Leaves the last state standing and the terminal as it was. Twice is once. */
void view_end(struct view *view);

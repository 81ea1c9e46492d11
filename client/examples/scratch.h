/*
 * A private directory for one run: made under $XDG_RUNTIME_DIR or /tmp, removed with what lies in it.
 */
#pragma once

#include <stdbool.h>

struct scratch {
    char path[64]; /* short: a socket's whole path must stay below 108 bytes. "": none */
};

/* On failure returns false with errno set. */
bool scratch_open(struct scratch *scratch);

/* Removes the files in it, then itself; it holds no folders. Accepts one that was never opened.
 * false: something is left, and errno says why. */
bool scratch_close(struct scratch *scratch);

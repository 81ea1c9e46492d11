/*
 * Shared memory as both sides agree on it: a memfd of fixed size whose blocks really exist, so that
 * no access to a mapping of it can fault for lack of a page beyond the file's end.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

/* A new memfd of `bytes`, allocated and sealed against shrinking, growing and further seals.
 * Returns the descriptor or -errno: -EINVAL for no bytes, -ENOMEM for more than the machine has. */
int sealed_create(const char *name, uint64_t bytes);

/* Whether a descriptor from elsewhere is such memory: tmpfs, seals, exact size, all blocks there. */
bool sealed_check(int fd, uint64_t bytes, struct wire_error *error);

/* Maps it for reading and writing. NULL and errno on failure; munmap() ends it. */
void *sealed_map(int fd, uint64_t bytes);

/*
 * Which kernel families a device runs, and which of them computes a problem. Any thread.
 */
#pragma once

#include "backend.h"

/* Whether the family is of the backend's kind of device, and that is capable enough. */
bool choose_fits(const struct backend *backend, const struct attn_family *family);

/* Does what backend_ops.choose says, for every backend that launches families. */
const struct attn_family *choose_family(struct backend *backend, enum attn_direction direction,
    const struct attn_problem *problem, const char **why);

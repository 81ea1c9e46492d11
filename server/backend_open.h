/*
 * The device that the configuration names, whatever kind of device that is.
 *
 * Once, while the daemon starts.
 */
#pragma once

#include "backend.h"
#include "config.h"

/* NULL: *error says why there is no such device; its destroy() ends it. */
struct backend *backend_open(const struct config *config, struct wire_error *error);

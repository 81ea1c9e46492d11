/*
 * The daemon as a whole: owns the event loop and all modules, and knows the order of their start
 * and of their death.
 */
#pragma once

#include "config.h"

/* Runs until SIGTERM or SIGINT and the drain that follows; a second signal cuts the drain short.
 * Returns the exit status: 0, 69 (a resource or the device is missing), 75 (another daemon has the
 * directory), 78 (the directory is not usable). Ends the process with 1 if the drain was cut with
 * requests left: they may be on the device, for which nobody waits long then. The backend of a GPU
 * ends it with 70 when that is lost. */
int server_run(const struct config *config);

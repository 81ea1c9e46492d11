/*
 * Whether the GPU that the daemon takes for "cuda", the first one, is there and one that the kernels
 * run on. Asks the driver, if there is one.
 */
#pragma once

#include <stdbool.h>

bool gpu_is_usable(void);

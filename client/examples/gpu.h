/*
 * Whether this machine has a GPU that CUDA can use. Asks the driver, if there is one.
 */
#pragma once

#include <stdbool.h>

bool gpu_is_there(void);

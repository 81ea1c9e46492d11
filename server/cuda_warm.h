/*
 * The first run of the kernels for a GPU: everything that CUDA puts off until then, and all
 * that may be wrong with a build or a driver, happens before the daemon says that it is ready.
 *
 * While the daemon starts.
 */
#pragma once

#include "backend.h"
#include "cuda_device.h"

/* Prepares and tries all families that fit. false: *error says which does not work, or that there is
 * none. */
bool cuda_warm_up(const struct backend *backend, cudaStream_t stream, struct wire_error *error);

/*
 * Which kernels a GPU can run, and their first run: everything that CUDA puts off until then, and all
 * that may be wrong with a build or a driver, happens before the daemon says that it is ready.
 *
 * While the daemon starts.
 */
#pragma once

#include "attn.h"
#include "cuda_device.h"

bool cuda_warm_fits(const struct cuda_device *device, const struct attn_family *family);

/* Prepares and tries all families that fit. false: *error says which does not work, or that there is
 * none. */
bool cuda_warm_up(const struct cuda_device *device, cudaStream_t stream, void *workspace,
    uint64_t workspace_bytes, struct wire_error *error);

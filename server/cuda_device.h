/*
 * The GPU that the daemon computes on: which one it is, what it can do, and how its errors become
 * sentences. Only the CUDA backend's files see this.
 *
 * Every thread that calls CUDA says cuda_device_use() first. Opened once, before there are threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "wire.h"

#define CUDA_EXPORTER_UNKNOWN (-1)

/* What the runtime has no function for. Found by name when the device is opened: the daemon starts on
 * machines without a driver, to say that there is none. */
struct cuda_driver {
    PFN_cuMemGetAddressRange_v3020 mem_get_address_range;
    PFN_cuMemGetAllocationGranularity_v10020 mem_get_allocation_granularity;
    PFN_cuMemGetAllocationPropertiesFromHandle_v10020 mem_get_allocation_properties;
    PFN_cuMemImportFromShareableHandle_v10020 mem_import;
    PFN_cuMemAddressReserve_v10020 mem_address_reserve;
    PFN_cuMemAddressFree_v10020 mem_address_free;
    PFN_cuMemMap_v10020 mem_map;
    PFN_cuMemSetAccess_v10020 mem_set_access;
    PFN_cuMemUnmap_v10020 mem_unmap;
    PFN_cuMemRelease_v10020 mem_release;
    PFN_cuStreamBatchMemOp_v11070 stream_batch_mem_op;
};

struct cuda_device {
    int ordinal;
    char name[WIRE_NAME_BYTES];
    uint8_t uuid[WIRE_UUID_BYTES];
    char driver_version[WIRE_NAME_BYTES];
    int capability; /* 10 * major + minor */
    int processors; /* streaming multiprocessors */
    uint64_t memory_bytes;
    size_t block_bytes; /* shared memory that a block may have */
    enum wire_mps mps;
    int exporter_offset; /* of the exporter's pid in a legacy IPC handle, or CUDA_EXPORTER_UNKNOWN */
    struct cuda_driver driver;
};

/*
 * Whether a call of the runtime or the driver succeeded. If not, *error says which call and why;
 * its status is RESOURCE_EXHAUSTED for lack of memory, else `status`. No argument's value is told.
 */
#define CUDA_OK(error, status, call) cuda_ok((int)(call), #call, status, error)

bool cuda_ok(int code, const char *call, enum wire_status status, struct wire_error *error);

/* The device that `name` is: an index or the beginning of a UUID. false: *error says why not. */
bool cuda_device_open(struct cuda_device *device, const char *name, struct wire_error *error);

/* Makes it the calling thread's device. */
bool cuda_device_use(const struct cuda_device *device, struct wire_error *error);

#define CUDA_UUID_TEXT_BYTES 41 /* "GPU-" and 8-4-4-4-12 digits */
void cuda_uuid_text(const uint8_t uuid[WIRE_UUID_BYTES], char text[CUDA_UUID_TEXT_BYTES]);

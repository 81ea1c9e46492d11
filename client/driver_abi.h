/*
 * The part of the CUDA driver's ABI that libattnd uses, so that it is built without CUDA and needs none
 * on a machine without a GPU. Names, numbers and layouts are the driver's (cuda.h, 12.0 and newer): a
 * CUdeviceptr is a uint64_t, a handle is a void * or a number, and every function returns a CUresult,
 * which is an int.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
    DRIVER_SUCCESS = 0,
    DRIVER_INVALID_VALUE = 1,
    DRIVER_INVALID_CONTEXT = 201,
    DRIVER_INVALID_HANDLE = 400,
    DRIVER_NOT_READY = 600,
    DRIVER_FIRST_FAULT = 700, /* up to the last most say that a kernel has failed */
    DRIVER_ILLEGAL_ADDRESS = 700,
    DRIVER_CONTEXT_IS_DESTROYED = 709,
    DRIVER_LAST_FAULT = 719,
    DRIVER_FIRST_CAPTURE_ERROR = 900, /* CUDA_ERROR_STREAM_CAPTURE_* */
    DRIVER_LAST_CAPTURE_ERROR = 908,
};

enum { /* CUpointer_attribute */
    DRIVER_ATTRIBUTE_MEMORY_TYPE = 2,
    DRIVER_ATTRIBUTE_BUFFER_ID = 7,
    DRIVER_ATTRIBUTE_IS_MANAGED = 8,
    DRIVER_ATTRIBUTE_DEVICE_ORDINAL = 9,
    DRIVER_ATTRIBUTE_RANGE_START = 11,
    DRIVER_ATTRIBUTE_RANGE_BYTES = 12,
    DRIVER_ATTRIBUTE_MEMPOOL_HANDLE = 17,
};

enum {
    DRIVER_MEMORY_TYPE_DEVICE = 2,
    DRIVER_CAPTURE_STATUS_NONE = 0,
    DRIVER_CAPTURE_MODE_RELAXED = 2,
    DRIVER_HANDLE_TYPE_POSIX_FD = 1,
    DRIVER_HOST_REGISTER_PORTABLE = 1,
    DRIVER_HOST_REGISTER_DEVICEMAP = 2,
    DRIVER_WAIT_VALUE_32 = 1,
    DRIVER_WRITE_VALUE_32 = 2,
    DRIVER_WAIT_VALUE_GEQ = 0, /* in a circle: (int32_t)(*address - value) >= 0 */
};

#define DRIVER_HANDLE_BYTES 64
#define DRIVER_UUID_BYTES 16

/* CUstreamBatchMemOpParams, of which writing and waiting are alike. */
union driver_operation {
    struct {
        int operation;
        uint64_t address;
        uint64_t value; /* its low half, if the operation is one of 32 bits */
        unsigned flags;
        uint64_t alias;
    } word;

    uint64_t pad[6];
};

/* The driver's functions of the versions that driver.c asks for. */
struct driver_functions {
    int (*cuGetErrorName)(int result, const char **name);
    int (*cuDeviceGet)(int *device, int ordinal);
    int (*cuDeviceGetUuid)(uint8_t *uuid, int device);
    int (*cuDeviceTotalMem)(size_t *bytes, int device);
    int (*cuDevicePrimaryCtxRetain)(void **context, int device);
    int (*cuDevicePrimaryCtxRelease)(int device);
    int (*cuCtxGetCurrent)(void **context);
    int (*cuCtxGetDevice)(int *device);
    int (*cuCtxPushCurrent)(void *context);
    int (*cuCtxPopCurrent)(void **context);
    int (*cuPointerGetAttributes)(unsigned count, int *attributes, void **data, uint64_t address);
    int (*cuMemGetAddressRange)(uint64_t *base, size_t *bytes, uint64_t address);
    int (*cuIpcGetMemHandle)(uint8_t *handle, uint64_t address);
    int (*cuMemRetainAllocationHandle)(unsigned long long *allocation, void *address);
    int (*cuMemExportToShareableHandle)(
        void *handle, unsigned long long allocation, int type, unsigned long long flags);
    int (*cuMemRelease)(unsigned long long allocation);
    int (*cuMemHostRegister)(void *memory, size_t bytes, unsigned flags);
    int (*cuMemHostUnregister)(void *memory);
    int (*cuMemHostGetDevicePointer)(uint64_t *address, void *memory, unsigned flags);
    int (*cuThreadExchangeStreamCaptureMode)(int *mode);
    int (*cuStreamGetCtx)(void *stream, void **context);
    int (*cuStreamGetId)(void *stream, unsigned long long *id);
    int (*cuStreamIsCapturing)(void *stream, int *status);
    int (*cuStreamBatchMemOp)(
        void *stream, unsigned count, union driver_operation *operations, unsigned flags);
};

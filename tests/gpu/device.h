/*
 * The GPU as the tests see it: whether there is one, the driver's functions, time.
 *
 * Calls that fail end the program with a line on stderr: CU() for the runtime, DRIVER() for the driver.
 * Nothing here loads the driver's library at start, so that the programs start on any machine.
 */
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SKIPPED 77 /* the exit status that ctest takes for it */

#define CU(call) device_check((int)(call), #call, __FILE__, __LINE__)
#define DRIVER(call) device_check_driver((int)(call), #call, __FILE__, __LINE__)

/* The functions of libcuda.so.1 that the tests call. */
struct driver {
    CUresult (*mem_create)(
        CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
    CUresult (*mem_release)(CUmemGenericAllocationHandle);
    CUresult (*mem_reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*mem_free)(CUdeviceptr, size_t);
    CUresult (*mem_map)(
        CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*mem_unmap)(CUdeviceptr, size_t);
    CUresult (*mem_set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
    CUresult (*mem_export)(
        void *, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long);
};

/* Whether this process sees a GPU. */
bool device_present(void);

/* Ends the program with SKIPPED and one line if there is none; else uses number 0. */
void device_require(const char *program);

const struct driver *device_driver(void);
size_t device_free_bytes(void);
uint64_t device_now_ns(void);
void device_sleep_ms(int ms);

/* A short text about GPU and driver. */
void device_describe(char *text, size_t capacity);

void device_check(int error, const char *call, const char *file, int line);
void device_check_driver(int error, const char *call, const char *file, int line);

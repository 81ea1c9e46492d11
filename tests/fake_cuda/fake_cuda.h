/*
 * A libcuda.so.1 over the host's memory, with the functions that libattnd calls, for tests without a GPU.
 * Programs that use it are linked to it, so that the library finds it loaded. This is what only tests
 * may do: give memory, run kernels, make things go wrong.
 *
 * There are two devices. Memory of one is a memfd that is mapped here, at an address that is given away
 * again once it is freed. A stream is a thread that does one thing after another.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_EXPORT __attribute__((visibility("default")))
#define FAKE_HANDLE_BYTES 64
#define FAKE_PIECE_BYTES (UINT64_C(2) << 20) /* of the virtual memory API */

enum fake_memory {
    FAKE_MALLOC,
    FAKE_POOL,
    FAKE_MANAGED,
    FAKE_MAPPED,         /* by the virtual memory API, can be exported */
    FAKE_MAPPED_PRIVATE, /* cannot */
    FAKE_MAPPED_REFUSED, /* can, but no daemon takes it */
    FAKE_PINNED,         /* host memory */
};

/* The driver's own functions that tests call. */
FAKE_EXPORT int cuCtxGetCurrent(void **context);
FAKE_EXPORT int cuCtxPushCurrent_v2(void *context);
FAKE_EXPORT int cuCtxPopCurrent_v2(void **context);
FAKE_EXPORT int cuDeviceGetUuid_v2(uint8_t *uuid, int device);

/* Contexts: a device's primary one, and another. */
FAKE_EXPORT void *fake_cuda_context(int ordinal, bool primary);

/* Zeroed. NULL: out of memory. */
FAKE_EXPORT void *fake_cuda_alloc(int ordinal, enum fake_memory kind, uint64_t bytes);
FAKE_EXPORT void fake_cuda_free(void *memory);

/* Addresses for pieces, which fake_cuda_map() puts there, new and zeroed. */
FAKE_EXPORT void *fake_cuda_reserve(uint64_t pieces);
FAKE_EXPORT void fake_cuda_split(void *address); /* two reservations, as if made one by one */
FAKE_EXPORT void fake_cuda_map(int ordinal, enum fake_memory kind, void *address);

/* Of the current context. They end with the process. */
FAKE_EXPORT void *fake_cuda_stream(void);

/* The stream runs it, after all that it was given before. */
FAKE_EXPORT void fake_cuda_launch(void *stream, void (*kernel)(void *context), void *context);
FAKE_EXPORT void fake_cuda_synchronize(void *stream);

/* Whether the stream has done all that it was given. */
FAKE_EXPORT bool fake_cuda_is_idle(void *stream);

/* The stream is captured, or not any more; *spoilt: somebody asked what may not be asked meanwhile. */
FAKE_EXPORT void fake_cuda_capture(void *stream, bool on);
FAKE_EXPORT bool fake_cuda_capture_is_spoilt(void *stream);

/* The next call to give a stream memory operations fails with this. */
FAKE_EXPORT void fake_cuda_fail_next(int result);
FAKE_EXPORT bool fake_cuda_has_failed(void);

/* A kernel of the context has failed: nothing runs on it any more, and everything says so. */
FAKE_EXPORT void fake_cuda_break(void *context);

/* How much host memory is registered, in pieces; how many handles were exported. */
FAKE_EXPORT size_t fake_cuda_registered(void);
FAKE_EXPORT size_t fake_cuda_exported(void);

/* Once, behind the next piece to be exported. */
FAKE_EXPORT void fake_cuda_at_export(void (*hook)(void));

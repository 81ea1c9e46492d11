/*
 * A daemon of the fake device, a client of it, and calls whose tensors lie on the device, for the tests
 * of libattnd. What goes wrong here ends the test.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "client_case.h"
#include "daemon.h"
#include "fake_cuda.h"

#define OK(call) gpu_ok((call), #call, __FILE__, __LINE__)

extern struct daemon gpu_daemon;
extern struct attnd *gpu_client;

/* Starts the daemon, opens the client, and makes device 0's primary context current. `arguments` as for
 * daemon_start(). */
void gpu_start(const char *const *arguments);
void gpu_stop(void);

/* Waits until the condition holds, at most 10 s. */
bool gpu_eventually(bool (*condition)(void *context), void *context);

/* A kernel that runs until the gate is open. */
struct gpu_gate {
    _Atomic bool open;
};

void gpu_hold(void *context);

/* The client's memory at the daemon. */
uint64_t gpu_regions(void);
uint64_t gpu_region_bytes(void);
bool gpu_has_regions(void *count); /* a uint64_t: for gpu_eventually() */

void gpu_ok(enum attnd_status got, const char *call, const char *file, int line);

/* Whether a call ended so, and its message has the sentence in it; else prints what came instead. */
bool gpu_says(enum attnd_status got, enum attnd_status status, const char *sentence);

/* A small fp16 forward of fixed shape in `memory` of the device, or in new memory if that is NULL. */
struct client_case *gpu_call(void *memory);
size_t gpu_call_bytes(void);

/* All tensors of a case are the device's. */
void gpu_mark(struct client_case *made, int ordinal);

enum attnd_status gpu_submit(struct client_case *made, void *stream, attnd_ticket *ticket);

/* Submits it on a stream and checks the result once the stream has come so far. */
void gpu_run(struct client_case *made, void *stream);

/* Frees the case, and its memory if it is its own. */
void gpu_finish_call(struct client_case *made, bool memory);

/*
 * CUDA without a GPU: the functions of the runtime and the driver that the daemon uses, over this
 * process's memory. Other processes' allocations are tables here; streams hold their writes until they
 * are let go. A device sees host memory at another address than the processor does.
 *
 * Any thread. Wrong uses (a thread without a device, unpinned memory) are answered as by CUDA, with
 * errors.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_GPUS 3
#define FAKE_GRANULARITY (UINT64_C(2) << 20)
#define FAKE_MEMORY (UINT64_C(8) << 40)

/* Before each test: `gpus` of them; -1: there is no driver. UUIDs begin with 10, 11 and 20. */
void fake_cudart_init(int gpus);

/* What the next call of the function answers; sticky: every later call of any says so as well. */
void fake_cudart_fail(const char *function, int code, bool sticky);

/* From now on every call fails. */
void fake_cudart_lose(int code);

void fake_cudart_repeat_exporter(int times); /* how often handles hold the pid: 1, unless said */
void fake_cudart_set_mps(bool on);
void fake_cudart_set_block(size_t bytes); /* of shared memory; 163 KiB, unless said */

/* An allocation of process `pid` on a GPU, and its handle. */
void *fake_cudart_export(int gpu, size_t bytes, int pid, uint8_t handle[64]);

/* An allocation of the virtual memory API as a descriptor; it is a memfd. */
int fake_cudart_export_piece(int gpu, size_t bytes);

/* Holds what streams write, or writes it and lets them go on. */
void fake_cudart_hold_streams(bool hold);

struct fake_cudart_counts {
    int allocations;  /* cudaMalloc */
    int imports;      /* allocations of others that are open, each once */
    int references;   /* to them */
    int reservations; /* ranges of addresses */
    int pieces;       /* mapped into them */
    int handles;      /* of pieces, imported and not released */
    int registered;   /* ranges of host memory */
    int pinned;       /* allocations of host memory */
    int streams;
};

struct fake_cudart_counts fake_cudart_count(void);

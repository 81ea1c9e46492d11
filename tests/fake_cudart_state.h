/* What fake_cudart.c and fake_cuda_driver.c share; nobody else. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "fake_cudart.h"

#define FAKE_PLACES 128
#define FAKE_DEVICE_OFFSET (UINT64_C(1) << 60) /* of host memory as a device sees it */
#define FAKE_WRITES 1024

struct fake_allocation {
    void *memory;
    size_t bytes;
    int gpu;
    int references;
    uint8_t handle[64];
};

struct fake_range {
    char *begin;
    size_t bytes;
    int gpu;
};

struct fake_pending {
    _Atomic uint32_t *word;
    uint32_t value;
};

struct fake_cudart {
    pthread_mutex_t lock;
    int gpus;
    const char *fails;
    int code;
    bool fails_sticky;
    int lost; /* what every call answers; 0: not lost */
    int exporter_times;
    bool mps;
    size_t block_bytes;
    bool holds_streams;
    uint64_t exports;
    struct fake_allocation own[FAKE_PLACES];
    struct fake_allocation foreign[FAKE_PLACES];
    struct fake_range reserved[FAKE_PLACES];
    struct fake_range piece[FAKE_PLACES];
    struct fake_range handle[FAKE_PLACES]; /* without begin; its number + 1 is the handle */
    struct fake_range registered[FAKE_PLACES];
    int handle_fd[FAKE_PLACES];
    int pinned;
    int streams;
    struct fake_pending pending[FAKE_WRITES];
    size_t pendings;
};

extern struct fake_cudart fake;
extern _Thread_local int fake_current; /* device; -1: none */

/* Takes the lock; what it returns is the call's answer, if not 0. */
int fake_enter(const char *function);
int fake_unlock(int code); /* returns it */

struct fake_range *fake_find_range(struct fake_range *table, const char *begin);
void fake_add_range(struct fake_range *table, char *begin, size_t bytes);
struct fake_allocation *fake_find_foreign(const void *memory); /* open */
void fake_write_pending(void);

void (*fake_driver_function(const char *name))(void); /* NULL: there is none */

/*
 * What a device thread can do beyond plain C++, for the emulator's version of <ptx/sm80.cuh>; how a
 * launch begins, for its version of the CUDA runtime. emulator.h says what is checked.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "args.h"

/* Where in the source something is done. */
struct machine_place {
    const char *file;
    int line;
};

enum machine_operation {
    MACHINE_RUNNING, /* waits for nothing */
    MACHINE_ENDED,
    MACHINE_BARRIER,
    MACHINE_SHUFFLE_XOR,
    MACHINE_SHUFFLE_UP,
    MACHINE_ALL,
    MACHINE_LOAD_MATRICES,
    MACHINE_LOAD_TRANSPOSED,
    MACHINE_MULTIPLY_FP16,
    MACHINE_MULTIPLY_BF16,
    MACHINE_OPERATIONS,
};

/* One lane's part in what a warp does together. */
struct machine_part {
    uint64_t value;     /* shuffles: in and out */
    uint32_t parameter; /* shuffles: the same for all lanes; loads: the lane's shared address */
    uint32_t *words;    /* loads: 4 results; products: 4 words of a */
    uint32_t b[2];
    float *sums; /* products: 4, in and out */
};

uint32_t machine_thread(void);
uint32_t machine_block(void);
char *machine_shared_memory(void);
uint32_t machine_shared_address(const void *shared, struct machine_place place);

void machine_barrier(struct machine_place place);
void machine_together(
    enum machine_operation operation, struct machine_part *part, struct machine_place place);

void machine_copy(uint32_t shared, const void *global, uint32_t bytes, struct machine_place place);
void machine_copy_commit(void);
void machine_copy_wait(size_t pending);

/* Ends the process unless the address is a multiple of the size. */
void machine_align(
    const void *address, uintptr_t size, const char *what, struct machine_place place);

typedef void (*machine_kernel)(struct device_group group);

void machine_launch(machine_kernel kernel, uint32_t blocks, uint32_t threads, size_t shared_bytes,
    const struct device_group *group);

/* What the 32 lanes of a warp do together, all parts being there. The addresses are good. */
void warp_together(
    enum machine_operation operation, struct machine_part *const parts[32], const char *shared);

/*
 * Device kernels on a processor: kernels of family sm80, compiled as C++ and run thread by thread.
 *
 * A launch runs at once, in the thread that makes it: blocks one after another in random order, every
 * thread of a block a fiber, threads in random order between the points where they wait for each
 * other. What a program may not do ends the process with a sentence, the place and the seed:
 *
 *   - threads of a warp at different shuffles, loads or products of matrices, or some of them missing
 *   - a barrier that some threads of the block never reach
 *   - 16 bytes at an address that is no multiple of 16, shared addresses beyond the launch's memory
 *   - copies that nobody waited for, more shared memory than was asked for
 *
 * What it should not do shows as NaN: shared memory starts as NaN, and a copy turns its destination
 * into NaN at once but arrives only at the wait that needs it. Writes past the end of shared memory
 * are found at the end of the block, under AddressSanitizer on the spot, reads as well, and words that
 * are read where no multiple of their size is. Variables that nobody has set are not 0 either.
 *
 * Numbers are as on a device: a product and the sum it is part of are rounded once where the compiler
 * may do that, matrix units cut their sums after eight products. What it cannot see are races of blocks
 * over global memory, and what threads of one warp say to each other without a barrier.
 *
 * Every launch has a seed that follows from the environment variable EMULATOR_SEED (1) or the seed
 * set here, and how many launches were before it. State belongs to the calling thread; any thread.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Launches of this thread draw their orders from here on as in a new process with this seed. */
void emulator_seed(uint64_t seed);

/* Called after each block of this thread's launches; NULL: nothing is. */
void emulator_after_blocks(void (*hook)(void *context), void *context);

#ifdef __cplusplus
}
#endif

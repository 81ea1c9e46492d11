/*
 * Clients' memory in the GPU's address space: shared memory that it reaches over the bus, allocations
 * by legacy IPC handle, and pieces of the virtual memory API side by side in a reserved range.
 *
 * Called on any worker thread, several at a time; no lock is held while the driver maps or unmaps.
 * Each mapping is for one offer; memory that is offered twice is mapped once by the driver, which
 * counts. Nothing stays mapped that nobody refers to: it would pin what its owner has freed.
 * Handles are never logged.
 */
#pragma once

#include "backend.h"
#include "cuda_device.h"

struct cuda_memory;

/* The device is borrowed. NULL: *error. */
struct cuda_memory *cuda_memory_create(const struct cuda_device *device, struct wire_error *error);

/* Nothing is mapped any more. Accepts NULL. */
void cuda_memory_destroy(struct cuda_memory *memory);

/* As the functions of struct backend_ops. */
bool cuda_memory_map(struct cuda_memory *memory, const struct backend_offer *offer, void **base,
    struct wire_error *error);
bool cuda_memory_extend(struct cuda_memory *memory, void *base, uint64_t bytes,
    const struct backend_offer *piece, struct wire_error *error);
void cuda_memory_unmap(struct cuda_memory *memory, void *base);
bool cuda_memory_pin_page(
    struct cuda_memory *memory, struct page *page, void **device, struct wire_error *error);
void cuda_memory_unpin_page(struct cuda_memory *memory, struct page *page);

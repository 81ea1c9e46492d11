/*
 * Device memory of the virtual memory API: one range of addresses, pieces of memory side by side in it,
 * as PyTorch's expandable segments make it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "device.h"

#define PIECES_MAX 512

struct pieces {
    unsigned char *base;
    size_t piece;    /* bytes of each */
    size_t reserved; /* bytes of addresses */
    size_t count;
    bool shareable;
    CUmemGenericAllocationHandle handle[PIECES_MAX];
};

void pieces_init(struct pieces *pieces, size_t piece, size_t reserve);

/* The same of memory that its owner can share with nobody. */
void pieces_init_private(struct pieces *pieces, size_t piece, size_t reserve);
void pieces_finish(struct pieces *pieces);

/* As many pieces as bytes take; new memory holds NaN. */
void pieces_grow(struct pieces *pieces, size_t bytes);

/* Unmaps from the end what is behind these bytes. Waits for the device. */
void pieces_shrink(struct pieces *pieces, size_t bytes);

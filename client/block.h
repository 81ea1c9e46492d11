/*
 * Shared memory for copies of what the caller has in other memory. Blocks are filled from the front,
 * and from the front again once nothing in them is used, so that a copy may outlive the call that made
 * it: the requests that read it keep its block as they keep any region.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "memory.h"

#define BLOCK_ALIGNMENT UINT64_C(64)

struct block {
    struct block *next;
    struct region *region; /* owned by the client's memory */
    uint64_t used;         /* bytes from the front */
};

struct blocks {
    pthread_mutex_t mutex;
    struct block *first; /* owned */
};

struct block_piece {
    struct region *region; /* NULL: nothing */
    uint8_t *data;         /* aligned to BLOCK_ALIGNMENT */
};

void block_init(struct blocks *blocks);
void block_finish(struct blocks *blocks);

/* Memory that stays until block_release(), and behind that until the requests sent meanwhile that use
 * it have ended. Where the daemon's limits leave no room it waits for others' pieces if `wait`; who has
 * a piece already must not. */
enum attnd_status block_acquire(
    struct attnd *client, uint64_t bytes, bool wait, struct block_piece *piece);

/* Accepts nothing. */
void block_release(struct attnd *client, const struct block_piece *piece);

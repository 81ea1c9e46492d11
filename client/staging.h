/*
 * Shared memory for the tensors of one submission that lie in other host memory: a copy goes in, the
 * results come out, and the call waits in between. Blocks are kept for the next such call.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "attnd.h"
#include "memory.h"

struct staging_block {
    struct staging_block *next;
    struct region *region; /* owned by the client's memory */
    bool busy;
};

struct staging {
    pthread_mutex_t mutex;
    struct staging_block *blocks; /* owned */
};

void staging_init(struct staging *staging);
void staging_finish(struct staging *staging);

/* attnd_submit() of `count` checked requests, some of whose tensors lie outside of every region.
 * Returns when all have ended and the results lie where they belong. */
enum attnd_status staging_submit(struct attnd *client, void *stream,
    const struct attnd_request *requests, size_t count, attnd_ticket *ticket);

/*
 * A block's shared memory: of exactly the size asked for, between guards. One owner, one thread.
 */
#pragma once

#include <stddef.h>

struct shared_memory {
    char *bytes; /* aligned to 128 bytes */
    size_t size;
    char *allocation; /* owned */
};

void shared_resize(struct shared_memory *shared, size_t size);
void shared_finish(struct shared_memory *shared);

/* Makes it NaN, the guards as well. */
void shared_poison(struct shared_memory *shared);

/* Whether the guards are as they were. */
bool shared_intact(const struct shared_memory *shared);

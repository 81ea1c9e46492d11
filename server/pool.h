/*
 * Worker threads that share the items of one piece of work at a time: a struct attn_executor.
 *
 * Only the thread that owns the pool calls run; it is worker 0 and works along. Idle workers sleep.
 */
#pragma once

#include <stddef.h>

#include "attn.h"

struct pool;

/* workers >= 1, the caller of run counted; each has scratch_bytes of its own. NULL: no memory or
 * threads. */
struct pool *pool_create(unsigned workers, size_t scratch_bytes);

/* Ends and joins the threads; not while run runs. Accepts NULL. */
void pool_destroy(struct pool *pool);

const struct attn_executor *pool_executor(const struct pool *pool);

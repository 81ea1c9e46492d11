/*
 * Doubles in shared memory of the tensors of one submission that lie in other host memory: a copy goes
 * in, the results come out, and the call waits in between.
 */
#pragma once

#include <stddef.h>

#include "attnd.h"
#include "request.h"

/* attnd_submit() of `count` checked requests, some of whose tensors lie outside of every region.
 * Returns when all have ended and the results lie where they belong. */
enum attnd_status staging_submit(struct attnd *client, void *stream, const struct request *requests,
    size_t count, attnd_ticket *ticket);

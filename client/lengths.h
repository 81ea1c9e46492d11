/*
 * Sequence lengths in memory that is not shared: what they must be, and copies for the daemon that
 * outlive the call.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "attnd.h"
#include "block.h"
#include "request.h"
#include "wire.h"

#define LENGTHS_ROLES (WIRE_SEQLENS_K - WIRE_CU_SEQLENS_Q + 1)

/* The copies of one submission. */
struct lengths {
    struct block_piece piece;
    DLTensor tensor[WIRE_MAX_CALLS][LENGTHS_ROLES];
};

/* Lets copies take the place of the requests' lengths that are arrays in ordinary memory. May wait for
 * other requests to end if the daemon's limits leave no room. Released in any case. */
enum attnd_status lengths_copy(
    struct attnd *client, struct request *requests, size_t count, struct lengths *lengths);
void lengths_release(struct attnd *client, const struct lengths *lengths);

/* Whether a valid plan's copied lengths are in order and within the rows. */
bool lengths_check(
    const struct request *request, const struct wire_plan *plan, struct wire_error *error);

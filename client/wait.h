/*
 * Waiting for submissions, on the control page alone.
 */
#pragma once

#include "attnd.h"
#include "wire.h"

/* Waits as long as it takes. error->status: how the submission ended, or that the daemon has gone. */
void wait_ended(struct attnd *client, attnd_ticket ticket, struct wire_error *error);

/* Waits until nothing is in flight or the daemon has gone. */
void wait_all_ended(struct attnd *client);

/* Requests that make no sense, for the tests of the service. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "attnd.h"
#include "service_case.h"

/*
 * Draws a good request, spoils it in one of several ways (`kind` counts through them), submits it,
 * every other time behind a good one in the same array, and expects a refusal with a status and a
 * sentence that names the field at fault, and memory of which no byte has changed.
 * false: it was not so, stderr says what.
 */
bool spoil_and_submit(struct attnd *client, struct rng *rng, size_t kind);

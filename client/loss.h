/*
 * Whether the daemon is gone, and why. Set once, by whichever thread notices first; any thread reads.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "attnd.h"
#include "error.h"
#include "wire.h"

struct loss {
    _Atomic int state;
    struct wire_error error;
};

/* Only the first call counts. Behind any, loss_check() gives the reason. */
void loss_declare(struct loss *loss, enum attnd_status status, const char *format, ...)
    ERROR_PRINTF(3, 4);

bool loss_happened(struct loss *loss);

/* ATTND_OK, or the reason as an error of this thread. */
enum attnd_status loss_check(struct loss *loss);

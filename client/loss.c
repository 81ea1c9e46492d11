#include "loss.h"

#include <stdarg.h>
#include <stdio.h>

#include "clock.h"

#define PAUSE_NS 20000

enum { CONNECTED, BEING_DECLARED, LOST };

/* It is being written down right now. */
static void wait_until_declared(struct loss *loss)
{
    struct timespec pause = clock_timespec(PAUSE_NS);
    while (atomic_load(&loss->state) != LOST) {
        (void)nanosleep(&pause, NULL);
    }
}

void loss_declare(struct loss *loss, enum attnd_status status, const char *format, ...)
{
    int expected = CONNECTED;
    if (!atomic_compare_exchange_strong(&loss->state, &expected, BEING_DECLARED)) {
        wait_until_declared(loss);
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(loss->error.detail, sizeof loss->error.detail, format, arguments);
    va_end(arguments);
    loss->error.status = (enum wire_status)status;
    atomic_store(&loss->state, LOST);
}

bool loss_happened(struct loss *loss)
{
    return atomic_load(&loss->state) == LOST;
}

enum attnd_status loss_check(struct loss *loss)
{
    return loss_happened(loss) ? error_of_wire(&loss->error) : ATTND_OK;
}

#include "loss.h"

#include <stdarg.h>
#include <stdio.h>

enum { CONNECTED, BEING_DECLARED, LOST };

void loss_declare(struct loss *loss, enum attnd_status status, const char *format, ...)
{
    int expected = CONNECTED;
    if (!atomic_compare_exchange_strong(&loss->state, &expected, BEING_DECLARED)) {
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

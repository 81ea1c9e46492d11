/*
 * For programs that draw without a daemon beside them.
 */
#include <stdio.h>

#include "draws.h"

bool draws_service(
    const struct draws_options *options, uint64_t first, uint64_t end, struct draws_totals *totals)
{
    (void)options;
    (void)first;
    (void)end;
    (void)totals;
    fprintf(stderr, "draws: this program knows no service\n");
    return false;
}

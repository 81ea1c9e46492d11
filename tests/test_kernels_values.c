/*
 * The values that the tests on a GPU hold against the reference, without a GPU: edges of tiles among
 * numbers that are none, and scores beyond what exp() and the dtypes can take.
 */
#include <criterion/criterion.h>

#include "gpu/kernels.h"
#include "tested.h"

/* What is slow does a third of it, of all kinds. */
bool kernels_begin(struct kernels *kernels)
{
    kernels->number++;
    return !ORACLE_QUICK || kernels->number % 3 == 1;
}

void kernels_count(struct kernels *kernels, bool good, const char *what)
{
    kernels->checked++;
    cr_expect(good, "case %d: %s", (int)kernels->number, what);
}

Test(kernels_values, edges)
{
    struct kernels kernels = {.family = tested_family()};
    kernels_edges(&kernels);
    cr_expect(kernels.checked > 30 && kernels.worst > 0);
}

Test(kernels_values, logits)
{
    struct kernels kernels = {.family = tested_family()};
    kernels_logits(&kernels);
    cr_expect(kernels.checked > 10 && kernels.worst > 0);
}

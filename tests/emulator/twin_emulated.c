#include "twin.h"

#include "emulator.h"

struct twin *twin_create(const struct attn_family *family, size_t arena_size, size_t workspace_size)
{
    (void)family;
    (void)arena_size;
    (void)workspace_size;
    return NULL;
}

void twin_seed(uint64_t seed)
{
    emulator_seed(seed);
}

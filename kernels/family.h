/*
 * What a kernel family is to table.c: a row of names and functions. Private to kernels/.
 *
 * The functions have the contracts of their namesakes in attn.h; unsupported() is only asked about
 * problems that table.c has found well formed.
 */
#pragma once

#include "attn.h"

struct attn_family {
    const char *name;
    enum attn_device device;
    int min_capability; /* compute capability * 10 that the device needs; 0 for processors */

    const char *(*unsupported)(enum attn_direction direction, const struct attn_problem *problem);
    size_t (*workspace_bytes)(enum attn_direction direction, const struct attn_problem *problem);
    uint64_t (*tile_count)(enum attn_direction direction, const struct attn_problem *problem);
    uint32_t (*group_key)(enum attn_direction direction, const struct attn_problem *problem);
    size_t (*scratch_bytes)(void); /* NULL: none */
    int (*prepare)(void);          /* NULL: nothing to do */
    int (*launch)(enum attn_direction direction, const struct attn_slice *slices, size_t count,
        const struct attn_target *target);
};

extern const struct attn_family cpu_family;
extern const struct attn_family sm80_family;

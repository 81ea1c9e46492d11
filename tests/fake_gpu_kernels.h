/*
 * attn.h without kernels, for tests of who calls them: a family of the processor, one for compute
 * capability 8.0, one for 9.0. All of them take what they are given, unless told otherwise. One thread.
 */
#pragma once

#include "attn.h"

struct fake_kernels {
    int families;     /* of the three, in this order */
    int prepare_code; /* what attn_prepare answers */
    int launch_code;
    const char *unsupported;
    int prepares;
    int launches;
    size_t slices; /* of the last launch */
    void *stream;
};

extern struct fake_kernels fake_kernels;

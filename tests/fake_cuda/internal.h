/*
 * What the files of the fake driver share.
 */
#pragma once

#include <stdatomic.h>

#include "driver_abi.h"
#include "fake_cuda.h"

#define FAKE_FIRST_DEVICE 40                   /* a device's handle is no ordinal */
#define FAKE_HOST_DISTANCE (UINT64_C(1) << 48) /* from host memory to where devices see it */

struct fake_stream;

struct fake_context {
    int ordinal;
    _Atomic int retained;
    _Atomic bool broken;
    struct fake_stream *_Atomic legacy;
};

struct fake_context *fake_current(void);

/* What a call that needs a context returns if it can do nothing. */
int fake_check(void);

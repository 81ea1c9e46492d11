/*
 * Where the sequences of a problem lie, for device code. The stage that comes first clamps the lengths,
 * which others may write at any time, into the workspace; every later kernel reads only that copy.
 */
#pragma once

#include <ptx/sm80.cuh>

#include "args.h"

struct lengths_sequence {
    int64_t first;  /* its first row in a packed tensor, else 0 */
    int64_t batch;  /* for batch strides: 0 on a packed side */
    int32_t length; /* rows that count */
};

/* A block of rows of one head: which of them, and where. */
struct lengths_place {
    int32_t batch; /* -1: none, the block is spare */
    int32_t row;   /* first of the block's, in its sequence */
};

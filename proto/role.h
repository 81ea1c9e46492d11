/*
 * The table of roles: what a tensor of each is for, and what its extents and dtype go by.
 *
 * Facts only; validate.c judges by them. Constant data, any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

enum role_use {
    ROLE_ABSENT,
    ROLE_INPUT,
    ROLE_OPTIONAL_INPUT,
    ROLE_OUTPUT,
    ROLE_OPTIONAL_OUTPUT,
};

/* What an extent is the number of. */
enum role_extent {
    ROLE_BATCH,
    ROLE_SEQLEN_Q, /* of tensors of a packed side: its rows */
    ROLE_SEQLEN_K,
    ROLE_HEADS_Q,
    ROLE_HEADS_KV,
    ROLE_HEAD_DIM,
    ROLE_HEAD_DIM_V,
    ROLE_EXTENTS,
};

enum role_dtype {
    ROLE_AS_Q,
    ROLE_AS_Q_OR_FP32,
    ROLE_FP32,
    ROLE_INT32,
};

struct role {
    enum role_use use[WIRE_BACKWARD + 1]; /* by direction */
    enum role_dtype dtype;
    enum wire_role like;    /* must be there, with the same shape and dtype; 0: none */
    enum wire_role lengths; /* if these are there the tensor is packed: without batch; 0: never */
    uint32_t dims;
    enum role_extent extent[WIRE_MAX_DIMS];
    unsigned broadcast; /* bit i: extent i may be 1 instead */
    uint64_t extra;     /* extent 0, the batch, is larger by this */
    bool is_scattered;  /* the last stride may be any */
};

extern const struct role role_table[WIRE_ROLE_END];

/* ROLE_ABSENT also for what is no member of the enums. */
enum role_use role_use(enum wire_direction direction, enum wire_role role);

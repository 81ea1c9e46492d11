/*
 * Tables of plans that differ from a good one by one change, and what the validator must say.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "messages.h"
#include "wire.h"

/* Extents that are all different but batch and heads_kv. */
extern const struct messages_extents plan_change_extents;

enum plan_field {
    NOTHING,
    DIRECTION,
    ALIGNMENT,
    SCALE_INFINITE,
    SCALE_NAN,
    SCALE_NEGATIVE,
    SCALE_ZERO,
    SOFTCAP, /* `value` thousandths */
    SOFTCAP_INFINITE,
    SOFTCAP_NAN,
    SOFTCAP_MOST,
    SOFTCAP_HUGE,
    THRESHOLD,
    WINDOW_LEFT,
    WINDOW_RIGHT,
    MAX_SEQLEN_Q, /* -1: not given */
    MAX_SEQLEN_K,
    TENSORS,
    DROP,
    ROLE, /* of the tensor that has `role` */
    DTYPE,
    DIMS,
    SHAPE,
    STRIDE,
    EXTENT_EVERYWHERE, /* all extents that equal `dim` get `value` */
};

struct plan_change {
    enum wire_direction direction;
    enum plan_field field;
    enum wire_role role;
    uint32_t dim;
    int64_t value;
    const char *sentence; /* NULL: the plan is good */
};

struct wire_tensor *plan_change_tensor(struct wire_plan *plan, enum wire_role role);

/* Judges fp16 plans of the extents and features, each with one of the changes. */
void plan_change_expect(
    const struct messages_features *features, const struct plan_change *changes, size_t count);

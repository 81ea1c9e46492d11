#include "plan_change.h"

#include "validate.h"

#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <string.h>

const struct messages_extents plan_change_extents = {
    .batch = 2,
    .seqlen_q = 5,
    .seqlen_k = 7,
    .heads_q = 4,
    .heads_kv = 2,
    .head_dim_qk = 8,
    .head_dim_v = 16,
};

static void drop(struct wire_plan *plan, enum wire_role role)
{
    uint32_t at = messages_place(plan, role);
    for (uint32_t i = at; i + 1 < plan->tensors; i++) {
        plan->tensor[i] = plan->tensor[i + 1];
    }
    plan->tensors--;
}

static void apply_scores(struct wire_plan *plan, const struct plan_change *change)
{
    switch (change->field) {
    case SCALE_INFINITE:
    case SCALE_NAN:
    case SCALE_NEGATIVE:
    case SCALE_ZERO:
        plan->has_scale = true;
        plan->scale = change->field == SCALE_INFINITE   ? -INFINITY
                      : change->field == SCALE_NAN      ? NAN
                      : change->field == SCALE_NEGATIVE ? -2.5F
                                                        : 0.0F;
        break;
    case SOFTCAP:
        plan->softcap = (float)change->value / 1000;
        break;
    case SOFTCAP_INFINITE:
        plan->softcap = INFINITY;
        break;
    case SOFTCAP_MOST:
        plan->softcap = WIRE_MAX_SOFTCAP;
        break;
    case SOFTCAP_HUGE:
        plan->softcap = FLT_MAX;
        break;
    case SOFTCAP_NAN:
        plan->softcap = NAN;
        break;
    case THRESHOLD:
        plan->dropout_threshold = (uint32_t)change->value;
        break;
    default:
        cr_assert_fail("change %d is unknown", (int)change->field);
    }
}

static void apply_option(struct wire_plan *plan, const struct plan_change *change)
{
    switch (change->field) {
    case NOTHING:
        break;
    case DIRECTION:
        plan->direction = (enum wire_direction)change->value;
        break;
    case ALIGNMENT:
        plan->alignment = (enum wire_alignment)change->value;
        break;
    case WINDOW_LEFT:
        plan->has_window_left = true;
        plan->window_left = (uint64_t)change->value;
        break;
    case WINDOW_RIGHT:
        plan->has_window_right = true;
        plan->window_right = (uint64_t)change->value;
        break;
    case MAX_SEQLEN_Q:
        plan->has_max_seqlen_q = change->value != -1;
        plan->max_seqlen_q = (uint64_t)change->value;
        break;
    case MAX_SEQLEN_K:
        plan->has_max_seqlen_k = change->value != -1;
        plan->max_seqlen_k = (uint64_t)change->value;
        break;
    default:
        apply_scores(plan, change);
    }
}

static void set_everywhere(struct wire_plan *plan, uint64_t from, uint64_t to)
{
    for (uint32_t i = 0; i < plan->tensors; i++) {
        for (uint32_t dim = 0; dim < plan->tensor[i].dims; dim++) {
            if (plan->tensor[i].shape[dim] == from) {
                plan->tensor[i].shape[dim] = to;
            }
        }
    }
}

static void apply(struct wire_plan *plan, const struct plan_change *change)
{
    switch (change->field) {
    case TENSORS:
        plan->tensors = (uint32_t)change->value;
        break;
    case DROP:
        drop(plan, change->role);
        break;
    case ROLE:
        plan_change_tensor(plan, change->role)->role = (enum wire_role)change->value;
        break;
    case DTYPE:
        plan_change_tensor(plan, change->role)->dtype = (enum wire_dtype)change->value;
        break;
    case DIMS:
        plan_change_tensor(plan, change->role)->dims = (uint32_t)change->value;
        break;
    case SHAPE:
        plan_change_tensor(plan, change->role)->shape[change->dim] = (uint64_t)change->value;
        break;
    case STRIDE:
        plan_change_tensor(plan, change->role)->strides[change->dim] = change->value;
        break;
    case EXTENT_EVERYWHERE:
        set_everywhere(plan, change->dim, (uint64_t)change->value);
        break;
    default:
        apply_option(plan, change);
    }
}

struct wire_tensor *plan_change_tensor(struct wire_plan *plan, enum wire_role role)
{
    return &plan->tensor[messages_place(plan, role)];
}

void plan_change_expect(
    const struct messages_features *features, const struct plan_change *changes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct plan_change *change = &changes[i];
        struct wire_plan plan;
        struct wire_shape shape;
        struct wire_extent extents[WIRE_MAX_TENSORS];
        struct wire_error error = {WIRE_OK, ""};

        messages_featured_plan(&plan, change->direction, WIRE_FP16, &plan_change_extents, features);
        apply(&plan, change);
        bool good = validate_plan(&plan, &shape, extents, &error);
        if (change->sentence == NULL) {
            cr_expect(good, "case %zu: %s", i, error.detail);
            continue;
        }
        cr_expect_not(good, "case %zu was accepted, \"%s\" expected", i, change->sentence);
        cr_expect(good || error.status == WIRE_INVALID_ARGUMENT, "case %zu", i);
        cr_expect(good || strstr(error.detail, change->sentence) != NULL,
            "case %zu: \"%s\" does not say \"%s\"", i, error.detail, change->sentence);
    }
}

#include "validate.h"

#include "messages.h"
#include "plan_change.h"

#include <criterion/criterion.h>
#include <string.h>

/* ---- Plans: one change each ---------------------------------------------------------------------- */

#define F WIRE_FORWARD
#define B WIRE_BACKWARD

static const struct plan_change changes[] = {
    {F, NOTHING, 0, 0, 0, NULL},
    {B, NOTHING, 0, 0, 0, NULL},

    {F, DIRECTION, 0, 0, 0, "direction is 0"},
    {F, DIRECTION, 0, 0, 3, "direction is 3"},
    {F, DIRECTION, 0, 0, -1, "direction is -1"},
    {F, DIRECTION, 0, 0, B, "dout is missing"},
    {B, DIRECTION, 0, 0, F, "tensors[5] is dout"},
    {F, ALIGNMENT, 0, 0, 0, "alignment is 0"},
    {F, ALIGNMENT, 0, 0, 3, "alignment is 3"},
    {B, ALIGNMENT, 0, 0, WIRE_TOP_LEFT, NULL},
    {F, SCALE_INFINITE, 0, 0, 0, "scale"},
    {B, SCALE_NAN, 0, 0, 0, "scale"},
    {F, SCALE_NEGATIVE, 0, 0, 0, NULL},
    {F, SCALE_ZERO, 0, 0, 0, NULL},
    {F, WINDOW_LEFT, 0, 0, 0, NULL},
    {F, WINDOW_LEFT, 0, 0, INT64_C(1) << 62, NULL},
    {F, WINDOW_LEFT, 0, 0, (INT64_C(1) << 62) + 1, "window_left"},
    {F, WINDOW_LEFT, 0, 0, -1, "window_left is 18446744073709551615"},
    {F, WINDOW_RIGHT, 0, 0, INT64_MAX, "window_right"},
    {B, WINDOW_RIGHT, 0, 0, 0, NULL},

    {F, TENSORS, 0, 0, 0, "q is missing"},
    {F, TENSORS, 0, 0, 2, "v is missing"},
    {F, TENSORS, 0, 0, 25, "tensors has 25"},
    {F, TENSORS, 0, 0, 0xffffffff, "tensors has 4294967295"},
    {F, DROP, WIRE_Q, 0, 0, "q is missing"},
    {F, DROP, WIRE_K, 0, 0, "k is missing"},
    {F, DROP, WIRE_V, 0, 0, "v is missing"},
    {F, DROP, WIRE_OUT, 0, 0, "out is missing"},
    {F, DROP, WIRE_LSE, 0, 0, NULL},
    {B, DROP, WIRE_OUT, 0, 0, "out is missing"},
    {B, DROP, WIRE_LSE, 0, 0, "lse is missing"},
    {B, DROP, WIRE_DOUT, 0, 0, "dout is missing"},
    {B, DROP, WIRE_DLSE, 0, 0, NULL},
    {B, DROP, WIRE_DQ, 0, 0, "dq is missing"},
    {B, DROP, WIRE_DK, 0, 0, "dk is missing"},
    {B, DROP, WIRE_DV, 0, 0, "dv is missing"},
    {F, ROLE, WIRE_LSE, 0, WIRE_DLSE, "tensors[4] is dlse"},
    {F, ROLE, WIRE_LSE, 0, WIRE_DQ, "tensors[4] is dq"},
    {F, ROLE, WIRE_LSE, 0, 0, "tensors[4] is ?"},
    {F, ROLE, WIRE_LSE, 0, WIRE_ROLE_END, "tensors[4] is ?"},
    {F, ROLE, WIRE_LSE, 0, -1, "tensors[4] is ?"},
    {F, ROLE, WIRE_LSE, 0, WIRE_OUT, "tensors[4] is out after out"},
    {F, ROLE, WIRE_K, 0, WIRE_V, "tensors[2] is v after v"},
    {B, ROLE, WIRE_DV, 0, WIRE_Q, "tensors[9] is q after dk"},

    {F, DTYPE, WIRE_Q, 0, 0, "q.dtype"},
    {F, DTYPE, WIRE_Q, 0, WIRE_INT32, "q.dtype is 4, none of fp16, bf16 and fp32"},
    {F, DTYPE, WIRE_Q, 0, 5, "q.dtype"},
    {F, DTYPE, WIRE_LSE, 0, WIRE_INT32, "lse.dtype is int32, but must be fp32"},
    {F, DTYPE, WIRE_Q, 0, WIRE_BF16, "k.dtype is fp16, but q.dtype is bf16"},
    {F, DTYPE, WIRE_V, 0, WIRE_FP32, "v.dtype"},
    {F, DTYPE, WIRE_OUT, 0, WIRE_BF16, "out.dtype"},
    {F, DTYPE, WIRE_LSE, 0, WIRE_FP16, "lse.dtype is fp16, but must be fp32"},
    {B, DTYPE, WIRE_DLSE, 0, WIRE_BF16, "dlse.dtype"},
    {B, DTYPE, WIRE_DOUT, 0, WIRE_FP32, "dout.dtype"},
    {B, DTYPE, WIRE_DK, 0, WIRE_BF16, "dk.dtype"},

    {F, DIMS, WIRE_Q, 0, 3, "q has 3 dimensions"},
    {F, DIMS, WIRE_V, 0, 0, "v has 0 dimensions"},
    {F, DIMS, WIRE_K, 0, 5, "k has 5 dimensions"},
    {F, DIMS, WIRE_K, 0, 0xffffffff, "k has 4294967295 dimensions"},
    {F, DIMS, WIRE_LSE, 0, 4, "lse has 4 dimensions"},
    {B, DIMS, WIRE_DLSE, 0, 2, "dlse has 2 dimensions"},

    {F, SHAPE, WIRE_Q, 0, 3, "k.shape[0] (batch) is 2, but q.shape[0] is 3"},
    {F, SHAPE, WIRE_V, 0, 3, "v.shape[0]"},
    {F, SHAPE, WIRE_V, 1, 8, "v.shape[1] (seqlen_k) is 8, but k.shape[1] is 7"},
    {F, SHAPE, WIRE_V, 2, 1, "v.shape[2] (heads_kv)"},
    {F, SHAPE, WIRE_K, 3, 9, "k.shape[3] (head_dim) is 9, but q.shape[3] is 8"},
    {F, SHAPE, WIRE_OUT, 0, 1, "out.shape[0]"},
    {F, SHAPE, WIRE_OUT, 1, 7, "out.shape[1] (seqlen_q)"},
    {F, SHAPE, WIRE_OUT, 2, 2, "out.shape[2] (heads_q)"},
    {F, SHAPE, WIRE_OUT, 3, 8, "out.shape[3] (head_dim_v)"},
    {F, SHAPE, WIRE_LSE, 1, 5, "lse.shape[1] (heads_q)"},
    {F, SHAPE, WIRE_LSE, 2, 4, "lse.shape[2] (seqlen_q)"},
    {B, SHAPE, WIRE_DLSE, 0, 0, "dlse.shape[0]"},
    {B, SHAPE, WIRE_DQ, 3, 16, "dq.shape[3]"},
    {B, SHAPE, WIRE_DK, 1, 5, "dk.shape[1]"},
    {B, SHAPE, WIRE_DV, 3, 8, "dv.shape[3]"},
    {B, SHAPE, WIRE_DOUT, 2, 0, "dout.shape[2]"},

    {F, EXTENT_EVERYWHERE, 0, 4, 3, "k.shape[2] is 2, which does not divide q's 3 heads"},
    {F, EXTENT_EVERYWHERE, 0, 4, 1, "k.shape[2] is 2"},
    {F, EXTENT_EVERYWHERE, 0, 4, 0, NULL},
    {F, EXTENT_EVERYWHERE, 0, 2, 0, "k.shape[2] is 0, which does not divide"},
    {B, EXTENT_EVERYWHERE, 0, 5, 0, NULL},
    {B, EXTENT_EVERYWHERE, 0, 7, 0, NULL},
    {F, EXTENT_EVERYWHERE, 0, 8, 0, "q.shape[3] (head_dim) is 0"},
    {F, EXTENT_EVERYWHERE, 0, 16, 0, "v.shape[3] (head_dim_v) is 0"},
    {F, EXTENT_EVERYWHERE, 0, 8, 257, "q.shape[3] (head_dim) is 257"},
    {F, EXTENT_EVERYWHERE, 0, 16, 257, "v.shape[3] (head_dim_v) is 257"},
    {F, EXTENT_EVERYWHERE, 0, 4, 65538, "q.shape[2] (heads_q) is 65538"},
    {F, EXTENT_EVERYWHERE, 0, 5, (INT64_C(1) << 31) + 1, "q.shape[1] (seqlen_q)"},
    {F, EXTENT_EVERYWHERE, 0, 7, -1, "k.shape[1] (seqlen_k) is 18446744073709551615"},
    {F, EXTENT_EVERYWHERE, 0, 5, 100, "out.strides[0] is 320, less than the span"},
    {F, SHAPE, WIRE_Q, 0, (INT64_C(1) << 24) + 1, "q.shape[0] (batch) is 16777217"},
    {F, SHAPE, WIRE_K, 2, 65537, "k.shape[2] (heads_kv) is 65537"},

    {F, STRIDE, WIRE_Q, 3, 2, "q.strides[3] is 2, but must be 1"},
    {F, STRIDE, WIRE_K, 3, 0, "k.strides[3] is 0, but must be 1"},
    {F, STRIDE, WIRE_V, 3, -1, "v.strides[3]"},
    {B, STRIDE, WIRE_DV, 3, 4, "dv.strides[3]"},
    {F, STRIDE, WIRE_Q, 0, 0, NULL},
    {F, STRIDE, WIRE_Q, 0, -160, NULL},
    {F, STRIDE, WIRE_K, 1, 1, NULL},
    {F, STRIDE, WIRE_Q, 0, INT64_MAX, "q.strides[0]"},
    {F, STRIDE, WIRE_Q, 1, INT64_MIN, "q.strides[1]"},
    {F, STRIDE, WIRE_V, 2, INT64_C(1) << 61, "v.strides[2]"},
    {F, STRIDE, WIRE_V, 2, -(INT64_C(1) << 61), NULL},
    {F, STRIDE, WIRE_V, 2, -(INT64_C(1) << 61) - 1, "v.strides[2]"},
    {F, STRIDE, WIRE_OUT, 0, 0, "out.strides[0] is 0, but an output's"},
    {F, STRIDE, WIRE_OUT, 1, -64, "out.strides[1] is -64, but an output's"},
    {F, STRIDE, WIRE_OUT, 1, 63, "out.strides[1] is 63, less than the span"},
    {F, STRIDE, WIRE_OUT, 0, 319, "out.strides[0] is 319, less than the span"},
    {F, STRIDE, WIRE_OUT, 2, 15, "out.strides[2] is 15, less than the span"},
    {F, STRIDE, WIRE_OUT, 2, 1, "out.strides[3] is 1, less than the span"},
    {F, STRIDE, WIRE_OUT, 2, 100, "out.strides[2] is 100, less than the span"},
    {F, STRIDE, WIRE_OUT, 2, 100000, NULL},
    {F, STRIDE, WIRE_OUT, 0, INT64_C(1) << 61, "out.strides[0]"},
    {F, STRIDE, WIRE_LSE, 2, 0, "lse.strides[2] is 0"},
    {F, STRIDE, WIRE_LSE, 2, 2, "lse.strides[1] is 5, less than the span"},
    {F, STRIDE, WIRE_LSE, 1, -5, "lse.strides[1]"},
    {B, STRIDE, WIRE_LSE, 2, 0, NULL},
    {B, STRIDE, WIRE_LSE, 1, -7, NULL},
    {B, STRIDE, WIRE_OUT, 0, 0, NULL},
    {B, STRIDE, WIRE_DQ, 0, 0, "dq.strides[0]"},
    {B, STRIDE, WIRE_DK, 1, 8, "dk.strides[2] is 8, less than the span"},
    {B, STRIDE, WIRE_DV, 2, -16, "dv.strides[2]"},
    {B, STRIDE, WIRE_DOUT, 1, -3, NULL},
};

Test(validate, a_plan_with_one_change_is_judged_by_it)
{
    const struct messages_features none = {0};

    plan_change_expect(&none, changes, sizeof(changes) / sizeof(changes[0]));
}

Test(validate, a_good_plan_tells_its_shape_and_extents)
{
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_error error;

    messages_fixed_plan(&plan, B, WIRE_BF16, &plan_change_extents);
    plan_change_tensor(&plan, WIRE_Q)->strides[1] = -32; /* rows backwards */
    plan_change_tensor(&plan, WIRE_LSE)->strides[1] = 0;
    cr_assert(validate_plan(&plan, &shape, extents, &error), "%s", error.detail);
    cr_expect_eq(shape.batch, 2);
    cr_expect_eq(shape.seqlen_q, 5);
    cr_expect_eq(shape.seqlen_k, 7);
    cr_expect_eq(shape.heads_q, 4);
    cr_expect_eq(shape.heads_kv, 2);
    cr_expect_eq(shape.head_dim_qk, 8);
    cr_expect_eq(shape.head_dim_v, 16);
    cr_expect_eq(shape.dtype, WIRE_BF16);
    cr_expect_float_eq(shape.scale, 0.35355339F, 1e-7);

    const struct wire_extent *q = &extents[messages_place(&plan, WIRE_Q)];
    cr_expect_eq(q->low, -2 * 4 * 32);
    cr_expect_eq(q->high, 2 * (160 + 3 * 8 + 7 + 1));
    const struct wire_extent *lse = &extents[messages_place(&plan, WIRE_LSE)];
    cr_expect_eq(lse->low, 0);
    cr_expect_eq(lse->high, 4 * (20 + 4 + 1));
    const struct wire_extent *dv = &extents[messages_place(&plan, WIRE_DV)];
    cr_expect_eq(dv->low, 0);
    cr_expect_eq(dv->high, 2 * 2 * 7 * 2 * 16);

    plan.has_scale = true;
    plan.scale = -3;
    cr_assert(validate_plan(&plan, &shape, extents, &error));
    cr_expect_eq(shape.scale, -3);
}

Test(validate, strides_of_extents_0_and_1_mean_nothing)
{
    static const int64_t strides[] = {0, -1, INT64_MIN, INT64_MAX, 3};
    struct messages_extents extents = {1, 1, 1, 1, 1, 1, 1};

    for (size_t empty = 0; empty < 2; empty++) {
        for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
            struct wire_plan plan;
            struct wire_shape shape;
            struct wire_extent found[WIRE_MAX_TENSORS];
            struct wire_error error;

            extents.batch = !empty;
            extents.seqlen_k = empty ? 9 : 1;
            messages_fixed_plan(&plan, B, WIRE_FP32, &extents);
            for (uint32_t t = 0; t < plan.tensors; t++) {
                for (uint32_t dim = 0; dim < plan.tensor[t].dims; dim++) {
                    plan.tensor[t].strides[dim] = strides[i];
                }
            }
            cr_assert(validate_plan(&plan, &shape, found, &error), "%s", error.detail);
            for (uint32_t t = 0; t < plan.tensors; t++) {
                cr_expect_eq(found[t].low, 0);
                cr_expect_eq(found[t].high, empty ? 0 : 4);
            }
        }
    }
}

Test(validate, the_largest_plans_do_not_overflow)
{
    struct messages_extents extents = {
        WIRE_MAX_BATCH, WIRE_MAX_SEQLEN, WIRE_MAX_SEQLEN, WIRE_MAX_HEADS, WIRE_MAX_HEADS, 256, 256};
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent found[WIRE_MAX_TENSORS];
    struct wire_error error;

    messages_fixed_plan(&plan, F, WIRE_FP16, &extents);
    cr_expect_not(validate_plan(&plan, &shape, found, &error));
    cr_expect(strstr(error.detail, "more than 2^62 bytes") != NULL, "%s", error.detail);

    /* Even where all elements share their memory: 2^79 of them are too many to loop over. */
    memset(plan_change_tensor(&plan, WIRE_Q)->strides, 0, 3 * sizeof(int64_t));
    cr_expect_not(validate_plan(&plan, &shape, found, &error));
    cr_expect(strstr(error.detail, "q has more than 2^62 bytes") != NULL, "%s", error.detail);

    extents = (struct messages_extents){1, WIRE_MAX_SEQLEN, WIRE_MAX_SEQLEN, 1, 1, 256, 256};
    messages_fixed_plan(&plan, F, WIRE_FP32, &extents);
    cr_assert(validate_plan(&plan, &shape, found, &error), "%s", error.detail);
    cr_expect_eq(found[0].high, INT64_C(1) << 41);
    cr_expect_eq(shape.seqlen_q, WIRE_MAX_SEQLEN);
}

Test(validate, equal_bytes_give_the_role_lookup)
{
    struct wire_plan plan;

    messages_fixed_plan(&plan, F, WIRE_FP16, &plan_change_extents);
    cr_expect_eq(wire_plan_tensor(&plan, WIRE_OUT), &plan.tensor[3]);
    cr_expect_null(wire_plan_tensor(&plan, WIRE_DQ));
    for (enum wire_role role = 0; role <= WIRE_ROLE_END; role++) {
        cr_expect_eq(wire_role_is_output(F, role), role == WIRE_OUT || role == WIRE_LSE);
        bool gradient = (role >= WIRE_DQ && role <= WIRE_DV) || role == WIRE_DBIAS ||
                        role == WIRE_DSLOPES || role == WIRE_DSINKS;
        cr_expect_eq(wire_role_is_output(B, role), gradient);
        cr_expect_not(wire_role_is_output((enum wire_direction)0, role));
        cr_expect_not(wire_role_is_output((enum wire_direction)3, role));
    }
}

/* ---- Calls: one change each ---------------------------------------------------------------------- */

struct move {
    enum wire_direction direction;
    enum wire_role role;
    enum wire_role onto;  /* 0: `by` from where it is */
    int64_t by;           /* bytes */
    int64_t region_bytes; /* more than all tensors need */
    const char *sentence;
};

static const struct move moves[] = {
    {F, WIRE_Q, 0, 0, 0, NULL},
    {B, WIRE_Q, 0, 0, 0, NULL},
    {F, WIRE_K, 0, 1, 0, "k.offset is 641, no multiple of the 2 bytes of an fp16 element"},
    {F, WIRE_LSE, 0, 2, 16, "lse.offset is 3266, no multiple of the 4 bytes of an fp32 element"},
    {F, WIRE_LSE, 0, 4, 3, "lse.offset"},
    {F, WIRE_LSE, 0, 4, 4, NULL},
    {F, WIRE_LSE, 0, 0, -1, "lse.offset is 3264, but the tensor ends 160 bytes after it"},
    {F, WIRE_LSE, 0, 1 << 20, 0, "lse.offset"},
    {F, WIRE_LSE, 0, INT64_MAX - 3007, 0, "lse.offset"},
    {F, WIRE_Q, 0, INT64_MIN, 0, "q.offset is 9223372036854775808"},
    {F, WIRE_OUT, 0, -16, 0, "out overlaps v"},
    {F, WIRE_OUT, WIRE_Q, 0, 0, "out overlaps q"},
    {F, WIRE_OUT, WIRE_LSE, 0, 4096, "out overlaps lse"},
    {F, WIRE_LSE, WIRE_K, 0, 0, "lse overlaps k"},
    {F, WIRE_LSE, WIRE_OUT, 1276, 0, "out overlaps lse"},
    {F, WIRE_K, WIRE_Q, 0, 0, NULL}, /* inputs may share */
    {F, WIRE_V, WIRE_K, 2, 0, NULL},
    {B, WIRE_DQ, WIRE_Q, 0, 0, "dq overlaps q"},
    {B, WIRE_DQ, WIRE_DV, 894, 4096, "dq overlaps dv"},
    {B, WIRE_DK, WIRE_DQ, 638, 0, "dq overlaps dk"},
    {B, WIRE_DK, WIRE_DQ, 640, 0, NULL},
    {B, WIRE_DV, WIRE_DLSE, 0, 0, "dq overlaps dv"},
    {B, WIRE_DV, WIRE_OUT, 0, 0, "dv overlaps out"},
    {B, WIRE_DLSE, WIRE_LSE, 0, 0, NULL},
    {B, WIRE_DOUT, WIRE_OUT, 0, 0, NULL},
};

Test(validate, a_call_with_one_tensor_moved_is_judged_by_it)
{
    for (size_t i = 0; i < sizeof(moves) / sizeof(moves[0]); i++) {
        const struct move *move = &moves[i];
        struct wire_plan plan;
        struct wire_shape shape;
        struct wire_extent extents[WIRE_MAX_TENSORS];
        struct wire_call call;
        struct wire_error error = {WIRE_OK, ""};
        uint64_t region_bytes[WIRE_MAX_TENSORS];

        messages_fixed_plan(&plan, move->direction, WIRE_FP16, &plan_change_extents);
        cr_assert(validate_plan(&plan, &shape, extents, &error));
        uint64_t bytes = messages_call(&plan, extents, &call) + (uint64_t)move->region_bytes;
        for (uint32_t t = 0; t < plan.tensors; t++) {
            region_bytes[t] = bytes;
        }
        uint32_t at = messages_place(&plan, move->role);
        if (move->onto != 0) {
            call.offset[at] = call.offset[messages_place(&plan, move->onto)];
        }
        call.offset[at] += (uint64_t)move->by;
        bool good = validate_call(&plan, extents, &call, region_bytes, &error);
        if (move->sentence == NULL) {
            cr_expect(good, "case %zu: %s", i, error.detail);
        } else {
            cr_expect_not(good, "case %zu was accepted", i);
            cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
            cr_expect(strstr(error.detail, move->sentence) != NULL,
                "case %zu: \"%s\" does not say \"%s\"", i, error.detail, move->sentence);
        }
    }
}

Test(validate, a_tensor_that_reaches_back_must_not_reach_out)
{
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_call call;
    struct wire_error error;
    uint64_t region_bytes[WIRE_MAX_TENSORS];

    messages_fixed_plan(&plan, F, WIRE_FP16, &plan_change_extents);
    plan.tensor[0].strides[1] = -32;
    cr_assert(validate_plan(&plan, &shape, extents, &error));
    uint64_t bytes = messages_call(&plan, extents, &call);
    for (uint32_t t = 0; t < plan.tensors; t++) {
        region_bytes[t] = bytes;
    }
    cr_expect(validate_call(&plan, extents, &call, region_bytes, &error), "%s", error.detail);
    call.offset[0] -= 2;
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    cr_expect(strstr(error.detail, "q.offset is 254, but the tensor begins 256") != NULL, "%s",
        error.detail);
    call.offset[0] = 0;
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
}

Test(validate, tensors_of_different_regions_do_not_overlap)
{
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_call call = {.tensors = 10};
    struct wire_error error;
    uint64_t region_bytes[WIRE_MAX_TENSORS];

    messages_fixed_plan(&plan, B, WIRE_FP32, &plan_change_extents);
    cr_assert(validate_plan(&plan, &shape, extents, &error));
    for (uint32_t t = 0; t < plan.tensors; t++) {
        call.region[t] = t + 1;
        region_bytes[t] = (uint64_t)extents[t].high;
    }
    cr_expect(validate_call(&plan, extents, &call, region_bytes, &error), "%s", error.detail);
    call.region[7] = 9; /* dq beside dk */
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    call.tensors = 9;
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    cr_expect(strstr(error.detail, "9 tensors, but its plan has 10") != NULL, "%s", error.detail);
}

Test(validate, empty_tensors_need_no_room)
{
    struct messages_extents none = plan_change_extents;
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_call call = {.tensors = 10};
    struct wire_error error;
    uint64_t region_bytes[WIRE_MAX_TENSORS] = {0};

    none.batch = 0;
    messages_fixed_plan(&plan, B, WIRE_FP32, &none);
    cr_assert(validate_plan(&plan, &shape, extents, &error), "%s", error.detail);
    for (uint32_t t = 0; t < plan.tensors; t++) {
        call.offset[t] = 12 * t;
        region_bytes[t] = 12 * t;
    }
    cr_expect(validate_call(&plan, extents, &call, region_bytes, &error), "%s", error.detail);
    call.offset[8] += 4;
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    cr_expect(strstr(error.detail, "dk.offset is 100, outside of the region of 96") != NULL, "%s",
        error.detail);
    call.offset[8] = 94;
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    cr_expect(strstr(error.detail, "dk.offset is 94, no multiple of the 4 bytes") != NULL, "%s",
        error.detail);
}

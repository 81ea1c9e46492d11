/* The validator's rules for bias, slopes, sinks, lengths, softcap and dropout. */
#include "messages.h"
#include "plan_change.h"
#include "validate.h"

#include <criterion/criterion.h>
#include <string.h>

#define F WIRE_FORWARD
#define B WIRE_BACKWARD
#define CUQ WIRE_CU_SEQLENS_Q
#define CUK WIRE_CU_SEQLENS_K
#define LENS WIRE_SEQLENS_K
#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* Plans of plan_change_extents with everything; packed sides have 11 and 13 rows. */
static const struct messages_features dense = {
    .seqlens_k = true, .bias = WIRE_FP16, .slopes = true, .sinks = true, .gradients = true};
static const struct messages_features packed = {.packed_q = true,
    .packed_k = true,
    .total_q = 11,
    .total_k = 13,
    .seqlens_k = true,
    .bias = WIRE_FP32,
    .slopes = true,
    .sinks = true,
    .gradients = true};
static const struct messages_features packed_q = {
    .packed_q = true, .total_q = 11, .bias = WIRE_FP32, .slopes = true, .gradients = true};
static const struct messages_features packed_k = {
    .packed_k = true, .total_k = 13, .bias = WIRE_FP32, .slopes = true, .gradients = true};

static const struct plan_change dense_changes[] = {
    {F, NOTHING, 0, 0, 0, NULL},
    {B, NOTHING, 0, 0, 0, NULL},
    {B, TENSORS, 0, 0, 16, NULL}, /* without seqlens_k */

    {F, SOFTCAP, 0, 0, 30000, NULL},
    {B, SOFTCAP, 0, 0, 0, NULL},
    {F, SOFTCAP, 0, 0, -1, "softcap is -0.001"},
    {F, SOFTCAP_INFINITE, 0, 0, 0, "softcap is inf"},
    {B, SOFTCAP_NAN, 0, 0, 0, "softcap"},
    {F, SOFTCAP_MOST, 0, 0, 0, NULL},
    {B, SOFTCAP_HUGE, 0, 0, 0,
        "softcap is 3.40282e+38, but must not be below 0 (none) nor above 1e+30"},
    {F, THRESHOLD, 0, 0, 65535, NULL},
    {F, THRESHOLD, 0, 0, 65536, "dropout_threshold is 65536, but must be below 65536"},
    {B, THRESHOLD, 0, 0, 0xffffffff, "dropout_threshold is 4294967295"},
    {F, MAX_SEQLEN_Q, 0, 0, 5, "max_seqlen_q is given, but cu_seqlens_q is not"},
    {B, MAX_SEQLEN_K, 0, 0, 0, "max_seqlen_k is given, but cu_seqlens_k is not"},

    {F, ROLE, WIRE_BIAS, 0, WIRE_DBIAS, "tensors[5] is dbias (role 12), which no forward call"},
    {F, ROLE, WIRE_SLOPES, 0, WIRE_DSLOPES, "tensors[6] is dslopes (role 14), which no forward"},
    {F, ROLE, WIRE_SINKS, 0, WIRE_DSINKS, "tensors[7] is dsinks (role 16), which no forward"},
    {B, ROLE, LENS, 0, WIRE_DSINKS, "dsinks after dsinks"},
    {B, DROP, WIRE_BIAS, 0, 0, "dbias is given, but bias is not"},
    {B, DROP, WIRE_SLOPES, 0, 0, "dslopes is given, but slopes is not"},
    {B, DROP, WIRE_SINKS, 0, 0, "dsinks is given, but sinks is not"},
    {B, DROP, WIRE_DBIAS, 0, 0, NULL},
    {B, DROP, WIRE_DSLOPES, 0, 0, NULL},
    {B, DROP, WIRE_DSINKS, 0, 0, NULL},
    {F, DROP, WIRE_BIAS, 0, 0, NULL},

    {F, DTYPE, WIRE_BIAS, 0, WIRE_FP32, NULL},
    {F, DTYPE, WIRE_BIAS, 0, WIRE_BF16, "bias.dtype is bf16, but q.dtype is fp16: it must be"},
    {F, DTYPE, WIRE_BIAS, 0, WIRE_INT32, "bias.dtype is 4"},
    {B, DTYPE, WIRE_BIAS, 0, WIRE_FP32, "dbias.dtype is fp16, but bias.dtype is fp32"},
    {B, DTYPE, WIRE_DBIAS, 0, WIRE_FP32, "dbias.dtype is fp32, but bias.dtype is fp16"},
    {B, DTYPE, WIRE_DBIAS, 0, 0, "dbias.dtype is ?"},
    {F, DTYPE, WIRE_SLOPES, 0, WIRE_FP16, "slopes.dtype is fp16, but must be fp32"},
    {B, DTYPE, WIRE_DSLOPES, 0, WIRE_INT32, "dslopes.dtype is int32"},
    {F, DTYPE, WIRE_SINKS, 0, WIRE_BF16, "sinks.dtype"},
    {B, DTYPE, WIRE_DSINKS, 0, WIRE_FP16, "dsinks.dtype"},
    {F, DTYPE, LENS, 0, WIRE_FP32, "seqlens_k.dtype is fp32, but must be int32"},
    {B, DTYPE, LENS, 0, 9, "seqlens_k.dtype is ?, but must be int32"},

    {F, DIMS, WIRE_BIAS, 0, 3, "bias has 3 dimensions, but must have 4"},
    {B, DIMS, WIRE_DBIAS, 0, 5, "dbias has 5 dimensions"},
    {F, DIMS, WIRE_SLOPES, 0, 1, "slopes has 1 dimensions, but must have 2"},
    {B, DIMS, WIRE_DSLOPES, 0, 0, "dslopes has 0 dimensions"},
    {F, DIMS, WIRE_SINKS, 0, 2, "sinks has 2 dimensions, but must have 1"},
    {B, DIMS, WIRE_DSINKS, 0, 0xffffffff, "dsinks has 4294967295 dimensions"},
    {F, DIMS, LENS, 0, 0, "seqlens_k has 0 dimensions"},

    {F, SHAPE, WIRE_BIAS, 0, 1, NULL},
    {F, SHAPE, WIRE_BIAS, 1, 1, NULL},
    {F, SHAPE, WIRE_BIAS, 2, 1, NULL},
    {F, SHAPE, WIRE_BIAS, 3, 1, NULL},
    {F, SHAPE, WIRE_BIAS, 0, 3, "bias.shape[0] (batch) is 3, neither 1 nor 2"},
    {F, SHAPE, WIRE_BIAS, 1, 2, "bias.shape[1] (heads_q) is 2, neither 1 nor 4"},
    {F, SHAPE, WIRE_BIAS, 2, 0, "bias.shape[2] (seqlen_q) is 0, neither 1 nor 5"},
    {F, SHAPE, WIRE_BIAS, 3, -1, "bias.shape[3] (seqlen_k) is 18446744073709551615, neither"},
    {B, SHAPE, WIRE_BIAS, 2, 1, "dbias.shape[2] is 5, but bias.shape[2] is 1"},
    {B, SHAPE, WIRE_DBIAS, 0, 1, "dbias.shape[0] is 1, but bias.shape[0] is 2"},
    {B, SHAPE, WIRE_DBIAS, 3, 8, "dbias.shape[3] is 8, but bias.shape[3] is 7"},
    {F, SHAPE, WIRE_SLOPES, 0, 1, NULL},
    {F, SHAPE, WIRE_SLOPES, 0, 4, "slopes.shape[0] (batch) is 4, neither 1 nor 2"},
    {F, SHAPE, WIRE_SLOPES, 1, 1, "slopes.shape[1] (heads_q) is 1, but q.shape[2] is 4"},
    {B, SHAPE, WIRE_DSLOPES, 0, 1, "dslopes.shape[0] is 1, but slopes.shape[0] is 2"},
    {F, SHAPE, WIRE_SINKS, 0, 2, "sinks.shape[0] (heads_q) is 2, but q.shape[2] is 4"},
    {B, SHAPE, WIRE_DSINKS, 0, 1, "dsinks.shape[0] is 1, but sinks.shape[0] is 4"},
    {F, SHAPE, LENS, 0, 3, "seqlens_k.shape[0] (batch) is 3, but q.shape[0] is 2"},
    {F, SHAPE, LENS, 0, 1, "seqlens_k.shape[0] (batch) is 1"},

    {F, STRIDE, WIRE_BIAS, 0, 0, NULL},
    {F, STRIDE, WIRE_BIAS, 1, -35, NULL},
    {F, STRIDE, WIRE_BIAS, 2, 1, NULL},
    {F, STRIDE, WIRE_BIAS, 3, 0, "bias.strides[3] is 0, but must be 1"},
    {F, STRIDE, WIRE_BIAS, 3, 2, "bias.strides[3] is 2, but must be 1"},
    {F, STRIDE, WIRE_BIAS, 1, INT64_MAX, "bias.strides[1]"},
    {B, STRIDE, WIRE_DBIAS, 0, 0, "dbias.strides[0] is 0, but an output's"},
    {B, STRIDE, WIRE_DBIAS, 1, 34, "dbias.strides[1] is 34, less than the span"},
    {B, STRIDE, WIRE_DBIAS, 2, -7, "dbias.strides[2] is -7"},
    {B, STRIDE, WIRE_DBIAS, 3, 2, "dbias.strides[3] is 2, but must be 1"},
    {F, STRIDE, WIRE_SLOPES, 0, 0, NULL},
    {F, STRIDE, WIRE_SLOPES, 1, -9, NULL},
    {B, STRIDE, WIRE_DSLOPES, 0, 3, "dslopes.strides[0] is 3, less than the span"},
    {B, STRIDE, WIRE_DSLOPES, 1, 0, "dslopes.strides[1] is 0"},
    {F, STRIDE, WIRE_SINKS, 0, 0, "sinks.strides[0] is 0, but must be 1"},
    {B, STRIDE, WIRE_DSINKS, 0, 2, "dsinks.strides[0] is 2, but must be 1"},
    {F, STRIDE, LENS, 0, -1, "seqlens_k.strides[0] is -1, but must be 1"},
};

static const struct plan_change packed_changes[] = {
    {F, NOTHING, 0, 0, 0, NULL},
    {B, NOTHING, 0, 0, 0, NULL},
    {F, MAX_SEQLEN_Q, 0, 0, -1, "bias.shape[2] (seqlen_q) is 5, neither 1 nor 11"},
    {B, MAX_SEQLEN_K, 0, 0, -1, "bias.shape[3] (seqlen_k) is 7, neither 1 nor 13"},
    {F, MAX_SEQLEN_Q, 0, 0, INT64_C(1) << 31, "bias.shape[2]"},
    {F, MAX_SEQLEN_Q, 0, 0, (INT64_C(1) << 31) + 1, "max_seqlen_q is 2147483649, more than"},
    {B, MAX_SEQLEN_K, 0, 0, -2, "max_seqlen_k is 18446744073709551614, more than 2147483648"},

    {F, DROP, CUQ, 0, 0, "max_seqlen_q is given, but cu_seqlens_q is not"},
    {F, DROP, CUK, 0, 0, "max_seqlen_k is given, but cu_seqlens_k is not"},
    {F, DROP, LENS, 0, 0, NULL},
    {F, DIMS, WIRE_Q, 0, 4, "q has 4 dimensions, but must have 3 with cu_seqlens_q"},
    {F, DIMS, WIRE_K, 0, 4, "k has 4 dimensions, but must have 3 with cu_seqlens_k"},
    {F, DIMS, WIRE_V, 0, 2, "v has 2 dimensions, but must have 3"},
    {F, DIMS, WIRE_OUT, 0, 4, "out has 4 dimensions, but must have 3"},
    {F, DIMS, WIRE_LSE, 0, 3, "lse has 3 dimensions, but must have 2 with cu_seqlens_q"},
    {B, DIMS, WIRE_DLSE, 0, 3, "dlse has 3 dimensions"},
    {B, DIMS, WIRE_DK, 0, 4, "dk has 4 dimensions"},
    {F, DIMS, WIRE_BIAS, 0, 3, "bias has 3 dimensions, but must have 4"},
    {F, DIMS, CUQ, 0, 2, "cu_seqlens_q has 2 dimensions, but must have 1"},

    {F, SHAPE, WIRE_OUT, 0, 12, "out.shape[0] (total_q) is 12, but q.shape[0] is 11"},
    {F, SHAPE, WIRE_V, 0, 11, "v.shape[0] (total_k) is 11, but k.shape[0] is 13"},
    {F, SHAPE, WIRE_LSE, 1, 5, "lse.shape[1] (total_q) is 5"},
    {F, SHAPE, WIRE_LSE, 0, 2, "lse.shape[0] (heads_q) is 2, but q.shape[1] is 4"},
    {F, SHAPE, WIRE_Q, 0, (INT64_C(1) << 31) + 1, "q.shape[0] (total_q) is 2147483649"},
    {F, SHAPE, WIRE_K, 1, 3, "v.shape[1] (heads_kv) is 2, but k.shape[1] is 3"},
    {F, EXTENT_EVERYWHERE, 0, 4, 3, "k.shape[1] is 2, which does not divide q's 3 heads"},
    {F, EXTENT_EVERYWHERE, 0, 11, 0, NULL},
    {B, EXTENT_EVERYWHERE, 0, 13, 0, NULL},
    {F, SHAPE, CUQ, 0, 0, "cu_seqlens_q.shape[0] (batch + 1) is 0, not between 1 and 16777217"},
    {F, SHAPE, CUQ, 0, 4,
        "cu_seqlens_k.shape[0] (batch + 1) is 3, but cu_seqlens_q.shape[0] (batch + 1) is 4"},
    {F, SHAPE, CUQ, 0, (1 << 24) + 2, "cu_seqlens_q.shape[0] (batch + 1) is 16777218, not"},
    {F, SHAPE, CUK, 0, 2,
        "cu_seqlens_k.shape[0] (batch + 1) is 2, but cu_seqlens_q.shape[0] (batch + 1) is 3"},
    {F, SHAPE, LENS, 0, 3,
        "seqlens_k.shape[0] (batch) is 3, but cu_seqlens_q.shape[0] (batch + 1) is 3"},
    {F, SHAPE, WIRE_BIAS, 0, 3, "bias.shape[0] (batch) is 3, neither 1 nor 2"},
    {F, SHAPE, WIRE_BIAS, 2, 11, "bias.shape[2] (seqlen_q) is 11, neither 1 nor 5"},
    {F, SHAPE, WIRE_SLOPES, 0, 3, "slopes.shape[0] (batch) is 3, neither 1 nor 2"},

    {F, DTYPE, CUQ, 0, WIRE_FP32, "cu_seqlens_q.dtype is fp32, but must be int32"},
    {F, DTYPE, CUK, 0, WIRE_FP16, "cu_seqlens_k.dtype is fp16, but must be int32"},
    {F, STRIDE, CUQ, 0, 2, "cu_seqlens_q.strides[0] is 2, but must be 1"},
    {F, STRIDE, CUK, 0, 0, "cu_seqlens_k.strides[0] is 0, but must be 1"},
    {F, STRIDE, WIRE_Q, 2, 2, "q.strides[2] is 2, but must be 1"},
    {F, STRIDE, WIRE_Q, 0, 0, NULL},
    {F, STRIDE, WIRE_OUT, 0, 63, "out.strides[0] is 63, less than the span"},
    {F, STRIDE, WIRE_LSE, 1, 0, "lse.strides[1] is 0, but an output's"},
    {F, STRIDE, WIRE_LSE, 1, 2, "lse.strides[0] is 11, less than the span"},
    {B, STRIDE, WIRE_DV, 1, -16, "dv.strides[1] is -16"},
};

static const struct plan_change packed_q_changes[] = {
    {F, NOTHING, 0, 0, 0, NULL},
    {B, NOTHING, 0, 0, 0, NULL},
    {F, SHAPE, CUQ, 0, 2, "cu_seqlens_q.shape[0] (batch + 1) is 2, but k.shape[0] is 2"},
    {F, SHAPE, WIRE_V, 0, 3, "v.shape[0] (batch) is 3, but k.shape[0] is 2"},
    {F, SHAPE, WIRE_BIAS, 3, 13, "bias.shape[3] (seqlen_k) is 13, neither 1 nor 7"},
    {F, MAX_SEQLEN_K, 0, 0, 7, "max_seqlen_k is given, but cu_seqlens_k is not"},
    {F, ROLE, CUQ, 0, CUK, "max_seqlen_q is given, but cu_seqlens_q is not"},
    {B, DIMS, WIRE_DK, 0, 3, "dk has 3 dimensions, but must have 4"},
};

static const struct plan_change packed_k_changes[] = {
    {F, NOTHING, 0, 0, 0, NULL},
    {B, NOTHING, 0, 0, 0, NULL},
    {F, SHAPE, CUK, 0, 4, "cu_seqlens_k.shape[0] (batch + 1) is 4, but q.shape[0] is 2"},
    {F, SHAPE, WIRE_BIAS, 2, 11, "bias.shape[2] (seqlen_q) is 11, neither 1 nor 5"},
    {F, DROP, CUK, 0, 0, "max_seqlen_k is given, but cu_seqlens_k is not"},
    {B, DIMS, WIRE_DQ, 0, 3, "dq has 3 dimensions, but must have 4"},
};

Test(validate_features, a_dense_plan_with_one_change_is_judged_by_it)
{
    plan_change_expect(&dense, dense_changes, COUNT(dense_changes));
}

Test(validate_features, a_packed_plan_with_one_change_is_judged_by_it)
{
    plan_change_expect(&packed, packed_changes, COUNT(packed_changes));
}

Test(validate_features, a_plan_with_one_packed_side_and_one_change_is_judged_by_it)
{
    plan_change_expect(&packed_q, packed_q_changes, COUNT(packed_q_changes));
    plan_change_expect(&packed_k, packed_k_changes, COUNT(packed_k_changes));
}

/* ---- What is found out --------------------------------------------------------------------------- */

static struct wire_shape shape_of(const struct wire_plan *plan)
{
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_error error = {WIRE_OK, ""};

    memset(&shape, 0xff, sizeof(shape));
    cr_assert(validate_plan(plan, &shape, extents, &error), "%s", error.detail);
    return shape;
}

static struct wire_plan plan_of(
    enum wire_direction direction, const struct messages_features *features)
{
    struct wire_plan plan;

    messages_featured_plan(&plan, direction, WIRE_FP16, &plan_change_extents, features);
    return plan;
}

Test(validate_features, a_packed_plan_tells_batch_rows_and_longest_sequences)
{
    struct wire_plan plan = plan_of(B, &packed);
    struct wire_shape shape = shape_of(&plan);

    cr_expect(shape.packed_q && shape.packed_k);
    cr_expect_eq(shape.batch, 2);
    cr_expect_eq(shape.total_q, 11);
    cr_expect_eq(shape.total_k, 13);
    cr_expect_eq(shape.seqlen_q, 5);
    cr_expect_eq(shape.seqlen_k, 7);
    cr_expect_eq(shape.heads_q, 4);
    cr_expect_eq(shape.heads_kv, 2);
    cr_expect_eq(shape.head_dim_qk, 8);
    cr_expect_eq(shape.head_dim_v, 16);
    cr_expect_eq(shape.bias_dtype, WIRE_FP32);

    plan.max_seqlen_q = 0; /* a length like any other */
    plan_change_tensor(&plan, WIRE_BIAS)->shape[2] = 0;
    plan_change_tensor(&plan, WIRE_DBIAS)->shape[2] = 0;
    cr_expect_eq(shape_of(&plan).seqlen_q, 0);

    struct messages_features bare = {.packed_k = true, .total_k = 13};
    plan = plan_of(F, &bare);
    plan.has_max_seqlen_k = false;
    shape = shape_of(&plan);
    cr_expect(!shape.packed_q && shape.packed_k);
    cr_expect_eq(shape.total_q, 0);
    cr_expect_eq(shape.total_k, 13);
    cr_expect_eq(shape.seqlen_q, 5);
    cr_expect_eq(shape.seqlen_k, 13);
    cr_expect_eq(shape.batch, 2);
    cr_expect_eq(shape.bias_dtype, 0);
}

Test(validate_features, a_packed_batch_may_be_empty)
{
    struct messages_features features = packed;
    struct messages_extents extents = plan_change_extents;
    struct wire_plan plan;

    extents.batch = 0;
    messages_featured_plan(&plan, B, WIRE_FP32, &extents, &features);
    struct wire_shape shape = shape_of(&plan);
    cr_expect_eq(shape.batch, 0);
    cr_expect_eq(shape.total_q, 11);
}

Test(validate_features, options_and_broadcasts_are_told)
{
    for (unsigned ones = 0; ones < 16; ones++) {
        struct messages_features features = dense;
        features.bias_ones = ones;
        features.slopes_one = ones % 2;
        struct wire_plan plan = plan_of(ones % 3 ? B : F, &features);
        plan.softcap = (float)ones;
        plan.dropout_threshold = 4096 * ones;
        plan.deterministic = ones % 2;
        struct wire_shape shape = shape_of(&plan);
        for (unsigned dim = 0; dim < 4; dim++) {
            cr_expect_eq(shape.bias_broadcast[dim], ones >> dim & 1, "%u, %u", ones, dim);
        }
        cr_expect_eq(shape.bias_dtype, WIRE_FP16);
        cr_expect_eq(shape.slopes_broadcast, ones % 2);
        cr_expect_eq(shape.softcap, (float)ones);
        cr_expect_eq(shape.dropout_threshold, 4096 * ones);
        cr_expect_eq(shape.deterministic, ones % 2);
        cr_expect(!shape.packed_q && !shape.packed_k && shape.total_q == 0 && shape.total_k == 0);
    }
    struct wire_plan plan;
    struct messages_extents one = {1, 1, 1, 1, 1, 1, 1};
    messages_featured_plan(&plan, F, WIRE_FP32, &one, &dense);
    plan_change_tensor(&plan, WIRE_BIAS)->dtype = WIRE_FP32;
    struct wire_shape shape = shape_of(&plan);
    cr_expect(shape.bias_broadcast[0] && shape.bias_broadcast[3] && shape.slopes_broadcast);
}

Test(validate_features, every_random_plan_is_good_and_its_shape_true)
{
    struct dice random = messages_seeded("random features");

    for (size_t round = 0; round < 20000; round++) {
        struct wire_plan plan;
        messages_plan(&random, &plan);
        struct wire_shape shape = shape_of(&plan);
        const struct wire_tensor *q = &plan.tensor[0];
        const struct wire_tensor *k = &plan.tensor[1];
        const struct wire_tensor *bias = wire_plan_tensor(&plan, WIRE_BIAS);
        cr_assert_eq(shape.packed_q, wire_plan_tensor(&plan, CUQ) != NULL);
        cr_assert_eq(shape.packed_k, wire_plan_tensor(&plan, CUK) != NULL);
        cr_assert_eq(q->dims, shape.packed_q ? 3 : 4);
        cr_assert_eq(k->dims, shape.packed_k ? 3 : 4);
        cr_assert(shape.packed_q || shape.batch == (int64_t)q->shape[0]);
        cr_assert(shape.packed_k || shape.batch == (int64_t)k->shape[0]);
        cr_assert(shape.total_q == (shape.packed_q ? (int64_t)q->shape[0] : 0));
        cr_assert_eq(shape.heads_q, (int32_t)q->shape[q->dims - 2]);
        cr_assert_eq(shape.heads_kv, (int32_t)k->shape[k->dims - 2]);
        cr_assert(
            bias == NULL || shape.bias_broadcast[3] || shape.seqlen_k == (int64_t)bias->shape[3]);
        cr_assert(
            bias == NULL || shape.bias_broadcast[2] || shape.seqlen_q == (int64_t)bias->shape[2]);
    }
}

Test(validate_features, huge_biases_do_not_overflow)
{
    struct messages_extents extents = {WIRE_MAX_BATCH, 1, 1, WIRE_MAX_HEADS, 1, 1, 1};
    struct messages_features features = {.packed_q = true,
        .packed_k = true,
        .total_q = 1,
        .total_k = 1,
        .bias = WIRE_FP32,
        .gradients = true};
    struct wire_extent found[WIRE_MAX_TENSORS];
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_error error;

    extents.seqlen_q = WIRE_MAX_SEQLEN;
    extents.seqlen_k = WIRE_MAX_SEQLEN;
    messages_featured_plan(&plan, B, WIRE_FP32, &extents, &features);
    for (uint32_t dim = 0; dim < 3; dim++) {
        plan_change_tensor(&plan, WIRE_BIAS)->strides[dim] = 0;
    }
    cr_expect_not(validate_plan(&plan, &shape, found, &error));
    cr_expect(strstr(error.detail, "bias has more than 2^62 bytes") != NULL, "%s", error.detail);

    features.bias_ones = 0xf;
    messages_featured_plan(&plan, B, WIRE_FP32, &extents, &features);
    cr_expect(validate_plan(&plan, &shape, found, &error), "%s", error.detail);
    cr_expect_eq(found[messages_place(&plan, WIRE_DBIAS)].high, 4);
}

/* ---- Calls ---------------------------------------------------------------------------------------- */

struct meeting {
    enum wire_role moved;
    enum wire_role onto;
    const char *sentence; /* NULL: they may share their memory */
};

static const struct meeting meetings[] = {
    {WIRE_DBIAS, WIRE_BIAS, "dbias overlaps bias"},
    {WIRE_DSLOPES, WIRE_SLOPES, "dslopes overlaps slopes"},
    {WIRE_DSINKS, WIRE_SINKS, "dsinks overlaps sinks"},
    {CUQ, WIRE_DQ, "dq overlaps cu_seqlens_q"},
    {CUK, WIRE_DBIAS, "dbias overlaps cu_seqlens_k"},
    {LENS, WIRE_DSINKS, "dsinks overlaps seqlens_k"},
    {WIRE_BIAS, WIRE_DV, "dv overlaps bias"},
    {WIRE_DSINKS, WIRE_DSLOPES, "dslopes overlaps dsinks"},
    {CUK, CUQ, NULL},
    {LENS, CUQ, NULL},
    {WIRE_SINKS, WIRE_SLOPES, NULL},
    {WIRE_BIAS, WIRE_Q, NULL},
};

Test(validate_features, outputs_of_every_kind_keep_to_themselves)
{
    for (size_t i = 0; i < COUNT(meetings); i++) {
        struct wire_plan plan = plan_of(B, &packed);
        struct wire_shape shape;
        struct wire_extent extents[WIRE_MAX_TENSORS];
        struct wire_call call;
        struct wire_error error = {WIRE_OK, ""};
        uint64_t region_bytes[WIRE_MAX_TENSORS];

        cr_assert(validate_plan(&plan, &shape, extents, &error), "%s", error.detail);
        uint64_t bytes = messages_call(&plan, extents, &call) + 4096;
        for (uint32_t t = 0; t < plan.tensors; t++) {
            region_bytes[t] = bytes;
        }
        cr_assert(validate_call(&plan, extents, &call, region_bytes, &error), "%s", error.detail);
        call.offset[messages_place(&plan, meetings[i].moved)] =
            call.offset[messages_place(&plan, meetings[i].onto)];
        bool good = validate_call(&plan, extents, &call, region_bytes, &error);
        if (meetings[i].sentence == NULL) {
            cr_expect(good, "case %zu: %s", i, error.detail);
        } else {
            cr_expect_not(good, "case %zu was accepted", i);
            cr_expect(strstr(error.detail, meetings[i].sentence) != NULL, "case %zu: %s", i,
                error.detail);
        }
        call.offset[messages_place(&plan, meetings[i].moved)] = bytes - 3;
        cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    }
}

Test(validate_features, lengths_must_be_aligned)
{
    struct wire_plan plan = plan_of(F, &packed);
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_call call;
    struct wire_error error = {WIRE_OK, ""};
    uint64_t region_bytes[WIRE_MAX_TENSORS];

    cr_assert(validate_plan(&plan, &shape, extents, &error));
    uint64_t bytes = messages_call(&plan, extents, &call) + 16;
    for (uint32_t t = 0; t < plan.tensors; t++) {
        region_bytes[t] = bytes;
    }
    call.offset[messages_place(&plan, CUQ)] += 2;
    cr_expect_not(validate_call(&plan, extents, &call, region_bytes, &error));
    cr_expect(strstr(error.detail, "cu_seqlens_q.offset") != NULL &&
                  strstr(error.detail, "no multiple of the 4 bytes of an int32 element") != NULL,
        "%s", error.detail);
}

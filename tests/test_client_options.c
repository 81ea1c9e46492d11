/* Every option and optional tensor of a call, as libattnd puts them into a plan, without a daemon. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "attnd.h"
#include "client_call.h"
#include "validate.h"

/* ---- Plans -------------------------------------------------------------------------------------- */

static void read_plan(const struct call *call, struct wire_plan *plan)
{
    memset(plan, 0xAA, sizeof *plan);
    cr_assert_eq(call_read(call, plan), ATTND_OK, "%s", attnd_message());
}

static void expect_shape(const struct wire_plan *plan, enum wire_role role, enum wire_dtype dtype,
    uint32_t dims, const uint64_t *shape)
{
    const struct wire_tensor *tensor = wire_plan_tensor(plan, role);
    cr_assert_not_null(tensor, "%s", wire_role_name(role));
    cr_expect_eq(tensor->dtype, dtype, "%s", wire_role_name(role));
    cr_assert_eq(tensor->dims, dims, "%s", wire_role_name(role));
    for (uint32_t dim = 0; dim < dims; dim++) {
        cr_expect_eq(tensor->shape[dim], shape[dim], "%s[%u]", wire_role_name(role), dim);
    }
}

Test(client_options, each_tensor_arrives_under_its_role)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_BACKWARD);
    call_add_terms(&call);
    call_add(&call, WIRE_SEQLENS_K);
    call.tensor[WIRE_BIAS].dtype.bits = 32;
    read_plan(&call, &plan);
    cr_expect_eq(plan.tensors, 17);
    expect_shape(&plan, WIRE_Q, WIRE_FP32, 4, (uint64_t[]){2, 3, 4, 8});
    expect_shape(&plan, WIRE_BIAS, WIRE_FP32, 4, (uint64_t[]){2, 4, 3, 5});
    expect_shape(&plan, WIRE_DBIAS, WIRE_FP32, 4, (uint64_t[]){2, 4, 3, 5});
    expect_shape(&plan, WIRE_SLOPES, WIRE_FP32, 2, (uint64_t[]){2, 4});
    expect_shape(&plan, WIRE_DSLOPES, WIRE_FP32, 2, (uint64_t[]){2, 4});
    expect_shape(&plan, WIRE_SINKS, WIRE_FP32, 1, (uint64_t[]){4});
    expect_shape(&plan, WIRE_DSINKS, WIRE_FP32, 1, (uint64_t[]){4});
    expect_shape(&plan, WIRE_SEQLENS_K, WIRE_INT32, 1, (uint64_t[]){2});
}

Test(client_options, packed_tensors_have_no_batch)
{
    for (int direction = ATTND_FORWARD; direction <= ATTND_BACKWARD; direction++) {
        struct call call;
        struct wire_plan plan;
        call_init(&call, (enum attnd_direction)direction);
        call_add_terms(&call);
        call_pack(&call);
        read_plan(&call, &plan);
        expect_shape(&plan, WIRE_Q, WIRE_FP32, 3, (uint64_t[]){3, 4, 8});
        expect_shape(&plan, WIRE_K, WIRE_FP32, 3, (uint64_t[]){5, 2, 8});
        expect_shape(&plan, WIRE_LSE, WIRE_FP32, 2, (uint64_t[]){4, 3});
        expect_shape(&plan, WIRE_BIAS, WIRE_FP32, 4, (uint64_t[]){2, 4, 3, 5});
        expect_shape(&plan, WIRE_CU_SEQLENS_Q, WIRE_INT32, 1, (uint64_t[]){3});
        expect_shape(&plan, WIRE_CU_SEQLENS_K, WIRE_INT32, 1, (uint64_t[]){3});
        cr_expect_not(plan.has_max_seqlen_q || plan.has_max_seqlen_k);
    }
}

Test(client_options, one_side_may_be_packed_alone)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_FORWARD);
    call.tensor[WIRE_K].ndim = 3;
    call.tensor[WIRE_V].ndim = 3;
    int64_t keys[] = {5, 2, 8};
    call.tensor[WIRE_K].shape = keys;
    call.tensor[WIRE_V].shape = keys;
    call_add(&call, WIRE_CU_SEQLENS_K);
    read_plan(&call, &plan);
    expect_shape(&plan, WIRE_Q, WIRE_FP32, 4, (uint64_t[]){2, 3, 4, 8});
    expect_shape(&plan, WIRE_K, WIRE_FP32, 3, (uint64_t[]){5, 2, 8});
}

Test(client_options, numbers_arrive)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_BACKWARD);
    call_pack(&call);
    read_plan(&call, &plan);
    cr_expect_eq(plan.softcap, 0.0F);
    cr_expect_eq(plan.dropout_threshold, 0);
    cr_expect_not(plan.deterministic);
    call.options.softcap = 30.0F;
    call.options.dropout_p = 0.25F;
    call.options.deterministic = true;
    call.options.max_seqlen_q = 2;
    call.options.max_seqlen_k = 4;
    read_plan(&call, &plan);
    cr_expect_eq(plan.softcap, 30.0F);
    cr_expect_eq(plan.dropout_threshold, 16384);
    cr_expect(plan.deterministic);
    cr_expect(plan.has_max_seqlen_q && plan.has_max_seqlen_k);
    cr_expect_eq(plan.max_seqlen_q, 2);
    cr_expect_eq(plan.max_seqlen_k, 4);
}

static void expect_equal(const struct call *a, const struct call *b, bool equal)
{
    struct wire_plan plan_a;
    struct wire_plan plan_b;
    read_plan(a, &plan_a);
    read_plan(b, &plan_b);
    cr_expect_eq(memcmp(&plan_a, &plan_b, sizeof plan_a) == 0, equal);
}

Test(client_options, the_mask_is_no_part_of_the_plan)
{
    struct call a;
    struct call b;
    call_init(&a, ATTND_FORWARD);
    call_init(&b, ATTND_FORWARD);
    a.options.dropout_p = 0.5F;
    b.options.dropout_p = 0.5F;
    b.options.dropout_seed = UINT64_MAX;
    b.options.dropout_offset = 7;
    expect_equal(&a, &b, true);
    b.options.dropout_p = 0.500004F; /* the same threshold */
    expect_equal(&a, &b, true);
    b.options.dropout_p = 0.50001F;
    expect_equal(&a, &b, false);
}

Test(client_options, alignment_counts_where_something_goes_by_it)
{
    struct call a;
    struct call b;
    call_init(&a, ATTND_FORWARD);
    call_init(&b, ATTND_FORWARD);
    b.options.alignment = ATTND_TOP_LEFT;
    b.options.softcap = -0.0F;
    expect_equal(&a, &b, true);
    call_add(&a, WIRE_SLOPES);
    call_add(&b, WIRE_SLOPES);
    expect_equal(&a, &b, false);
    call_remove(&a, WIRE_SLOPES);
    call_remove(&b, WIRE_SLOPES);
    a.options.window_left = 1;
    b.options.window_left = 1;
    expect_equal(&a, &b, false);
}

Test(client_options, a_probability_becomes_the_nearest_threshold)
{
    static const struct {
        float probability;
        uint32_t threshold;
    } rows[] = {{0.0F, 0}, {-0.0F, 0}, {0.5F, 32768}, {0.1F, 6554}, {0.3F, 19661}, {1e-6F, 0},
        {0.49999F / 65536, 0}, {0.5F / 65536, 1}, {1.49999F / 65536, 1}, {1.5F / 65536, 2},
        {65535.0F / 65536, 65535}, {65535.49F / 65536, 65535}, {1e-40F, 0}};

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct call call;
        struct wire_plan plan;
        call_init(&call, ATTND_FORWARD);
        call.options.dropout_p = rows[i].probability;
        read_plan(&call, &plan);
        cr_expect_eq(plan.dropout_threshold, rows[i].threshold, "%g gives %u",
            (double)rows[i].probability, plan.dropout_threshold);
    }
}

/* ---- Refusals ----------------------------------------------------------------------------------- */

static int64_t odd[] = {3, 3, 3, 3};
static int64_t apart[] = {2, 2, 2, 2};
static int64_t zeroes[] = {0, 0, 0, 1};

static void nan_softcap(struct call *call)
{
    call->options.softcap = NAN;
}

static void negative_softcap(struct call *call)
{
    call->options.softcap = -1.0F;
}

static void negative_dropout(struct call *call)
{
    call->options.dropout_p = -0.1F;
}

static void whole_dropout(struct call *call)
{
    call->options.dropout_p = 1.0F;
}

static void nan_dropout(struct call *call)
{
    call->options.dropout_p = NAN;
}

static void almost_whole_dropout(struct call *call)
{
    call->options.dropout_p = 0.999995F;
}

static void negative_longest(struct call *call)
{
    call->options.max_seqlen_k = -1;
}

static void vast_longest(struct call *call)
{
    call->options.max_seqlen_k = INT64_MAX;
}

static void longest_of_dense(struct call *call)
{
    call->options.max_seqlen_q = 3;
    call_remove(call, WIRE_CU_SEQLENS_Q);
}

static void odd_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].shape = odd;
}

static void flat_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].ndim = 3;
}

static void cuda_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].device.device_type = kDLCUDA;
}

static void half_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].dtype.bits = 16;
}

static void integer_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].dtype.code = kDLInt;
}

static void spread_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].strides = apart;
}

static void null_bias(struct call *call)
{
    call->tensor[WIRE_BIAS].data = NULL;
}

static void half_dbias(struct call *call)
{
    call->tensor[WIRE_DBIAS].dtype.bits = 16;
}

static void broadcast_dbias(struct call *call)
{
    call->tensor[WIRE_DBIAS].strides = zeroes;
}

static void dbias_without_bias(struct call *call)
{
    call_remove(call, WIRE_BIAS);
}

static void dslopes_without_slopes(struct call *call)
{
    call_remove(call, WIRE_SLOPES);
}

static void dsinks_without_sinks(struct call *call)
{
    call_remove(call, WIRE_SINKS);
}

static void half_slopes(struct call *call)
{
    call->tensor[WIRE_SLOPES].dtype.bits = 16;
}

static void odd_slopes(struct call *call)
{
    call->tensor[WIRE_SLOPES].shape = odd;
}

static void odd_dslopes(struct call *call)
{
    call->tensor[WIRE_DSLOPES].shape = odd;
}

static void deep_sinks(struct call *call)
{
    call->tensor[WIRE_SINKS].ndim = 2;
}

static void odd_sinks(struct call *call)
{
    call->tensor[WIRE_SINKS].shape = odd;
}

static void spread_sinks(struct call *call)
{
    call->tensor[WIRE_SINKS].strides = apart;
}

static void shapeless_dsinks(struct call *call)
{
    call->tensor[WIRE_DSINKS].shape = NULL;
}

static void scalar_dsinks(struct call *call)
{
    call->tensor[WIRE_DSINKS].ndim = 0;
}

static void deep_dsinks(struct call *call)
{
    call->tensor[WIRE_DSINKS].ndim = 5;
}

static void long_lengths(struct call *call)
{
    call->tensor[WIRE_CU_SEQLENS_Q].dtype.bits = 64;
}

static void float_lengths(struct call *call)
{
    call->tensor[WIRE_SEQLENS_K].dtype.code = kDLFloat;
}

static void other_batch(struct call *call)
{
    call->tensor[WIRE_CU_SEQLENS_K].shape = odd + 1;
    call->shape[WIRE_CU_SEQLENS_Q][0] = 4;
}

static void no_offsets(struct call *call)
{
    call->shape[WIRE_CU_SEQLENS_Q][0] = 0;
}

static void odd_key_lengths(struct call *call)
{
    call->tensor[WIRE_SEQLENS_K].shape = odd;
}

static void spread_lengths(struct call *call)
{
    call->tensor[WIRE_SEQLENS_K].strides = apart;
}

static void unpacked_q(struct call *call)
{
    call_remove(call, WIRE_CU_SEQLENS_Q);
}

static void null_lengths(struct call *call)
{
    call->tensor[WIRE_CU_SEQLENS_Q].data = NULL;
}

static void odd_lengths(struct call *call)
{
    call->tensor[WIRE_CU_SEQLENS_Q].byte_offset = 2;
}

static const struct {
    enum attnd_status status;
    const char *sentence;
    void (*spoil)(struct call *call);
} spoilt[] = {
    {ATTND_INVALID_ARGUMENT, "options->softcap is nan", nan_softcap},
    {ATTND_INVALID_ARGUMENT, "options->softcap is -1", negative_softcap},
    {ATTND_INVALID_ARGUMENT, "options->dropout_p is -0.1", negative_dropout},
    {ATTND_INVALID_ARGUMENT, "options->dropout_p is 1, but must be at least 0 and below 1",
        whole_dropout},
    {ATTND_INVALID_ARGUMENT, "options->dropout_p is nan", nan_dropout},
    {ATTND_INVALID_ARGUMENT, "options->dropout_p is 0.99999", almost_whole_dropout},
    {ATTND_INVALID_ARGUMENT, "options->max_seqlen_k is -1, below 0", negative_longest},
    {ATTND_INVALID_ARGUMENT, "options->max_seqlen_k is 9223372036854775807", vast_longest},
    {ATTND_INVALID_ARGUMENT, "options->max_seqlen_q is given, but cu_seqlens_q is not",
        longest_of_dense},
    {ATTND_INVALID_ARGUMENT, "options->bias->shape[0] (batch) is 3, neither 1 nor 2", odd_bias},
    {ATTND_INVALID_ARGUMENT, "options->bias has 3 dimensions, but must have 4", flat_bias},
    {ATTND_INVALID_ARGUMENT, "options->bias lies in a device's memory", cuda_bias},
    {ATTND_INVALID_ARGUMENT, "options->bias->dtype is fp16, but q->dtype is fp32", half_bias},
    {ATTND_UNSUPPORTED, "options->bias->dtype has code 0 and 32 bits", integer_bias},
    {ATTND_INVALID_ARGUMENT, "options->bias->strides[3] is 2", spread_bias},
    {ATTND_INVALID_ARGUMENT, "options->bias->data is NULL", null_bias},
    {ATTND_INVALID_ARGUMENT, "dbias->dtype is fp16, but bias->dtype is fp32", half_dbias},
    {ATTND_INVALID_ARGUMENT, "dbias->strides[0] is 0", broadcast_dbias},
    {ATTND_INVALID_ARGUMENT, "dbias is given, but bias is not", dbias_without_bias},
    {ATTND_INVALID_ARGUMENT, "dslopes is given, but slopes is not", dslopes_without_slopes},
    {ATTND_INVALID_ARGUMENT, "dsinks is given, but sinks is not", dsinks_without_sinks},
    {ATTND_INVALID_ARGUMENT, "options->slopes->dtype is fp16, but must be fp32", half_slopes},
    {ATTND_INVALID_ARGUMENT, "options->slopes->shape[0] (batch) is 3", odd_slopes},
    {ATTND_INVALID_ARGUMENT, "dslopes->shape[0] is 3, but slopes->shape[0] is 2", odd_dslopes},
    {ATTND_INVALID_ARGUMENT, "options->sinks has 2 dimensions", deep_sinks},
    {ATTND_INVALID_ARGUMENT, "options->sinks->shape[0] (heads_q) is 3", odd_sinks},
    {ATTND_INVALID_ARGUMENT, "options->sinks->strides[0] is 2", spread_sinks},
    {ATTND_INVALID_ARGUMENT, "dsinks->shape is NULL", shapeless_dsinks},
    {ATTND_INVALID_ARGUMENT, "dsinks->ndim is 0, not between 1 and 4", scalar_dsinks},
    {ATTND_INVALID_ARGUMENT, "dsinks->ndim is 5, not between 1 and 4", deep_dsinks},
    {ATTND_INVALID_ARGUMENT,
        "options->cu_seqlens_q->dtype has code 0 and 64 bits, but must be int32", long_lengths},
    {ATTND_INVALID_ARGUMENT, "options->seqlens_k->dtype has code 2 and 32 bits", float_lengths},
    {ATTND_INVALID_ARGUMENT, "options->cu_seqlens_k->shape[0] (batch + 1) is 3", other_batch},
    {ATTND_INVALID_ARGUMENT, "options->cu_seqlens_q->shape[0] (batch + 1) is 0", no_offsets},
    {ATTND_INVALID_ARGUMENT, "options->seqlens_k->shape[0] (batch) is 3", odd_key_lengths},
    {ATTND_INVALID_ARGUMENT, "options->seqlens_k->strides[0] is 2", spread_lengths},
    {ATTND_INVALID_ARGUMENT, "q has 3 dimensions, but must have 4", unpacked_q},
    {ATTND_INVALID_ARGUMENT, "options->cu_seqlens_q->data is NULL", null_lengths},
    {ATTND_INVALID_ARGUMENT, "options->cu_seqlens_q->data plus byte_offset is no multiple",
        odd_lengths},
};

Test(client_options, every_bad_argument_is_named)
{
    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        struct call call;
        struct wire_plan plan;
        call_init(&call, ATTND_BACKWARD);
        call_add_terms(&call);
        call_pack(&call);
        cr_assert_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
        spoilt[i].spoil(&call);
        enum attnd_status status = call_read(&call, &plan);
        cr_expect_eq(
            status, spoilt[i].status, "%s: %s", attnd_status_name(status), spoilt[i].sentence);
        cr_expect_eq(strncmp(attnd_message(), spoilt[i].sentence, strlen(spoilt[i].sentence)), 0,
            "\"%s\" should begin with \"%s\"", attnd_message(), spoilt[i].sentence);
    }
}

Test(client_options, a_forward_has_no_gradients)
{
    static const enum wire_role gradients[] = {WIRE_DBIAS, WIRE_DSLOPES, WIRE_DSINKS};

    for (size_t i = 0; i < 3; i++) {
        struct call call;
        struct wire_plan plan;
        call_init(&call, ATTND_FORWARD);
        call_add_terms(&call);
        cr_assert_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
        call_add(&call, gradients[i]);
        cr_expect_eq(call_read(&call, &plan), ATTND_INVALID_ARGUMENT);
        const char *name = wire_role_name(gradients[i]);
        cr_expect_eq(strncmp(attnd_message(), name, strlen(name)), 0, "%s", attnd_message());
    }
}

Test(client_options, gradients_of_terms_may_be_missing_one_by_one)
{
    for (unsigned have = 0; have < 8; have++) {
        struct call call;
        struct wire_plan plan;
        call_init(&call, ATTND_BACKWARD);
        call_add_terms(&call);
        for (unsigned i = 0; i < 3; i++) {
            if (!(have & 1U << i)) {
                call_remove(&call, (enum wire_role)(WIRE_DBIAS + 2 * i));
            }
        }
        read_plan(&call, &plan);
        cr_expect_eq(plan.tensors, 13 + (have & 1) + (have >> 1 & 1) + (have >> 2));
    }
}

Test(client_options, an_older_program_has_none_of_the_newer_options)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_FORWARD);
    call.options.dropout_p = 0.5F;
    call.options.window_left = 2;
    call_add(&call, WIRE_BIAS);
    call.options.size = offsetof(struct attnd_options, dropout_p);
    read_plan(&call, &plan);
    cr_expect_eq(plan.window_left, 2);
    cr_expect_eq(plan.dropout_threshold, 0);
    cr_expect_null(wire_plan_tensor(&plan, WIRE_BIAS));
}

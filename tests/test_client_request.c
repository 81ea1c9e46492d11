/* What libattnd makes of the caller's structs and tensors, without a daemon. */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attnd.h"
#include "client_call.h"
#include "elements.h"
#include "service_case.h"

/* ---- Refusals ----------------------------------------------------------------------------------- */

struct spoilt {
    enum attnd_status status;
    const char *sentence;
    void (*spoil)(struct call *call);
};

static int64_t odd_shape[4] = {2, 3, 3, 8};
static int64_t negative_shape[4] = {2, -3, 4, 8};
static int64_t vast_shape[4] = {INT64_MAX, 3, 4, 8};
static int64_t wide_shape[4] = {2, 3, 4, 257};
static int64_t gap_strides[4] = {96, 32, 8, 2};
static int64_t zero_strides[4] = {96, 0, 8, 1};

static void no_q(struct call *call)
{
    call->request.q = NULL;
}

static void no_lse(struct call *call)
{
    call->request.lse = NULL;
}

static void no_dv(struct call *call)
{
    call->request.dv = NULL;
}

static void no_direction(struct call *call)
{
    call->request.direction = (enum attnd_direction)3;
}

static void forward_with_dout(struct call *call)
{
    call->request.direction = ATTND_FORWARD;
}

static void cuda_k(struct call *call)
{
    call->tensor[WIRE_K].device.device_type = kDLCUDA;
}

static void double_v(struct call *call)
{
    call->tensor[WIRE_V].dtype.bits = 64;
}

static void integer_v(struct call *call)
{
    call->tensor[WIRE_V].dtype.code = kDLInt;
}

static void vector_v(struct call *call)
{
    call->tensor[WIRE_V].dtype.lanes = 4;
}

static void half_out(struct call *call)
{
    call->tensor[WIRE_OUT].dtype.bits = 16;
}

static void half_lse(struct call *call)
{
    call->tensor[WIRE_LSE].dtype.bits = 16;
}

static void flat_k(struct call *call)
{
    call->tensor[WIRE_K].ndim = 3;
}

static void deep_lse(struct call *call)
{
    call->tensor[WIRE_LSE].ndim = 4;
}

static void shapeless_k(struct call *call)
{
    call->tensor[WIRE_K].shape = NULL;
}

static void negative_q(struct call *call)
{
    call->tensor[WIRE_Q].shape = negative_shape;
}

static void vast_q(struct call *call)
{
    call->tensor[WIRE_Q].shape = vast_shape;
}

static void wide_q(struct call *call)
{
    call->tensor[WIRE_Q].shape = wide_shape;
}

static void odd_heads(struct call *call)
{
    call->tensor[WIRE_DQ].shape = odd_shape;
}

static void gap_k(struct call *call)
{
    call->tensor[WIRE_K].strides = gap_strides;
}

static void broadcast_dq(struct call *call)
{
    call->tensor[WIRE_DQ].strides = zero_strides;
}

static void null_data(struct call *call)
{
    call->tensor[WIRE_DOUT].data = NULL;
}

static void far_offset(struct call *call)
{
    call->tensor[WIRE_DOUT].byte_offset = UINT64_MAX;
}

static void odd_offset(struct call *call)
{
    call->tensor[WIRE_DOUT].byte_offset = 2;
}

static void nan_scale(struct call *call)
{
    call->options.scale = NAN;
}

static void wrong_alignment(struct call *call)
{
    call->options.alignment = (enum attnd_alignment)2;
}

static void negative_window(struct call *call)
{
    call->options.window_left = -2;
}

static void vast_window(struct call *call)
{
    call->options.window_right = INT64_MAX;
}

static void sizeless_options(struct call *call)
{
    call->options.size = 0;
}

static const struct spoilt spoilt[] = {
    {ATTND_INVALID_ARGUMENT, "q is NULL", no_q},
    {ATTND_INVALID_ARGUMENT, "lse is NULL", no_lse},
    {ATTND_INVALID_ARGUMENT, "dv is NULL", no_dv},
    {ATTND_INVALID_ARGUMENT, "direction is 3", no_direction},
    {ATTND_INVALID_ARGUMENT, "dout is given", forward_with_dout},
    {ATTND_INVALID_ARGUMENT, "k lies in a device's memory, but q in the host's", cuda_k},
    {ATTND_UNSUPPORTED, "v->dtype has code 2 and 64 bits", double_v},
    {ATTND_UNSUPPORTED, "v->dtype has code 0 and 32 bits", integer_v},
    {ATTND_INVALID_ARGUMENT, "v->dtype.lanes is 4", vector_v},
    {ATTND_INVALID_ARGUMENT, "out->dtype is fp16, but q->dtype is fp32", half_out},
    {ATTND_INVALID_ARGUMENT, "lse->dtype is fp16, but must be fp32", half_lse},
    {ATTND_INVALID_ARGUMENT, "k has 3 dimensions, but must have 4", flat_k},
    {ATTND_INVALID_ARGUMENT, "lse has 4 dimensions, but must have 3", deep_lse},
    {ATTND_INVALID_ARGUMENT, "k->shape is NULL", shapeless_k},
    {ATTND_INVALID_ARGUMENT, "q->shape[1] is -3", negative_q},
    {ATTND_INVALID_ARGUMENT, "q->shape[0] (batch) is 9223372036854775807", vast_q},
    {ATTND_INVALID_ARGUMENT, "q->shape[3] (head_dim) is 257", wide_q},
    {ATTND_INVALID_ARGUMENT, "dq->shape[2] (heads_q) is 3, but q->shape[2] is 4", odd_heads},
    {ATTND_INVALID_ARGUMENT, "k->strides[3] is 2", gap_k},
    {ATTND_INVALID_ARGUMENT, "dq->strides[1] is 0", broadcast_dq},
    {ATTND_INVALID_ARGUMENT, "dout->data is NULL", null_data},
    {ATTND_INVALID_ARGUMENT, "dout->byte_offset is 18446744073709551615", far_offset},
    {ATTND_INVALID_ARGUMENT, "dout->data plus byte_offset is no multiple of the 4", odd_offset},
    {ATTND_INVALID_ARGUMENT, "options->scale is not", nan_scale},
    {ATTND_INVALID_ARGUMENT, "options->alignment is 2", wrong_alignment},
    {ATTND_INVALID_ARGUMENT, "options->window_left is -2", negative_window},
    {ATTND_INVALID_ARGUMENT, "options->window_right is 9223372036854775807", vast_window},
    {ATTND_INVALID_ARGUMENT, "options->size is 0", sizeless_options},
};

Test(client_request, every_bad_argument_is_named)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_BACKWARD);
    cr_assert_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        call_init(&call, ATTND_BACKWARD);
        spoilt[i].spoil(&call);
        enum attnd_status status = call_read(&call, &plan);
        cr_expect_eq(
            status, spoilt[i].status, "%s: %s", attnd_status_name(status), spoilt[i].sentence);
        cr_expect_eq(strncmp(attnd_message(), spoilt[i].sentence, strlen(spoilt[i].sentence)), 0,
            "\"%s\" should begin with \"%s\"", attnd_message(), spoilt[i].sentence);
    }
}

Test(client_request, optional_tensors_may_be_missing)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_FORWARD);
    call.request.lse = NULL;
    cr_expect_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
    cr_expect_eq(plan.tensors, 4);
    call_init(&call, ATTND_BACKWARD);
    call.request.dlse = NULL;
    cr_expect_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
    cr_expect_eq(plan.tensors, 9);
}

Test(client_request, a_null_tensor_without_elements_is_fine)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_FORWARD);
    call.shape[WIRE_K][1] = 0;
    call.shape[WIRE_V][1] = 0;
    call.tensor[WIRE_K].data = NULL;
    call.tensor[WIRE_V].data = NULL;
    cr_expect_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
}

/* ---- Structs of other versions ------------------------------------------------------------------ */

struct newer {
    struct attnd_options options;
    uint64_t added;
};

Test(client_request, structs_of_other_versions_are_read_as_far_as_they_mean_something)
{
    struct attnd_options known = ATTND_OPTIONS_INIT;
    struct wire_error error;
    struct newer newer = {ATTND_OPTIONS_INIT, 0};
    newer.options.size = sizeof newer;
    newer.options.window_right = 7;
    cr_expect(request_read_sized("options->", &known, sizeof known, &newer, &error));
    cr_expect_eq(known.window_right, 7);
    newer.added = 1;
    cr_expect_not(request_read_sized("options->", &known, sizeof known, &newer, &error));
    cr_expect_eq(error.status, WIRE_UNSUPPORTED);

    struct attnd_options defaults = ATTND_OPTIONS_INIT;
    struct attnd_options older = ATTND_OPTIONS_INIT;
    older.size = offsetof(struct attnd_options, window_left);
    older.scale = 0.5F;
    older.window_left = 3; /* not there, as far as its size says */
    cr_expect(request_read_sized("options->", &defaults, sizeof defaults, &older, &error));
    cr_expect_eq(defaults.scale, 0.5F);
    cr_expect_eq(defaults.window_left, ATTND_UNBOUNDED);

    older.size = sizeof older.size - 1;
    cr_expect_not(request_read_sized("options->", &defaults, sizeof defaults, &older, &error));
    older.size = (size_t)1 << 40; /* it would read far behind the struct */
    cr_expect_not(request_read_sized("options->", &defaults, sizeof defaults, &older, &error));
}

/* ---- Plans -------------------------------------------------------------------------------------- */

static void expect_equal_plans(const struct call *a, const struct call *b)
{
    struct wire_plan plan_a;
    struct wire_plan plan_b;
    memset(&plan_a, 0xAA, sizeof plan_a);
    memset(&plan_b, 0x55, sizeof plan_b);
    cr_assert_eq(call_read(a, &plan_a), ATTND_OK, "%s", attnd_message());
    cr_assert_eq(call_read(b, &plan_b), ATTND_OK, "%s", attnd_message());
    cr_expect_eq(memcmp(&plan_a, &plan_b, sizeof plan_a), 0);
}

Test(client_request, calls_that_mean_the_same_have_equal_plans)
{
    struct call a;
    struct call b;
    int64_t compact[] = {96, 32, 8, 1};
    call_init(&a, ATTND_BACKWARD);
    call_init(&b, ATTND_BACKWARD);
    b.tensor[WIRE_Q].strides = compact;
    expect_equal_plans(&a, &b);
    b.tensor[WIRE_Q].data = b.memory + 4; /* where a tensor lies is no part of the plan */
    expect_equal_plans(&a, &b);
    b.request.options = NULL;
    expect_equal_plans(&a, &b);
    a.options.causal = true;
    a.options.window_right = 12;
    b.request.options = &b.options;
    b.options.window_right = 0;
    expect_equal_plans(&a, &b);
    call_init(&a, ATTND_BACKWARD);
    call_init(&b, ATTND_BACKWARD);
    a.options.alignment = ATTND_TOP_LEFT; /* without a window it says nothing */
    a.options.scale = -0.0F;
    expect_equal_plans(&a, &b);
}

Test(client_request, options_arrive_in_the_plan)
{
    struct call call;
    struct wire_plan plan;
    call_init(&call, ATTND_FORWARD);
    call.options = (struct attnd_options){.size = sizeof call.options,
        .scale = 0.25F,
        .alignment = ATTND_TOP_LEFT,
        .window_left = 3,
        .window_right = 4};
    cr_assert_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
    cr_expect(plan.has_scale && plan.has_window_left && plan.has_window_right);
    cr_expect_eq(plan.scale, 0.25F);
    cr_expect_eq(plan.window_left, 3);
    cr_expect_eq(plan.window_right, 4);
    cr_expect_eq(plan.alignment, WIRE_TOP_LEFT);
    cr_expect_eq(plan.direction, WIRE_FORWARD);
    call.options.causal = true;
    call.options.alignment = ATTND_BOTTOM_RIGHT;
    cr_assert_eq(call_read(&call, &plan), ATTND_OK, "%s", attnd_message());
    cr_expect_eq(plan.window_right, 0);
    cr_expect_eq(plan.alignment, WIRE_BOTTOM_RIGHT);
}

/* ---- Copies ------------------------------------------------------------------------------------- */

/* A drawn tensor whose dimensions nest in any order, with gaps, perhaps backwards. */
static size_t draw_tensor(struct rng *rng, struct wire_tensor *tensor, size_t *origin)
{
    static const enum wire_dtype dtypes[] = {WIRE_FP16, WIRE_FP32};

    size_t span = 1;
    *origin = 0;
    *tensor = (struct wire_tensor){
        .dims = (uint32_t)rng_between(rng, 3, 4), .dtype = dtypes[rng_between(rng, 0, 1)]};
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        tensor->shape[dim] = (uint64_t)rng_between(rng, 1, 6);
    }
    for (uint32_t turn = 0, first = (uint32_t)rng_between(rng, 0, 3); turn < tensor->dims; turn++) {
        uint32_t dim = (first + turn) % tensor->dims;
        tensor->strides[dim] = (int64_t)span + rng_between(rng, 0, 2);
        size_t reach = (size_t)tensor->strides[dim] * (tensor->shape[dim] - 1);
        if (rng_one_in(rng, 4)) {
            tensor->strides[dim] = -tensor->strides[dim];
            *origin += reach;
        }
        span += reach;
    }
    return span;
}

static uint64_t element(const struct wire_tensor *tensor, const unsigned char *data, uint64_t index)
{
    int64_t offset = 0;
    uint64_t value = 0;
    for (uint32_t dim = tensor->dims; dim-- > 0; index /= tensor->shape[dim]) {
        offset += tensor->strides[dim] * (int64_t)(index % tensor->shape[dim]);
    }
    size_t size = wire_dtype_bytes(tensor->dtype);
    memcpy(&value, data + offset * (int64_t)size, size);
    return value;
}

Test(client_request, copies_move_every_element_and_touch_no_other)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct rng rng = {seed};
        struct wire_tensor tensor;
        size_t origin;
        size_t span = draw_tensor(&rng, &tensor, &origin);
        size_t size = wire_dtype_bytes(tensor.dtype);
        unsigned char *original = malloc(span * size);
        unsigned char *returned = malloc(span * size);
        struct wire_tensor compact = tensor;
        size_t bytes = elements_compact(&compact);
        unsigned char *packed = malloc(bytes);
        for (size_t i = 0; i < span * size; i++) {
            original[i] = (unsigned char)rng_next(&rng);
            returned[i] = 0x5A;
        }
        elements_copy(&compact, packed, &tensor, original + origin * size);
        elements_copy(&tensor, returned + origin * size, &compact, packed);
        for (uint64_t i = 0; i < bytes / size; i++) {
            uint64_t expected = element(&tensor, original + origin * size, i);
            uint64_t in_pack = 0;
            memcpy(&in_pack, packed + i * size, size);
            cr_assert_eq(in_pack, expected, "seed %" PRIu64 " element %" PRIu64, seed, i);
            cr_assert_eq(element(&tensor, returned + origin * size, i), expected,
                "seed %" PRIu64 " element %" PRIu64, seed, i);
        }
        size_t untouched = 0;
        for (size_t i = 0; i < span; i++) {
            bool same = true;
            for (size_t j = 0; j < size; j++) {
                same = same && returned[i * size + j] == 0x5A;
            }
            untouched += same;
        }
        cr_assert_geq(untouched + bytes / size, span, "seed %" PRIu64, seed);
        free(original);
        free(returned);
        free(packed);
    }
}

Test(client_request, statuses_have_names)
{
    cr_expect_str_eq(attnd_status_name(ATTND_OK), "OK");
    cr_expect_str_eq(attnd_status_name(ATTND_INTERNAL), "INTERNAL");
    cr_expect_str_eq(attnd_status_name((enum attnd_status)(ATTND_LANE_POISONED + 1)), "?");
    cr_expect_str_eq(attnd_status_name((enum attnd_status) - 1), "?");
}

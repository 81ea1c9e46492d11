/* The validator's view of memory against counting every byte. */
#include "messages.h"
#include "overlap.h"
#include "role.h"
#include "validate.h"

#include <criterion/criterion.h>
#include <string.h>

#define F WIRE_FORWARD
#define B WIRE_BACKWARD

static struct wire_tensor *tensor_of(struct wire_plan *plan, enum wire_role role)
{
    return &plan->tensor[messages_place(plan, role)];
}

/* ---- Small random calls against counting every byte ---------------------------------------------- */

#define MEMORY 16384

static int64_t element_offset(const struct wire_tensor *tensor, uint64_t number)
{
    int64_t offset = 0;
    for (uint32_t dim = tensor->dims; dim-- > 0;) {
        offset += (int64_t)(number % tensor->shape[dim]) * tensor->strides[dim];
        number /= tensor->shape[dim];
    }
    return offset * (int64_t)wire_dtype_bytes(tensor->dtype);
}

static uint64_t element_count(const struct wire_tensor *tensor)
{
    uint64_t count = 1;
    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        count *= tensor->shape[dim];
    }
    return count;
}

struct truth {
    bool outside;
    bool misaligned;
    bool shared; /* an output shares a byte with itself or another tensor */
};

/* Marks every byte of every tensor, in memory with margins for those that reach outside. */
static struct truth count_bytes(
    const struct wire_plan *plan, const struct wire_call *call, uint64_t region_bytes)
{
    static uint16_t readers[MEMORY];
    static uint16_t writers[MEMORY];
    struct truth truth = {false, false, false};

    memset(readers, 0, sizeof(readers));
    memset(writers, 0, sizeof(writers));
    for (uint32_t t = 0; t < plan->tensors; t++) {
        const struct wire_tensor *tensor = &plan->tensor[t];
        size_t size = wire_dtype_bytes(tensor->dtype);
        bool output = wire_role_is_output(plan->direction, tensor->role);
        truth.outside = truth.outside || call->offset[t] > region_bytes;
        truth.misaligned = truth.misaligned || call->offset[t] % size != 0;
        for (uint64_t n = 0; n < element_count(tensor); n++) {
            int64_t at = (int64_t)call->offset[t] + element_offset(tensor, n);
            truth.outside = truth.outside || at < 0 || (uint64_t)at + size > region_bytes;
            truth.misaligned = truth.misaligned || at % (int64_t)size != 0;
            for (size_t byte = 0; byte < size; byte++) {
                int64_t place = at + (int64_t)byte + MEMORY / 4;
                cr_assert(place >= 0 && place < MEMORY);
                (output ? writers : readers)[place]++;
            }
        }
    }
    for (size_t i = 0; i < MEMORY; i++) {
        truth.shared = truth.shared || writers[i] > 1 || (writers[i] == 1 && readers[i] > 0);
    }
    return truth;
}

static void random_extents(struct dice *random, struct messages_extents *extents)
{
    extents->batch = messages_below(random, 3);
    extents->seqlen_q = messages_below(random, 4);
    extents->seqlen_k = messages_below(random, 4);
    extents->heads_kv = 1 + messages_below(random, 2);
    extents->heads_q = extents->heads_kv * messages_below(random, 3);
    extents->head_dim_qk = 1 + messages_below(random, 3);
    extents->head_dim_v = 1 + messages_below(random, 3);
}

/* Compact in a random order of dimensions, the last one innermost unless it is one of rows or heads;
 * then disturbed, one in `rarity`. */
static void random_strides(struct dice *random, struct wire_tensor *tensor, uint64_t rarity)
{
    uint32_t order[WIRE_MAX_DIMS] = {0, 1, 2, 3};
    bool scattered = role_table[tensor->role].is_scattered;
    uint32_t outer = tensor->dims - !scattered;
    int64_t stride = scattered ? 1 : (int64_t)(tensor->shape[outer] + messages_below(random, 2));

    for (uint32_t i = outer; i-- > 1;) {
        uint32_t other = (uint32_t)messages_below(random, i + 1);
        uint32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    for (uint32_t i = 0; i < outer; i++) {
        uint64_t extent = tensor->shape[order[i]];
        tensor->strides[order[i]] = stride;
        stride *= (int64_t)(extent + (extent == 0));
    }
    if (messages_below(random, rarity) == 0) {
        tensor->strides[messages_below(random, tensor->dims)] +=
            (int64_t)messages_below(random, 7) - 3;
    }
    if (messages_below(random, rarity + rarity / 2) == 0) {
        tensor->strides[messages_below(random, tensor->dims)] =
            (int64_t)messages_below(random, 40) - 20;
    }
}

Test(overlap, no_bad_call_is_ever_accepted)
{
    struct dice random = messages_seeded("random calls");
    size_t accepted = 0;
    size_t shared = 0;
    size_t refused_plans = 0;

    for (size_t round = 0; round < 30000; round++) {
        struct messages_extents extents;
        struct wire_plan plan;
        struct wire_shape shape;
        struct wire_extent found[WIRE_MAX_TENSORS];
        struct wire_call call;
        struct wire_error error;
        uint64_t region_bytes[WIRE_MAX_TENSORS];

        enum wire_dtype dtype = (enum wire_dtype)(1 + messages_below(&random, WIRE_FP32));
        struct messages_features features;

        random_extents(&random, &extents);
        messages_features(&random, dtype, &extents, &features);
        messages_featured_plan(
            &plan, messages_below(&random, 2) ? F : B, dtype, &extents, &features);
        for (uint32_t t = 0; t < plan.tensors; t++) {
            random_strides(&random, &plan.tensor[t], 10);
        }
        if (!validate_plan(&plan, &shape, found, &error)) {
            refused_plans++;
            continue;
        }
        uint64_t bytes = messages_call(&plan, found, &call);
        for (uint32_t t = 0; t < plan.tensors; t++) {
            region_bytes[t] = bytes;
            if (messages_below(&random, 6) == 0) {
                call.offset[t] = messages_below(&random, bytes + 2);
            }
        }
        cr_assert(bytes < MEMORY / 2);
        struct truth truth = count_bytes(&plan, &call, bytes);
        bool good = validate_call(&plan, found, &call, region_bytes, &error);
        accepted += good;
        shared += truth.shared;
        if (good) {
            cr_assert(!truth.outside && !truth.misaligned && !truth.shared, "round %zu", round);
        } else {
            bool ranges_meet = strstr(error.detail, "overlaps") != NULL;
            cr_assert(truth.outside || truth.misaligned || ranges_meet, "round %zu: %s", round,
                error.detail);
        }
    }
    cr_expect(accepted > 1000 && shared > 1000 && refused_plans > 1000, "%zu, %zu, %zu", accepted,
        shared, refused_plans);
}

/* The rule for outputs as validate.h states it, by trying every order of the dimensions. */
static bool is_laid_out_by_rule(const struct wire_tensor *tensor, unsigned used, int64_t reach)
{
    bool all = true;

    for (uint32_t dim = 0; dim < tensor->dims; dim++) {
        if ((used & 1U << dim) || tensor->shape[dim] == 1) {
            continue;
        }
        all = false;
        int64_t stride = tensor->strides[dim];
        if (stride >= reach && is_laid_out_by_rule(tensor, used | 1U << dim,
                                   reach + stride * ((int64_t)tensor->shape[dim] - 1))) {
            return true;
        }
    }
    return all;
}

Test(overlap, outputs_are_accepted_exactly_by_the_documented_rule)
{
    struct dice random = messages_seeded("output strides");
    size_t accepted = 0;
    size_t refused = 0;

    for (size_t round = 0; round < 30000; round++) {
        struct messages_extents extents;
        struct wire_plan plan;
        struct wire_shape shape;
        struct wire_extent found[WIRE_MAX_TENSORS];
        struct wire_error error;

        random_extents(&random, &extents);
        messages_fixed_plan(&plan, F, WIRE_FP16, &extents);
        struct wire_tensor *out =
            tensor_of(&plan, messages_below(&random, 2) ? WIRE_OUT : WIRE_LSE);
        random_strides(&random, out, 4);
        if (out->dims == 4) {
            out->strides[3] = 1;
        }
        bool expected = element_count(out) == 0 || is_laid_out_by_rule(out, 0, 1);
        bool good = validate_plan(&plan, &shape, found, &error);
        cr_assert_eq(good, expected, "round %zu: %s", round, good ? "accepted" : error.detail);
        accepted += good;
        refused += !good;
    }
    cr_expect(accepted > 1000 && refused > 1000);
}

/* ---- Boxes of one packed tensor ------------------------------------------------------------------ */

struct box {
    uint64_t begin[4];
    uint64_t extent[4];
};

static bool do_boxes_meet(const struct box *a, const struct box *b)
{
    for (size_t dim = 0; dim < 4; dim++) {
        if (a->begin[dim] >= b->begin[dim] + b->extent[dim] ||
            b->begin[dim] >= a->begin[dim] + a->extent[dim]) {
            return false;
        }
    }
    return true;
}

/* Strides of a compact tensor of `sides`, head_dim innermost, the others in a random order. */
static void packed_strides(struct dice *random, const uint64_t sides[4], int64_t strides[4])
{
    struct wire_tensor packed = {.dims = 4};

    memcpy(packed.shape, sides, 4 * sizeof(sides[0]));
    uint32_t order = (uint32_t)messages_below(random, 6);
    static const uint32_t orders[6][3] = {
        {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    int64_t stride = (int64_t)sides[3];
    strides[3] = 1;
    for (size_t i = 0; i < 3; i++) {
        strides[orders[order][i]] = stride;
        stride *= (int64_t)sides[orders[order][i]];
    }
}

static void place_in_box(struct wire_plan *plan, struct wire_call *call, enum wire_role role,
    const struct box *box, const int64_t strides[4])
{
    uint32_t at = messages_place(plan, role);
    int64_t offset = 0;
    size_t pad = 4 - plan->tensor[at].dims; /* a packed side lacks the first */

    for (size_t dim = 0; dim < 4; dim++) {
        offset += (int64_t)box->begin[dim] * strides[dim];
        if (dim >= pad) {
            plan->tensor[at].strides[dim - pad] = strides[dim];
        }
    }
    call->region[at] = 2;
    call->offset[at] = (uint64_t)offset * wire_dtype_bytes(plan->tensor[at].dtype);
}

/* A packed tensor's extents, and those of a call whose gradients fit into it. */
static void random_sides(
    struct dice *random, bool varlen, uint64_t sides[4], struct messages_extents *extents)
{
    for (size_t dim = 0; dim < 4; dim++) {
        sides[dim] = 1 + messages_below(random, dim == 0 ? 4 : 6);
    }
    sides[0] = varlen ? 1 : sides[0];
    uint64_t heads_kv = 1 + messages_below(random, (sides[2] + 1) / 2);
    *extents = (struct messages_extents){
        .batch = 1 + messages_below(random, sides[0]),
        .seqlen_q = 1 + messages_below(random, sides[1]),
        .seqlen_k = 1 + messages_below(random, sides[1]),
        .heads_q = heads_kv * (1 + messages_below(random, sides[2] / heads_kv)),
        .heads_kv = heads_kv,
        .head_dim_qk = 1 + messages_below(random, sides[3]),
        .head_dim_v = 1 + messages_below(random, sides[3]),
    };
}

Test(overlap, parts_of_one_packed_tensor_are_accepted_exactly_if_disjoint)
{
    static const enum wire_role gradients[3] = {WIRE_DQ, WIRE_DK, WIRE_DV};
    struct dice random = messages_seeded("packed gradients");
    size_t apart = 0;
    size_t together = 0;

    for (size_t round = 0; round < 60000; round++) {
        bool varlen = round % 3 == 0;
        uint64_t sides[4];
        struct messages_extents extents;
        struct wire_plan plan;
        struct wire_shape shape;
        struct wire_extent found[WIRE_MAX_TENSORS];
        struct wire_call call;
        struct wire_error error;
        uint64_t region_bytes[WIRE_MAX_TENSORS];
        int64_t strides[4];
        struct box box[3];

        random_sides(&random, varlen, sides, &extents);
        const struct messages_features features = {.packed_q = varlen,
            .packed_k = varlen,
            .total_q = extents.seqlen_q,
            .total_k = extents.seqlen_k};
        messages_featured_plan(&plan, B, WIRE_BF16, &extents, &features);
        cr_assert(validate_plan(&plan, &shape, found, &error));
        uint64_t bytes = messages_call(&plan, found, &call);
        packed_strides(&random, sides, strides);
        for (size_t i = 0; i < 3; i++) {
            const struct wire_tensor *gradient = tensor_of(&plan, gradients[i]);
            box[i].extent[0] = 1;
            memcpy(&box[i].extent[4 - gradient->dims], gradient->shape,
                gradient->dims * sizeof(gradient->shape[0]));
            for (size_t dim = 0; dim < 4; dim++) {
                box[i].begin[dim] = messages_below(&random, sides[dim] - box[i].extent[dim] + 1);
            }
            place_in_box(&plan, &call, gradients[i], &box[i], strides);
        }
        for (uint32_t t = 0; t < plan.tensors; t++) {
            region_bytes[t] =
                call.region[t] == 2 ? 2 * sides[0] * sides[1] * sides[2] * sides[3] : bytes;
        }
        cr_assert(validate_plan(&plan, &shape, found, &error), "%s", error.detail);
        bool expected = !do_boxes_meet(&box[0], &box[1]) && !do_boxes_meet(&box[0], &box[2]) &&
                        !do_boxes_meet(&box[1], &box[2]);
        bool good = validate_call(&plan, found, &call, region_bytes, &error);
        cr_assert_eq(good, expected, "round %zu: %s", round, good ? "accepted" : error.detail);
        apart += expected && varlen;
        together += !expected && varlen;
    }
    cr_expect(apart > 1000 && together > 1000, "%zu and %zu", apart, together);
}

/* dq, dk, dv of shape (batch, seqlen, 3, heads, head_dim) and of GQA's (batch, seqlen, heads, head_dim). */
Test(overlap, the_usual_packed_gradients_are_accepted)
{
    for (uint64_t heads_kv = 1; heads_kv <= 4; heads_kv *= 2) {
        struct messages_extents extents = {2, 6, 6, 4, heads_kv, 8, 8};
        int64_t row = (int64_t)(4 + 2 * heads_kv) * 8;
        const int64_t strides[4] = {6 * row, row, 8, 1};
        const struct box box[3] = {
            {{0, 0, 0, 0}, {0}}, {{0, 0, 4, 0}, {0}}, {{0, 0, 4 + heads_kv, 0}, {0}}};
        struct wire_plan plan;
        struct wire_shape shape;
        struct wire_extent found[WIRE_MAX_TENSORS];
        struct wire_call call;
        struct wire_error error;
        uint64_t region_bytes[WIRE_MAX_TENSORS];

        messages_fixed_plan(&plan, B, WIRE_FP32, &extents);
        cr_assert(validate_plan(&plan, &shape, found, &error));
        uint64_t bytes = messages_call(&plan, found, &call);
        for (uint32_t i = 0; i < 3; i++) {
            place_in_box(&plan, &call, (enum wire_role)(WIRE_DQ + i), &box[i], strides);
        }
        for (uint32_t t = 0; t < plan.tensors; t++) {
            region_bytes[t] = call.region[t] == 2 ? (uint64_t)(4 * 12 * row) : bytes;
        }
        cr_assert(validate_plan(&plan, &shape, found, &error), "%s", error.detail);
        cr_expect(validate_call(&plan, found, &call, region_bytes, &error), "%s", error.detail);

        call.offset[messages_place(&plan, WIRE_DV)] -= 8 * 4; /* one head into dk */
        cr_expect_not(validate_call(&plan, found, &call, region_bytes, &error));
        cr_expect(strstr(error.detail, "dk overlaps dv") != NULL, "%s", error.detail);
    }
}

/* Heads three apart: a shift by two of them meets, though the indices look far from each other. */
Test(overlap, equal_strides_whose_last_is_not_1_prove_nothing)
{
    const struct messages_features features = {.slopes = true, .gradients = true};
    struct messages_extents extents = {2, 1, 1, 4, 1, 8, 8};
    struct wire_plan plan;
    struct wire_shape shape;
    struct wire_extent found[WIRE_MAX_TENSORS];
    struct wire_call call;
    struct wire_error error;
    uint64_t region_bytes[WIRE_MAX_TENSORS];

    messages_featured_plan(&plan, B, WIRE_FP32, &extents, &features);
    uint32_t slopes = messages_place(&plan, WIRE_SLOPES);
    uint32_t gradient = messages_place(&plan, WIRE_DSLOPES);
    for (uint32_t t = slopes; t <= gradient; t++) {
        plan.tensor[t].strides[0] = 12;
        plan.tensor[t].strides[1] = 3;
    }
    cr_assert(validate_plan(&plan, &shape, found, &error), "%s", error.detail);
    uint64_t bytes = messages_call(&plan, found, &call) + 4096;
    for (uint32_t t = 0; t < plan.tensors; t++) {
        region_bytes[t] = bytes;
    }
    call.offset[gradient] = call.offset[slopes] + 2 * 3 * 4;
    cr_expect_not(validate_call(&plan, found, &call, region_bytes, &error));
    cr_expect(strstr(error.detail, "dslopes overlaps slopes") != NULL, "%s", error.detail);
    call.offset[gradient] = call.offset[slopes] + 24 * 4;
    cr_expect(validate_call(&plan, found, &call, region_bytes, &error), "%s", error.detail);
}

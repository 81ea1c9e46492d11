/* libattnd's parts of packed tensors, its checks of lengths, its copies, and how a loss is noted,
 * without a daemon. */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "attnd.h"
#include "clock.h"
#include "elements.h"
#include "lengths.h"
#include "loss.h"
#include "packed.h"

/* ---- Packed tensors ----------------------------------------------------------------------------- */

static float memory[64];

static DLTensor describe(int dims, int64_t *shape, int64_t *strides)
{
    return (DLTensor){.data = memory,
        .device = {kDLCPU, 0},
        .ndim = dims,
        .dtype = {kDLFloat, 32, 1},
        .shape = shape,
        .strides = strides};
}

static void expect_part(const struct packed *packed, size_t part, const void *data, int dims,
    const int64_t *shape, const int64_t *strides)
{
    const DLTensor *tensor = &packed->part[part];
    cr_expect_eq(tensor->data, data, "part %zu", part);
    cr_expect_eq(tensor->byte_offset, 0);
    cr_assert_eq(tensor->ndim, dims);
    for (int dim = 0; dim < dims; dim++) {
        cr_expect_eq(tensor->shape[dim], shape[dim], "part %zu shape[%d]", part, dim);
        cr_expect_eq(tensor->strides[dim], strides[dim], "part %zu strides[%d]", part, dim);
    }
}

Test(client_parts, compact_tensors_are_taken_apart)
{
    struct packed packed;
    struct wire_error error;
    int64_t dense[] = {2, 5, 3, 4, 8};
    DLTensor tensor = describe(5, dense, NULL);
    cr_assert(packed_split("qkv", &tensor, 3, &packed, &error));
    for (size_t i = 0; i < 3; i++) {
        expect_part(
            &packed, i, memory + 32 * i, 4, (int64_t[]){2, 5, 4, 8}, (int64_t[]){480, 96, 8, 1});
    }
    int64_t flat[] = {5, 2, 4, 8};
    tensor = describe(4, flat, NULL);
    tensor.dtype.bits = 16;
    tensor.byte_offset = 8;
    cr_assert(packed_split("kv", &tensor, 2, &packed, &error));
    expect_part(&packed, 0, memory + 2, 3, (int64_t[]){5, 4, 8}, (int64_t[]){64, 8, 1});
    expect_part(&packed, 1, memory + 18, 3, (int64_t[]){5, 4, 8}, (int64_t[]){64, 8, 1});
}

Test(client_parts, any_strides_are_kept)
{
    struct packed packed;
    struct wire_error error;
    int64_t shape[] = {2, 5, 2, 4, 8};
    int64_t strides[] = {7, 100, -16, 0, 1};
    DLTensor tensor = describe(5, shape, strides);
    tensor.byte_offset = 20 * sizeof(float);
    cr_assert(packed_split("kv", &tensor, 2, &packed, &error));
    expect_part(&packed, 0, memory + 20, 4, (int64_t[]){2, 5, 4, 8}, (int64_t[]){7, 100, 0, 1});
    expect_part(&packed, 1, memory + 4, 4, (int64_t[]){2, 5, 4, 8}, (int64_t[]){7, 100, 0, 1});
}

Test(client_parts, without_elements_there_may_be_no_memory)
{
    struct packed packed;
    struct wire_error error;
    int64_t shape[] = {2, 0, 3, 4, 8};
    DLTensor tensor = describe(5, shape, NULL);
    tensor.data = NULL;
    cr_assert(packed_split("qkv", &tensor, 3, &packed, &error));
    cr_expect_null(packed.part[2].data);
}

static void expect_no_split(const DLTensor *tensor, int64_t parts, const char *sentence)
{
    struct packed packed;
    struct wire_error error;
    cr_assert_not(packed_split("kv", tensor, parts, &packed, &error), "%s", sentence);
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    cr_expect_eq(strncmp(error.detail, sentence, strlen(sentence)), 0, "\"%s\", not \"%s\"",
        error.detail, sentence);
}

Test(client_parts, what_cannot_be_taken_apart_is_named)
{
    int64_t shape[] = {2, 5, 2, 4, 8};
    int64_t far[] = {1, 1, INT64_MAX / 4 + 1, 1, 1};
    int64_t further[] = {1, 1, INT64_MIN / 4, 1, 1};
    int64_t vast[] = {2, 5, 2, INT64_MAX, 8};
    DLTensor tensor = describe(5, shape, NULL);
    expect_no_split(NULL, 2, "kv is NULL");
    expect_no_split(&tensor, 3, "kv->shape[2] is 2, but must be 3");
    tensor.ndim = 4;
    expect_no_split(&tensor, 2, "kv->shape[1] is 5, but must be 2");
    tensor.ndim = 3;
    expect_no_split(&tensor, 2, "kv->ndim is 3, neither 5 nor, packed, 4");
    tensor.ndim = 6;
    expect_no_split(&tensor, 2, "kv->ndim is 6");
    tensor = describe(5, NULL, NULL);
    expect_no_split(&tensor, 2, "kv->shape is NULL");
    tensor = describe(5, shape, far);
    expect_no_split(&tensor, 2, "kv->strides[2] is 2305843009213693952, beyond the end");
    tensor = describe(5, shape, further);
    expect_no_split(&tensor, 2, "kv->strides[2] is -2305843009213693952, beyond the end");
    tensor = describe(5, shape, NULL);
    tensor.byte_offset = UINT64_MAX;
    expect_no_split(&tensor, 2, "kv->strides[2] is 32, beyond the end");
    tensor = describe(5, vast, NULL);
    expect_no_split(&tensor, 2, "kv->shape is that of more elements");
}

/* ---- Copies ------------------------------------------------------------------------------------- */

Test(client_parts, a_tensor_without_elements_is_copied_in_no_time, .timeout = 20)
{
    for (int empty = 0; empty < WIRE_MAX_DIMS; empty++) {
        struct wire_tensor tensor = {.dtype = WIRE_FP32,
            .dims = WIRE_MAX_DIMS,
            .shape = {UINT64_C(1) << 24, UINT64_C(1) << 24, UINT64_C(1) << 24, 1}};
        tensor.shape[empty] = 0;
        int64_t begin = clock_now_ns();
        elements_copy(&tensor, NULL, &tensor, NULL);
        cr_expect_lt(clock_now_ns() - begin, 5 * CLOCK_SECOND_NS, "shape[%d] is 0", empty);
    }
}

/* ---- Loss --------------------------------------------------------------------------------------- */

#define LOSSES 100000

static struct loss losses[LOSSES];
static _Atomic int arrived[2];
static _Atomic int unsaid;

/* Both come to each loss at about the same time. */
static void *declare_all(void *own)
{
    size_t me = own == &arrived[1];
    for (int i = 0; i < LOSSES; i++) {
        atomic_store(&arrived[me], i);
        for (int tries = 0; tries < 2000 && atomic_load(&arrived[!me]) < i; tries++) {}
        loss_declare(&losses[i], ATTND_DISCONNECTED, "the daemon has gone");
        if (loss_check(&losses[i]) != ATTND_DISCONNECTED) {
            atomic_fetch_add(&unsaid, 1);
        }
    }
    return NULL;
}

Test(client_parts, whoever_declares_a_loss_finds_it_declared)
{
    pthread_t other;
    cr_assert_eq(pthread_create(&other, NULL, declare_all, &arrived[1]), 0);
    (void)declare_all(&arrived[0]);
    (void)pthread_join(other, NULL);
    cr_expect_eq(atomic_load(&unsaid), 0, "%d of %d", atomic_load(&unsaid), LOSSES);
}

/* ---- Lengths ------------------------------------------------------------------------------------ */

#define BATCH 3
#define NONE INT32_MIN

struct lengths_case {
    const char *sentence; /* NULL: they are right */
    int32_t queries[BATCH + 1];
    int32_t keys[BATCH + 1];
    int32_t lengths[BATCH];
    int64_t longest_q; /* 0: not given */
};

/* 10 rows of queries, 20 of keys; a dense side has 7 keys a sequence. */
static const struct lengths_case cases[] = {
    {NULL, {0, 4, 4, 10}, {0, 0, 20, 20}, {0, 20, 0}, 0},
    {NULL, {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0}, 0},
    {NULL, {2, 4, 5, 8}, {NONE}, {7, 0, 3}, 3},
    {NULL, {NONE}, {1, 5, 5, 19}, {3, 0, 14}, 0},
    {NULL, {0, 1, 2, 10}, {NONE}, {NONE}, 8},
    {"cu_seqlens_q[3] is 7, less than the one before", {0, 4, 9, 7}, {NONE}, {NONE}, 0},
    {"cu_seqlens_q[1] is -1, less than the one before", {0, -1, 4, 10}, {NONE}, {NONE}, 0},
    {"cu_seqlens_q[0] is -3, below 0", {-3, 4, 4, 10}, {NONE}, {NONE}, 0},
    {"cu_seqlens_q[3] is 11, but q has 10 rows", {0, 4, 4, 11}, {NONE}, {NONE}, 0},
    {"cu_seqlens_q[0] is 2147483647, but q has 10 rows", {INT32_MAX, 4, 4, 11}, {NONE}, {NONE}, 0},
    {"cu_seqlens_q[3] is 10, which makes a sequence of 6 rows, more than max_seqlen_q, 5",
        {0, 4, 4, 10}, {NONE}, {NONE}, 5},
    {"cu_seqlens_k[2] is 21, but k has 20 rows", {0, 4, 4, 10}, {0, 0, 21, 21}, {NONE}, 0},
    {"cu_seqlens_k[3] is 2, less", {NONE}, {0, 0, 3, 2}, {NONE}, 0},
    {"seqlens_k[1] is -1, below 0", {NONE}, {NONE}, {0, -1, 0}, 0},
    {"seqlens_k[2] is 8, but the sequence has 7 keys", {NONE}, {NONE}, {0, 7, 8}, 0},
    {"seqlens_k[0] is 5, but the sequence has 4 keys", {NONE}, {0, 4, 10, 20}, {5, 0, 0}, 0},
};

static void add(struct request *request, struct wire_plan *plan, DLTensor *tensor, int64_t *shape,
    enum wire_role role, const int32_t *values)
{
    static int32_t copies[WIRE_ROLE_END][BATCH + 1];

    size_t count = role == WIRE_SEQLENS_K ? BATCH : BATCH + 1;
    if (values[0] == NONE) {
        return;
    }
    memcpy(copies[role], values, count * sizeof *values);
    *shape = (int64_t)count;
    *tensor = (DLTensor){.data = copies[role], .ndim = 1, .shape = shape};
    request->tensor[role] = tensor;
    request->copied |= UINT32_C(1) << role;
    plan->tensor[plan->tensors++] = (struct wire_tensor){.role = role, .dims = 1};
}

static bool check(const struct lengths_case *row, struct wire_error *error)
{
    bool packed_q = row->queries[0] != NONE;
    bool packed_k = row->keys[0] != NONE;
    struct request request = {.direction = ATTND_FORWARD};
    struct wire_plan plan = {.tensors = 2,
        .has_max_seqlen_q = row->longest_q != 0,
        .max_seqlen_q = (uint64_t)row->longest_q,
        .tensor = {{.role = WIRE_Q, .shape = {packed_q ? 10 : BATCH, 10}},
            {.role = WIRE_K, .shape = {packed_k ? 20 : BATCH, 7}}}};
    DLTensor tensor[3];
    int64_t shape[3];
    add(&request, &plan, &tensor[0], &shape[0], WIRE_CU_SEQLENS_Q, row->queries);
    add(&request, &plan, &tensor[1], &shape[1], WIRE_CU_SEQLENS_K, row->keys);
    add(&request, &plan, &tensor[2], &shape[2], WIRE_SEQLENS_K, row->lengths);
    return lengths_check(&request, &plan, error);
}

Test(client_parts, lengths_are_in_order_and_within_the_rows)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *sentence = cases[i].sentence;
        struct wire_error error = {.detail = ""};
        cr_expect_eq(check(&cases[i], &error), sentence == NULL, "case %zu: %s", i, error.detail);
        if (sentence) {
            cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
            cr_expect_eq(strncmp(error.detail, sentence, strlen(sentence)), 0,
                "\"%s\" should begin with \"%s\"", error.detail, sentence);
        }
    }
}

/* Every feature of attention through libattnd and the real daemon. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attnd.h"
#include "client_case.h"
#include "client_set.h"
#include "daemon.h"

static struct daemon daemon_;
static struct attnd *client;

static void start(const char *const *arguments)
{
    cr_assert(daemon_start(&daemon_, arguments));
    client = client_open(&daemon_);
}

static void start_default(void)
{
    start(NULL);
}

static void stop(void)
{
    attnd_close(client);
    cr_expect(daemon_stop(&daemon_));
}

TestSuite(client_features, .init = start_default, .fini = stop);
TestSuite(client_features_limits, .fini = stop);

#define OK(call) cr_assert_eq((call), ATTND_OK, "%s", attnd_message())

static void expect_failure(enum attnd_status got, enum attnd_status status, const char *sentence)
{
    cr_expect_eq(got, status, "%s: %s", attnd_status_name(got), attnd_message());
    cr_expect(strstr(attnd_message(), sentence), "\"%s\" lacks \"%s\"", attnd_message(), sentence);
}

/* ---- Everything, drawn -------------------------------------------------------------------------- */

enum where {
    SHARED,       /* all tensors in memory from attnd_alloc() */
    HOST_LENGTHS, /* but the lengths */
    ELSEWHERE,    /* no tensor */
};

/* Lets the request's lengths lie in ordinary memory. */
static void move_lengths(struct client_case *made, int32_t lengths[3][8])
{
    for (int i = 0; i < 3; i++) {
        DLTensor *tensor = &made->tensor[WIRE_CU_SEQLENS_Q + i];
        if (tensor->ndim > 0) {
            memcpy(&lengths[i][1], tensor->data, (size_t)tensor->shape[0] * sizeof(int32_t));
            tensor->data = lengths[i];
            tensor->byte_offset = sizeof(int32_t);
        }
    }
}

static enum attnd_status submit_by_name(struct client_case *drawn, attnd_ticket *ticket)
{
    const struct attnd_request *r = &drawn->request;
    const struct attnd_gradients gradients = {.size = sizeof gradients,
        .dout = r->dout,
        .dlse = r->dlse,
        .dq = r->dq,
        .dk = r->dk,
        .dv = r->dv,
        .dbias = r->dbias,
        .dslopes = r->dslopes,
        .dsinks = r->dsinks};
    return r->direction == ATTND_FORWARD
               ? attnd_forward(client, NULL, r->q, r->k, r->v, r->out, r->lse, r->options, ticket)
               : attnd_backward(client, NULL, r->q, r->k, r->v, r->out, r->lse, &gradients,
                     r->options, ticket);
}

/* Whether all outputs of a request drawn from the seed are those of the kernels called directly. */
static bool gives_the_same(uint64_t seed, enum where where)
{
    struct rng rng = {seed};
    struct client_case drawn;
    int32_t lengths[3][8];
    void *memory = NULL;
    attnd_ticket ticket;
    client_case_draw(&drawn, &rng);
    client_case_init(&drawn, &rng);
    if (where == ELSEWHERE) {
        memory = malloc(drawn.bytes);
        cr_assert_not_null(memory);
    } else {
        OK(attnd_alloc(client, drawn.bytes, &memory));
    }
    client_case_place(&drawn, memory);
    if (where == HOST_LENGTHS) {
        move_lengths(&drawn, lengths);
    }
    OK(seed % 2 == 0 ? attnd_submit(client, NULL, &drawn.request, 1, &ticket)
                     : submit_by_name(&drawn, &ticket));
    memset(lengths, 0xFF, sizeof lengths); /* they were for the call only */
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    bool same = client_case_equal(&drawn);
    client_case_finish(&drawn);
    if (where == ELSEWHERE) {
        free(memory);
    } else {
        attnd_free(client, memory);
    }
    return same;
}

Test(client_features, all_together_give_the_bits_of_the_kernels)
{
    for (uint64_t seed = 1; seed <= 400; seed++) {
        cr_expect(gives_the_same(seed, SHARED), "seed %llu", (unsigned long long)seed);
    }
}

Test(client_features, lengths_in_ordinary_memory_give_the_same_bits)
{
    for (uint64_t seed = 1001; seed <= 1400; seed++) {
        cr_expect(gives_the_same(seed, HOST_LENGTHS), "seed %llu", (unsigned long long)seed);
    }
}

Test(client_features, tensors_in_ordinary_memory_give_the_same_bits)
{
    for (uint64_t seed = 2001; seed <= 2400; seed++) {
        cr_expect(gives_the_same(seed, ELSEWHERE), "seed %llu", (unsigned long long)seed);
    }
}

/* ---- Packed sequences --------------------------------------------------------------------------- */

#define LENGTHS 4

/* Self-attention over sequences of 30, 0, 50 and 11 rows with padding around them, float32. */
struct batch {
    struct client_case made;
    int32_t offsets[LENGTHS + 1];
};

static const int32_t offsets_[LENGTHS + 1] = {2, 32, 32, 82, 93};

static void make_batch(
    struct batch *batch, enum attnd_direction direction, const struct attnd_options *options)
{
    struct rng rng = {7};
    void *memory;
    batch->made = (struct client_case){.options = *options,
        .shape = {.direction = direction,
            .dtype = {kDLFloat, 32, 1},
            .batch = LENGTHS,
            .rows_q = 97,
            .rows_k = 97,
            .heads_q = 4,
            .heads_kv = 2,
            .dim = 24,
            .dim_v = 24,
            .packed_q = true,
            .packed_k = true,
            .rows = true}};
    memcpy(batch->offsets, offsets_, sizeof batch->offsets);
    client_case_init(&batch->made, &rng);
    memcpy(client_case_twin(&batch->made, WIRE_CU_SEQLENS_Q), offsets_, sizeof offsets_);
    memcpy(client_case_twin(&batch->made, WIRE_CU_SEQLENS_K), offsets_, sizeof offsets_);
    OK(attnd_alloc(client, batch->made.bytes, &memory));
    client_case_place(&batch->made, memory);
}

static void drop_batch(struct batch *batch)
{
    attnd_free(client, batch->made.memory);
    client_case_finish(&batch->made);
}

static float *rows_of(const struct batch *batch, enum wire_role role, int64_t row)
{
    const DLTensor *tensor = &batch->made.tensor[role];
    return (float *)tensor->data + row * tensor->shape[1] * tensor->shape[2];
}

/* One sequence alone, dense, where it lies in the packed tensors of another batch. */
static void compute_alone(struct batch *batch, int b, attnd_ticket *ticket)
{
    DLTensor tensor[WIRE_DV + 1];
    int64_t shape[WIRE_DV + 1][4];
    int64_t strides[WIRE_DV + 1][4];
    int32_t begin = batch->offsets[b];
    int64_t rows = batch->offsets[b + 1] - begin;
    for (enum wire_role role = WIRE_Q; role <= WIRE_DV; role++) {
        tensor[role] = batch->made.tensor[role];
        const int64_t *packed = tensor[role].shape;
        if (tensor[role].ndim == 0) {
            continue;
        }
        bool is_lse = tensor[role].ndim == 2;
        memcpy(shape[role],
            is_lse ? (int64_t[]){1, packed[0], rows, 0}
                   : (int64_t[]){1, rows, packed[1], packed[2]},
            sizeof shape[role]);
        memcpy(strides[role],
            is_lse ? (int64_t[]){0, packed[1], 1, 0}
                   : (int64_t[]){0, packed[1] * packed[2], packed[2], 1},
            sizeof strides[role]);
        tensor[role].ndim++;
        tensor[role].byte_offset =
            (uint64_t)begin * sizeof(float) * (is_lse ? 1 : (uint64_t)(packed[1] * packed[2]));
        tensor[role].shape = shape[role];
        tensor[role].strides = strides[role];
    }
    struct attnd_options options = batch->made.options;
    options.cu_seqlens_q = NULL;
    options.cu_seqlens_k = NULL;
    options.max_seqlen_q = 0;
    options.max_seqlen_k = 0;
    const struct attnd_gradients gradients = {.size = sizeof gradients,
        .dout = &tensor[WIRE_DOUT],
        .dlse = &tensor[WIRE_DLSE],
        .dq = &tensor[WIRE_DQ],
        .dk = &tensor[WIRE_DK],
        .dv = &tensor[WIRE_DV]};
    OK(batch->made.shape.direction == ATTND_FORWARD
            ? attnd_forward(client, NULL, &tensor[WIRE_Q], &tensor[WIRE_K], &tensor[WIRE_V],
                  &tensor[WIRE_OUT], &tensor[WIRE_LSE], &options, ticket)
            : attnd_backward(client, NULL, &tensor[WIRE_Q], &tensor[WIRE_K], &tensor[WIRE_V],
                  &tensor[WIRE_OUT], &tensor[WIRE_LSE], &gradients, &options, ticket));
}

/* How many rows of sequences differ, and of padding are not 0. */
static size_t wrong_rows(const struct batch *a, const struct batch *b, enum wire_role role)
{
    size_t wrong = 0;
    for (int64_t row = 0; row < a->made.shape.rows_q; row++) {
        bool padding = row < offsets_[0] || row >= offsets_[LENGTHS];
        const DLTensor *tensor = &a->made.tensor[role];
        size_t bytes = (size_t)(tensor->shape[1] * tensor->shape[2]) * sizeof(float);
        const float *at = rows_of(a, role, row);
        bool right = padding || memcmp(at, rows_of(b, role, row), bytes) == 0;
        for (size_t i = 0; padding && i < bytes / sizeof(float); i++) {
            right = right && at[i] == 0.0F;
        }
        wrong += !right;
    }
    return wrong;
}

static size_t wrong_packed_rows(enum attnd_direction direction, const struct attnd_options *options)
{
    size_t wrong;
    struct batch packed;
    struct batch alone;
    attnd_ticket ticket;
    make_batch(&packed, direction, options);
    make_batch(&alone, direction, options);
    OK(attnd_submit(client, NULL, &packed.made.request, 1, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    for (int b = 0; b < LENGTHS; b++) {
        compute_alone(&alone, b, &ticket);
    }
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    if (direction == ATTND_FORWARD) {
        wrong = wrong_rows(&packed, &alone, WIRE_OUT);
    } else {
        wrong = wrong_rows(&packed, &alone, WIRE_DQ) + wrong_rows(&packed, &alone, WIRE_DK) +
                wrong_rows(&packed, &alone, WIRE_DV);
    }
    drop_batch(&packed);
    drop_batch(&alone);
    return wrong;
}

Test(client_features, packed_sequences_are_computed_like_each_alone)
{
    struct attnd_options options = ATTND_OPTIONS_INIT;
    cr_expect_eq(wrong_packed_rows(ATTND_FORWARD, &options), 0);
    cr_expect_eq(wrong_packed_rows(ATTND_BACKWARD, &options), 0);
    options.causal = true;
    options.window_left = 9;
    options.max_seqlen_q = 50;
    options.max_seqlen_k = 60;
    cr_expect_eq(wrong_packed_rows(ATTND_FORWARD, &options), 0);
    cr_expect_eq(wrong_packed_rows(ATTND_BACKWARD, &options), 0);
}

/* ---- Lengths in ordinary memory ----------------------------------------------------------------- */

/* Behind a request that takes its time, two calls with lengths that are overwritten at once. */
Test(client_features, a_call_does_not_wait_for_its_lengths)
{
    struct batch batch[2];
    struct client_set busy;
    struct attnd_options options = ATTND_OPTIONS_INIT;
    attnd_ticket before;
    attnd_ticket ticket;
    int32_t lengths[3][8];
    make_batch(&batch[0], ATTND_FORWARD, &options);
    make_batch(&batch[1], ATTND_FORWARD, &options);
    ((int32_t *)client_case_twin(&batch[1].made, WIRE_CU_SEQLENS_K))[1] = 20;
    ((int32_t *)batch[1].made.tensor[WIRE_CU_SEQLENS_K].data)[1] = 20;
    client_set_alloc(&busy, client, 1, 4096, 4, 64);
    OK(client_set_forward(&busy, client, NULL, NULL, &before));
    for (int i = 0; i < 2; i++) {
        move_lengths(&batch[i].made, lengths);
        OK(attnd_submit(client, NULL, &batch[i].made.request, 1, &ticket));
        memset(lengths, 0x55, sizeof lengths);
    }
    expect_failure(attnd_wait(client, ticket, 0), ATTND_TIMED_OUT, "not ended");
    expect_failure(attnd_wait(client, before, 0), ATTND_TIMED_OUT, "not ended");
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    for (int i = 0; i < 2; i++) {
        cr_expect(client_case_equal(&batch[i].made), "%d", i);
        drop_batch(&batch[i]);
    }
}

Test(client_features, copies_of_lengths_are_given_back_in_time)
{
    struct batch batch;
    struct attnd_options options = ATTND_OPTIONS_INIT;
    int32_t lengths[3][8];
    make_batch(&batch, ATTND_FORWARD, &options);
    move_lengths(&batch.made, lengths);
    for (int i = 0; i < 40000; i++) {
        OK(attnd_submit(client, (void *)(uintptr_t)(i % 3), &batch.made.request, 1, NULL));
    }
    cr_expect_leq(client_stats(client).client.region_bytes, 4 << 20);
    drop_batch(&batch);
    cr_expect_eq(client_stats(client).client.failed, 0);
}

Test(client_features_limits, where_copies_have_no_room_a_call_waits_for_it)
{
    enum { SEQUENCES = 8192 };

    static int32_t offsets[SEQUENCES + 1];
    struct client_set set;
    attnd_ticket ticket;
    int64_t count = SEQUENCES + 1;
    int64_t shape[] = {64, 2, 16};
    start((const char *const[]){"--max-regions=2", "--region-bytes=2M", NULL});
    client_set_alloc(&set, client, 1, 64, 2, 16);
    for (size_t i = 0; i < 4; i++) {
        set.tensor[i].ndim = 3;
        set.tensor[i].shape = shape;
    }
    for (int i = 1; i <= SEQUENCES; i++) {
        offsets[i] = 64;
    }
    const DLTensor lengths = {.data = offsets,
        .device = {kDLCPU, 0},
        .ndim = 1,
        .dtype = {kDLInt, 32, 1},
        .shape = &count};
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.cu_seqlens_q = &lengths;
    options.cu_seqlens_k = &lengths;
    const DLTensor *t = set.tensor;
    for (int i = 0; i < 150; i++) {
        OK(attnd_forward(client, (void *)(uintptr_t)(i % 4), &t[CLIENT_Q], &t[CLIENT_K],
            &t[CLIENT_V], &t[CLIENT_OUT], NULL, &options, &ticket));
    }
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    cr_expect_leq(client_stats(client).client.regions, 2);
}

Test(client_features, lengths_that_make_no_sense_are_refused_or_cut)
{
    struct batch batch;
    struct attnd_options options = ATTND_OPTIONS_INIT;
    attnd_ticket ticket = 5;
    int32_t lengths[3][8];
    make_batch(&batch, ATTND_FORWARD, &options);
    int32_t *twin = client_case_twin(&batch.made, WIRE_CU_SEQLENS_K);
    int32_t *shared = batch.made.tensor[WIRE_CU_SEQLENS_K].data;
    twin[3] = 20;
    twin[4] = INT32_MAX;
    memcpy(shared, twin, sizeof offsets_);
    OK(attnd_submit(client, NULL, &batch.made.request, 1, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    cr_expect(client_case_equal(&batch.made));

    ticket = 5;
    move_lengths(&batch.made, lengths);
    struct attnd_request requests[] = {batch.made.request, batch.made.request};
    expect_failure(attnd_submit(client, NULL, requests, 2, &ticket), ATTND_INVALID_ARGUMENT,
        "requests[0].options->cu_seqlens_k[3] is 20, less than the one before");
    lengths[1][4] = 40;
    const DLTensor *t = batch.made.tensor;
    expect_failure(attnd_forward(client, NULL, &t[WIRE_Q], &t[WIRE_K], &t[WIRE_V], &t[WIRE_OUT],
                       NULL, &batch.made.options, &ticket),
        ATTND_INVALID_ARGUMENT, "options->cu_seqlens_k[4] is 2147483647, but k has 97 rows");
    cr_expect_eq(ticket, 5);
    cr_expect_eq(client_stats(client).client.requests, 1);
    drop_batch(&batch);
}

/* ---- Dropout ------------------------------------------------------------------------------------ */

#define KEYS 64

/* Philox4x32-10, from its paper. */
static void philox(uint64_t key, uint32_t counter[4])
{
    uint32_t k0 = (uint32_t)key;
    uint32_t k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * counter[0];
        uint64_t b = UINT64_C(0xCD9E8D57) * counter[2];
        const uint32_t next[] = {(uint32_t)(b >> 32) ^ counter[1] ^ k0, (uint32_t)b,
            (uint32_t)(a >> 32) ^ counter[3] ^ k1, (uint32_t)a};
        memcpy(counter, next, sizeof next);
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
}

/* As attnd.h describes it. */
static bool is_kept(const struct attnd_options *options, uint32_t head, uint32_t i, uint32_t j)
{
    uint32_t counter[] = {
        (i >> 4) * 8 + (i & 7), (j >> 4) * 4 + ((j & 7) >> 1), head, options->dropout_offset};
    uint32_t number = 4 * (i >> 3 & 1) + 2 * (j >> 3 & 1) + (j & 1);
    philox(options->dropout_seed, counter);
    uint32_t value = counter[number / 2] >> 16 * (number % 2) & 0xFFFF;
    return (float)value >= roundf(65536 * options->dropout_p);
}

/* Equal keys make equal weights, and values that are unit vectors show each weight. */
static void make_visible(struct client_set *set)
{
    client_set_alloc(set, client, 2, KEYS, 3, KEYS);
    float *values = client_set_data(set, CLIENT_V);
    memset(client_set_data(set, CLIENT_K), 0, set->bytes);
    memset(values, 0, set->bytes);
    for (size_t b = 0; b < 2; b++) {
        for (size_t j = 0; j < KEYS; j++) {
            for (size_t h = 0; h < 3; h++) {
                values[((b * KEYS + j) * 3 + h) * KEYS + j] = KEYS;
            }
        }
    }
}

static size_t count_wrong(const struct client_set *set, const struct attnd_options *options)
{
    const float *out = client_set_data(set, CLIENT_OUT);
    float kept = 1 / (1 - roundf(65536 * options->dropout_p) / 65536);
    size_t wrong = 0;
    for (uint32_t b = 0; b < 2; b++) {
        for (uint32_t i = 0; i < KEYS; i++) {
            for (uint32_t h = 0; h < 3; h++) {
                for (uint32_t j = 0; j < KEYS; j++) {
                    float expected = is_kept(options, b * 3 + h, i, j) ? kept : 0;
                    float got = out[((b * KEYS + i) * 3 + h) * KEYS + j];
                    wrong += fabsf(got - expected) > 1e-5F;
                }
            }
        }
    }
    return wrong;
}

Test(client_features, the_dropout_mask_is_the_documented_one)
{
    struct client_set set;
    struct attnd_options options = ATTND_OPTIONS_INIT;
    make_visible(&set);
    options.dropout_p = 0.3F;
    for (int round = 0; round < 3; round++) {
        attnd_ticket ticket;
        options.dropout_seed = UINT64_C(0x123456789ABCDEF) * (uint64_t)(round + 1);
        options.dropout_offset = 0x80000001U + (uint32_t)round;
        OK(client_set_forward(&set, client, NULL, &options, &ticket));
        OK(attnd_wait(client, ticket, ATTND_FOREVER));
        cr_expect_eq(count_wrong(&set, &options), 0);
    }
    cr_expect_eq(client_stats(client).client.plans, 1, "a mask needs no plan of its own");
    options.dropout_offset++;
    cr_expect_gt(count_wrong(&set, &options), 1000, "another offset is another mask");
    options.dropout_offset--;
    options.dropout_seed++;
    cr_expect_gt(count_wrong(&set, &options), 1000, "another seed is another mask");
}

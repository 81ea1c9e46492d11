/* k and v, or q, k and v, in one tensor: the same bits as from three. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "attnd.h"
#include "client_set.h"
#include "daemon.h"

#define BATCH 3
#define ROWS 20
#define HEADS 4
#define DIM 24
#define TOKENS (BATCH * ROWS)

static struct daemon daemon_;
static struct attnd *client;

static void start(void)
{
    cr_assert(daemon_start(&daemon_, NULL));
    client = client_open(&daemon_);
}

static void stop(void)
{
    attnd_close(client);
    cr_expect(daemon_stop(&daemon_));
}

TestSuite(client_forms, .init = start, .fini = stop);

#define OK(call) cr_assert_eq((call), ATTND_OK, "%s", attnd_message())

static void expect_failure(enum attnd_status got, enum attnd_status status, const char *sentence)
{
    cr_expect_eq(got, status, "%s: %s", attnd_status_name(got), attnd_message());
    cr_expect(strstr(attnd_message(), sentence), "\"%s\" lacks \"%s\"", attnd_message(), sentence);
}

/* The last `parts` of three tensors of a set as one, and room for their gradients. */
struct together {
    int parts;
    int64_t shape[5];
    DLTensor inputs;
    DLTensor gradients;
    float *memory; /* of both */
    bool shared;
};

static size_t part_at(const struct together *all, int part, size_t token)
{
    return (token * (size_t)all->parts + (size_t)part) * HEADS * DIM;
}

static void join(
    struct together *all, const struct client_set *set, int parts, bool packed, bool shared)
{
    size_t elements = (size_t)parts * TOKENS * HEADS * DIM;
    *all = (struct together){.parts = parts, .shared = shared};
    if (shared) {
        OK(attnd_alloc(client, 2 * elements * sizeof(float), (void **)&all->memory));
    } else {
        all->memory = calloc(2 * elements, sizeof(float));
        cr_assert_not_null(all->memory);
    }
    const int64_t shape[] = {BATCH, ROWS, parts, HEADS, DIM};
    memcpy(all->shape, shape, sizeof shape);
    all->shape[packed] = packed ? TOKENS : all->shape[packed];
    all->inputs = set->tensor[CLIENT_Q];
    all->inputs.data = all->memory;
    all->inputs.ndim = 5 - packed;
    all->inputs.shape = all->shape + packed;
    all->gradients = all->inputs;
    all->gradients.data = all->memory + elements;
    for (int part = 0; part < parts; part++) {
        const float *from = client_set_data(set, (enum client_tensor)(CLIENT_V + 1 - parts + part));
        for (size_t token = 0; token < TOKENS; token++) {
            memcpy(all->memory + part_at(all, part, token), from + token * HEADS * DIM,
                HEADS * DIM * sizeof(float));
        }
    }
}

static void part_with(struct together *all)
{
    if (all->shared) {
        attnd_free(client, all->memory);
    } else {
        free(all->memory);
    }
}

static void expect_gradients(const struct together *all, const struct client_set *set)
{
    const float *got = all->gradients.data;
    for (int part = 0; part < all->parts; part++) {
        const float *expected =
            client_set_data(set, (enum client_tensor)(CLIENT_DV + 1 - all->parts + part));
        for (size_t token = 0; token < TOKENS; token++) {
            cr_assert_eq(memcmp(got + part_at(all, part, token), expected + token * HEADS * DIM,
                             HEADS * DIM * sizeof(float)),
                0, "part %d of %d, token %zu", part, all->parts, token);
        }
    }
}

/* Takes the batch dimension away. */
static void pack(struct client_set *set)
{
    set->shape[1] = TOKENS;
    set->row_shape[1] = HEADS;
    set->row_shape[2] = TOKENS;
    for (size_t i = 0; i < CLIENT_TENSORS; i++) {
        set->tensor[i].ndim--;
        set->tensor[i].shape++;
    }
}

static void make_set(struct client_set *set, bool packed)
{
    client_set_alloc(set, client, BATCH, ROWS, HEADS, DIM);
    set->gradients.dlse = &set->tensor[CLIENT_DLSE];
    if (packed) {
        pack(set);
    }
}

static void forward(
    struct client_set *set, const struct together *all, const struct attnd_options *options)
{
    const DLTensor *t = set->tensor;
    attnd_ticket ticket;
    OK(all->parts == 2 ? attnd_forward_kvpacked(client, NULL, &t[CLIENT_Q], &all->inputs,
                             &t[CLIENT_OUT], &t[CLIENT_LSE], options, &ticket)
                       : attnd_forward_qkvpacked(client, NULL, &all->inputs, &t[CLIENT_OUT],
                             &t[CLIENT_LSE], options, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
}

static void backward(
    struct client_set *set, const struct together *all, const struct attnd_options *options)
{
    const DLTensor *t = set->tensor;
    attnd_ticket ticket;
    struct attnd_gradients gradients = {.size = sizeof gradients,
        .dout = &t[CLIENT_DOUT],
        .dlse = &t[CLIENT_DLSE],
        .dq = all->parts == 2 ? &t[CLIENT_DQ] : NULL};
    OK(all->parts == 2
            ? attnd_backward_kvpacked(client, NULL, &t[CLIENT_Q], &all->inputs, &t[CLIENT_OUT],
                  &t[CLIENT_LSE], &all->gradients, &gradients, options, &ticket)
            : attnd_backward_qkvpacked(client, NULL, &all->inputs, &t[CLIENT_OUT], &t[CLIENT_LSE],
                  &all->gradients, &gradients, options, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
}

/* Whether outputs and gradients of joined tensors are those of separate ones. */
static bool gives_the_same(int parts, bool packed, bool shared)
{
    static int32_t offsets[] = {1, 26, 26, 55};

    int64_t count = BATCH + 1;
    const DLTensor lengths = {.data = offsets,
        .device = {kDLCPU, 0},
        .ndim = 1,
        .dtype = {kDLInt, 32, 1},
        .shape = &count};
    struct attnd_options options = ATTND_OPTIONS_INIT;
    struct client_set separate;
    struct client_set joined;
    struct together all;
    options.causal = true;
    options.cu_seqlens_q = packed ? &lengths : NULL;
    options.cu_seqlens_k = packed ? &lengths : NULL;
    make_set(&separate, packed);
    make_set(&joined, packed);
    join(&all, &joined, parts, packed, shared);
    memset(client_set_data(&joined, CLIENT_OUT), 0xFF, joined.bytes);
    OK(client_set_forward(&separate, client, NULL, &options, NULL));
    OK(client_set_backward(&separate, client, NULL, &options, NULL));
    if (parts == 3) {
        options.cu_seqlens_k = NULL; /* those of the queries will do */
    }
    forward(&joined, &all, &options);
    backward(&joined, &all, &options);

    static const enum client_tensor apart[] = {CLIENT_OUT, CLIENT_LSE, CLIENT_DQ};

    bool same = true;
    for (size_t i = 0; i < (parts == 2 ? 3 : 2); i++) {
        same = same && memcmp(client_set_data(&separate, apart[i]),
                           client_set_data(&joined, apart[i]), separate.bytes) == 0;
    }
    expect_gradients(&all, &separate);
    part_with(&all);
    return same;
}

Test(client_forms, one_tensor_gives_the_bits_of_three)
{
    for (int parts = 2; parts <= 3; parts++) {
        for (int i = 0; i < 4; i++) {
            cr_expect(gives_the_same(parts, i & 1, i & 2), "%d parts, case %d", parts, i);
        }
    }
}

Test(client_forms, what_is_wrong_is_named)
{
    struct client_set set;
    struct together kv;
    struct together qkv;
    make_set(&set, false);
    join(&kv, &set, 2, false, true);
    join(&qkv, &set, 3, false, true);
    const DLTensor *t = set.tensor;
    struct attnd_options options = ATTND_OPTIONS_INIT;
    struct attnd_gradients gradients = set.gradients;
    expect_failure(attnd_forward_kvpacked(
                       client, NULL, &t[CLIENT_Q], &qkv.inputs, &t[CLIENT_OUT], NULL, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "kv->shape[2] is 3, but must be 2");
    expect_failure(attnd_forward_qkvpacked(client, NULL, NULL, &t[CLIENT_OUT], NULL, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "qkv is NULL");
    expect_failure(
        attnd_forward_kvpacked(client, NULL, NULL, &kv.inputs, &t[CLIENT_OUT], NULL, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "q is NULL");
    expect_failure(attnd_backward_kvpacked(client, NULL, &t[CLIENT_Q], &kv.inputs, &t[CLIENT_OUT],
                       &t[CLIENT_LSE], &kv.gradients, &gradients, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "gradients->dk is given, but lies in dkv");
    gradients.dk = NULL;
    expect_failure(attnd_backward_kvpacked(client, NULL, &t[CLIENT_Q], &kv.inputs, &t[CLIENT_OUT],
                       &t[CLIENT_LSE], &kv.gradients, &gradients, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "gradients->dv is given, but lies in dkv");
    gradients.dv = NULL;
    expect_failure(attnd_backward_kvpacked(client, NULL, &t[CLIENT_Q], &kv.inputs, &t[CLIENT_OUT],
                       &t[CLIENT_LSE], NULL, &gradients, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "dkv is NULL");
    expect_failure(attnd_backward_qkvpacked(client, NULL, &qkv.inputs, &t[CLIENT_OUT],
                       &t[CLIENT_LSE], &qkv.gradients, &gradients, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "gradients->dq is given, but lies in dqkv");
    expect_failure(attnd_backward_qkvpacked(client, NULL, &qkv.inputs, &t[CLIENT_OUT],
                       &t[CLIENT_LSE], &qkv.gradients, NULL, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "gradients is NULL");
    expect_failure(attnd_backward_qkvpacked(client, NULL, &qkv.inputs, &t[CLIENT_OUT],
                       &t[CLIENT_LSE], &qkv.inputs,
                       &(struct attnd_gradients){.size = sizeof gradients, .dout = &t[CLIENT_DOUT]},
                       NULL, NULL),
        ATTND_INVALID_ARGUMENT, "dq overlaps q");
    options.size = 3;
    expect_failure(
        attnd_forward_qkvpacked(client, NULL, &qkv.inputs, &t[CLIENT_OUT], NULL, &options, NULL),
        ATTND_INVALID_ARGUMENT, "options->size is 3");
    expect_failure(
        attnd_forward_qkvpacked(NULL, NULL, &qkv.inputs, &t[CLIENT_OUT], NULL, NULL, NULL),
        ATTND_INVALID_ARGUMENT, "client is NULL");
    cr_expect_eq(client_stats(client).client.requests, 0);
}

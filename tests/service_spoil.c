#include "service_spoil.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Each spoils a forward request of compact tensors with 2 heads or more and 2 rows or more. */

static void too_many_kv_heads(struct service_case *drawn)
{
    drawn->tensor[CASE_K].shape[2] = drawn->tensor[CASE_Q].shape[2] + 1;
    drawn->tensor[CASE_V].shape[2] = drawn->tensor[CASE_Q].shape[2] + 1;
}

static void other_head_dim(struct service_case *drawn)
{
    drawn->tensor[CASE_K].shape[3]++;
}

static void too_large_head_dim(struct service_case *drawn)
{
    drawn->tensor[CASE_Q].shape[3] = 257;
    drawn->tensor[CASE_K].shape[3] = 257;
}

static void negative_extent(struct service_case *drawn)
{
    drawn->tensor[CASE_V].shape[1] = -1;
}

static void spread_last_dimension(struct service_case *drawn)
{
    drawn->tensor[CASE_Q].strides[3] = 2;
    drawn->tensor[CASE_Q].dl.strides = drawn->tensor[CASE_Q].strides;
}

static void output_over_input(struct service_case *drawn)
{
    drawn->tensor[CASE_OUT].dl.data = drawn->tensor[CASE_Q].dl.data;
    drawn->tensor[CASE_OUT].dl.byte_offset = drawn->tensor[CASE_Q].dl.byte_offset;
}

static void output_over_itself(struct service_case *drawn)
{
    drawn->tensor[CASE_OUT].strides[1] = 0;
    drawn->tensor[CASE_OUT].dl.strides = drawn->tensor[CASE_OUT].strides;
}

static void other_type(struct service_case *drawn)
{
    drawn->tensor[CASE_V].dl.dtype = (DLDataType){kDLInt, 32, 1};
}

static void vector_type(struct service_case *drawn)
{
    drawn->tensor[CASE_Q].dl.dtype.lanes = 4;
}

static void odd_address(struct service_case *drawn)
{
    drawn->tensor[CASE_K].dl.byte_offset++;
}

static void beyond_its_memory(struct service_case *drawn)
{
    drawn->tensor[CASE_Q].shape[1] += 1 << 20;
    drawn->tensor[CASE_OUT].shape[1] += 1 << 20;
}

static void span_that_overflows(struct service_case *drawn)
{
    drawn->tensor[CASE_Q].strides[1] = INT64_MAX;
    drawn->tensor[CASE_Q].dl.strides = drawn->tensor[CASE_Q].strides;
}

static void too_few_dimensions(struct service_case *drawn)
{
    drawn->tensor[CASE_OUT].dl.ndim = 3;
}

static void no_keys(struct service_case *drawn)
{
    drawn->request.k = NULL;
}

static void no_direction(struct service_case *drawn)
{
    drawn->request.direction = (enum attnd_direction)7;
}

static void gradient_in_forward(struct service_case *drawn)
{
    drawn->request.dq = drawn->request.q;
}

static void infinite_scale(struct service_case *drawn)
{
    drawn->options.scale = INFINITY;
}

static void negative_window(struct service_case *drawn)
{
    drawn->options.window_left = -5;
}

static void no_alignment(struct service_case *drawn)
{
    drawn->options.alignment = (enum attnd_alignment)9;
}

static void no_size(struct service_case *drawn)
{
    drawn->request.size = 0;
}

static const struct {
    void (*spoil)(struct service_case *drawn);
    enum attnd_status status;
    const char *named; /* the sentence must have this */
    const char *what;
} kinds[] = {
    {too_many_kv_heads, ATTND_INVALID_ARGUMENT, "k->shape",
        "kv heads that do not divide the heads"},
    {other_head_dim, ATTND_INVALID_ARGUMENT, "shape[3]", "two head dims"},
    {too_large_head_dim, ATTND_INVALID_ARGUMENT, "head_dim", "a head dim over the limit"},
    {negative_extent, ATTND_INVALID_ARGUMENT, "v->shape", "a negative extent"},
    {spread_last_dimension, ATTND_INVALID_ARGUMENT, "q->strides[3]", "a last stride of 2"},
    {output_over_input, ATTND_INVALID_ARGUMENT, "out", "an output in an input's place"},
    {output_over_itself, ATTND_INVALID_ARGUMENT, "out->strides", "an output that overlaps itself"},
    {other_type, ATTND_UNSUPPORTED, "v->dtype", "integers"},
    {vector_type, ATTND_INVALID_ARGUMENT, "q->dtype", "vectors as elements"},
    {odd_address, ATTND_INVALID_ARGUMENT, "k", "an element at an odd address"},
    {beyond_its_memory, ATTND_INVALID_ARGUMENT, "", "a tensor that reaches beyond its memory"},
    {span_that_overflows, ATTND_INVALID_ARGUMENT, "q->strides", "a span that overflows"},
    {too_few_dimensions, ATTND_INVALID_ARGUMENT, "out", "three dimensions"},
    {no_keys, ATTND_INVALID_ARGUMENT, "k", "no keys"},
    {no_direction, ATTND_INVALID_ARGUMENT, "direction", "no direction"},
    {gradient_in_forward, ATTND_INVALID_ARGUMENT, "dq", "a gradient in a forward"},
    {infinite_scale, ATTND_INVALID_ARGUMENT, "scale", "an infinite scale"},
    {negative_window, ATTND_INVALID_ARGUMENT, "window_left", "a negative window"},
    {no_alignment, ATTND_INVALID_ARGUMENT, "alignment", "no alignment"},
    {no_size, ATTND_INVALID_ARGUMENT, "size", "no size"},
};

static bool fits(const struct service_case *drawn)
{
    const struct case_tensor *q = &drawn->tensor[CASE_Q];
    const struct case_tensor *k = &drawn->tensor[CASE_K];
    bool compact = true;
    for (int role = CASE_Q; role <= CASE_OUT; role++) {
        compact = compact && drawn->tensor[role].dl.strides == NULL;
    }
    return compact && drawn->request.direction == ATTND_FORWARD &&
           !drawn->tensor[CASE_LSE].present && q->shape[0] > 0 && q->shape[1] > 1 &&
           q->shape[2] > 1 && k->shape[1] > 1 && q->shape[3] > 1 &&
           drawn->tensor[CASE_V].shape[3] > 1;
}

static void draw_fitting(struct service_case *drawn, struct rng *rng)
{
    case_draw(drawn, rng, 24);
    while (!fits(drawn)) {
        case_finish(drawn);
        case_draw(drawn, rng, 24);
    }
}

static bool is_refused(enum attnd_status status, size_t kind)
{
    if (status != kinds[kind].status || strstr(attnd_message(), kinds[kind].named) == NULL ||
        strlen(attnd_message()) < 10) {
        (void)fprintf(stderr, "service_spoil: %s: %s, \"%s\"\n", kinds[kind].what,
            attnd_status_name(status), attnd_message());
        return false;
    }
    return true;
}

bool spoil_and_submit(struct attnd *client, struct rng *rng, size_t kind)
{
    struct service_case drawn[2];
    struct attnd_request requests[2];
    void *memory = NULL;
    kind %= sizeof kinds / sizeof *kinds;
    draw_fitting(&drawn[0], rng);
    draw_fitting(&drawn[1], rng);
    if (attnd_alloc(client, drawn[0].bytes + drawn[1].bytes, &memory) != ATTND_OK) {
        return false;
    }
    case_place(&drawn[0], rng, memory);
    case_place(&drawn[1], rng, (uint8_t *)memory + drawn[0].bytes);
    kinds[kind].spoil(&drawn[1]);
    requests[0] = drawn[0].request;
    requests[1] = drawn[1].request;
    size_t first = rng_one_in(rng, 2) ? 0 : 1;
    attnd_ticket ticket = 0;
    bool good =
        is_refused(attnd_submit(client, NULL, requests + first, 2 - first, &ticket), kind) &&
        ticket == 0 && case_equal(&drawn[0]) && case_equal(&drawn[1]);
    attnd_free(client, memory);
    case_finish(&drawn[0]);
    case_finish(&drawn[1]);
    return good;
}

/*
 * The example trainer's own check of requests: it passes what the daemon computes, sees one wrong
 * number in any output, and is drawn exactly once in every so many requests.
 */
#include "attention.h"
#include "daemon.h"
#include "exact.h"
#include "rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    SEED = 7,
    EVERY = 25,
    ROUNDS = 20,
};

static const struct tensor_shape SHAPE = {
    .batch = 2, .seqlen = 33, .heads_q = 4, .heads_kv = 2, .head_dim = 16};

static int failures;

static void expect(bool good, const char *claim)
{
    if (!good) {
        fprintf(stderr, "not so: %s\n", claim);
        failures++;
    }
}

static void fill(struct rng *rng, float *numbers, size_t count, double deviation)
{
    for (size_t i = 0; i < count; i++) {
        numbers[i] = (float)(rng_normal(rng) * deviation);
    }
}

/* Makes one number wrong by a thousandth of the largest, looks, and puts it back. */
static bool sees(struct exact *exact, bool backward, float *numbers, size_t count, size_t at)
{
    float largest = 0.0F;
    for (size_t i = 0; i < count; i++) {
        largest = fmaxf(largest, fabsf(numbers[i]));
    }
    float right = numbers[at];
    numbers[at] = right + largest * 1e-3F;
    bool seen = !exact_check(exact, backward, 0);
    numbers[at] = NAN;
    seen = !exact_check(exact, backward, 0) && seen;
    numbers[at] = right;
    return seen && exact_check(exact, backward, 0);
}

/* The gradient of a mean over many tokens is tiny; the check must have teeth there too. */
static void check_outputs(struct attention *attention, struct exact *exact)
{
    size_t tokens = SHAPE.batch * SHAPE.seqlen;
    size_t qkv = tokens * tensor_qkv_width(&SHAPE);
    size_t out = tokens * tensor_out_width(&SHAPE);
    const struct attention_layer *layer = attention_get_layer(attention, 0);
    struct rng rng;
    rng_init(&rng, SEED);
    fill(&rng, layer->qkv, qkv, 1.0);
    fill(&rng, attention_dout(attention), out, 1e-6);

    expect(attention_forward(attention, 0), "the forward runs");
    expect(exact_check(exact, false, 0), "the daemon's forward passes");
    expect(sees(exact, false, layer->out, out, out / 3), "a wrong out is seen");
    expect(sees(exact, false, layer->lse, tokens * SHAPE.heads_q, 5), "a wrong lse is seen");

    expect(attention_backward_begin(attention, 0) && attention_backward_end(attention),
        "the backward runs");
    expect(exact_check(exact, true, 0), "the daemon's backward passes");
    size_t row = tokens / 2 * tensor_qkv_width(&SHAPE);
    size_t dk = SHAPE.heads_q * SHAPE.head_dim;
    size_t dv = dk + SHAPE.heads_kv * SHAPE.head_dim;
    float *dqkv = attention_dqkv(attention);
    expect(sees(exact, true, dqkv, qkv, row + 3), "a wrong dq is seen");
    expect(sees(exact, true, dqkv, qkv, row + dk + 3), "a wrong dk is seen");
    expect(sees(exact, true, dqkv, qkv, row + dv + 3), "a wrong dv is seen");
    expect(exact_failure(exact)[0] != '\0', "a failure has a sentence");
}

/* The same with bfloat16: what the daemon makes passes, what it made of other inputs does not. */
static void check_narrow(struct attention *attention, struct exact *exact)
{
    size_t tokens = SHAPE.batch * SHAPE.seqlen;
    size_t qkv = tokens * tensor_qkv_width(&SHAPE);
    const struct attention_layer *layer = attention_get_layer(attention, 0);
    struct rng rng;
    rng_init(&rng, SEED);
    fill(&rng, layer->qkv, qkv, 1.0);
    fill(&rng, attention_dout(attention), tokens * tensor_out_width(&SHAPE), 1e-6);
    expect(attention_forward(attention, 0), "the narrow forward runs");
    expect(exact_check(exact, false, 0), "the daemon's narrow forward passes");
    expect(attention_backward_begin(attention, 0) && attention_backward_end(attention),
        "the narrow backward runs");
    expect(exact_check(exact, true, 0), "the daemon's narrow backward passes");
    fill(&rng, layer->qkv, qkv, 1.0);
    expect(attention_forward(attention, 0), "the narrow forward runs again");
    expect(exact_check(exact, false, 0), "and passes");
    expect(!exact_check(exact, true, 0), "gradients of other inputs do not");
}

static void check_drawing(struct attention *attention, struct exact *exact)
{
    struct rng rng;
    rng_init(&rng, SEED + 1);
    fill(&rng, attention_get_layer(attention, 1)->qkv,
        SHAPE.batch * SHAPE.seqlen * tensor_qkv_width(&SHAPE), 1.0);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t before = exact_summarize(exact).checked;
        for (int i = 0; i < EVERY; i++) {
            expect(attention_forward(attention, 1), "the forward runs");
        }
        expect(exact_summarize(exact).checked == before + 1, "one request of every 25 is checked");
    }
    struct exact_summary summary = exact_summarize(exact);
    expect(summary.checked == ROUNDS && summary.failed == 0, "all of them pass");
    printf("worst error %.2e\n", summary.max_rel_error);
    double most = attention_is_narrow(attention) ? 1e-2 : 1e-5;
    expect(
        summary.max_rel_error > most * 1e-3 && summary.max_rel_error < most, "with small errors");
}

static void check_with_daemon(const struct daemon *daemon, bool narrow)
{
    struct device *device = device_cpu_open();
    struct attention *attention = NULL;
    const struct attention_setup setup = {
        .address = daemon->directory, .shape = SHAPE, .layers = 2, .narrow = narrow};
    if (device == NULL || !attention_open(&attention, device, &setup)) {
        expect(false, attention != NULL ? attention_error(attention) : "there is memory");
        attention_close(attention);
        return; /* and leaves what else there is to the end of the process */
    }
    /* So rarely drawn that all of its checks are the test's own. */
    struct exact *exact = exact_create(attention, UINT64_C(1) << 60, SEED);
    struct exact *drawing = NULL;
    if (exact != NULL) {
        (narrow ? check_narrow : check_outputs)(attention, exact);
        drawing = exact_create(attention, EVERY, SEED);
    }
    if (drawing != NULL) {
        check_drawing(attention, drawing);
    }
    expect(drawing != NULL, "there is memory");
    attention_close(attention);
    exact_destroy(exact);
    exact_destroy(drawing);
    device->ops->close(device);
}

int main(void)
{
    struct daemon daemon = {0};
    if (!daemon_start(&daemon, NULL)) {
        return EXIT_FAILURE;
    }
    check_with_daemon(&daemon, false);
    check_with_daemon(&daemon, true);
    bool stopped = daemon_stop(&daemon);
    return failures == 0 && stopped ? EXIT_SUCCESS : EXIT_FAILURE;
}

/*
 * The kernels' gradients against finite differences of the loss, which only needs a right forward.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "executor.h"
#include "reference.h"
#include "trial.h"

static void expect_slopes(const char *name, const struct attn_problem *problem,
    enum tensor_id input_id, enum tensor_id gradient_id)
{
    struct tensor input = tensor_of(problem, input_id);
    struct tensor gradient = tensor_of(problem, gradient_id);
    double tolerance = gradient_id == TENSOR_DSLOPES ? 5e-4 : 2e-5; /* distances are large */
    int64_t count = gradient.view.data == NULL ? 0 : tensor_elements(&gradient);
    for (int64_t i = 0; i < count; i++) {
        bool counts = isfinite(tensor_get(&input, i));
        double expected = counts ? reference_slope(problem, &input, i) : 0;
        double ours = tensor_get(&gradient, i);
        cr_expect(fabs(ours - expected) < tolerance * (1 + fabs(expected)),
            "%s: %s[%d] is %g, not %g", name, tensor_name(gradient_id), (int)i, ours, expected);
    }
}

static void check(const char *name, const struct trial_spec *spec)
{
    struct trial trial;
    trial_init(&trial, spec);
    struct attn_problem forward = trial_forward(&trial);
    struct executor executor;
    executor_init(&executor, attn_family_find("cpu"), 2);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward, 1, 0) == 0);
    cr_expect(executor_solve(&executor, ATTN_BACKWARD, &trial.problem, 1, 0) == 0);
    expect_slopes(name, &trial.problem, TENSOR_Q, TENSOR_DQ);
    expect_slopes(name, &trial.problem, TENSOR_K, TENSOR_DK);
    expect_slopes(name, &trial.problem, TENSOR_V, TENSOR_DV);
    expect_slopes(name, &trial.problem, TENSOR_BIAS, TENSOR_DBIAS);
    expect_slopes(name, &trial.problem, TENSOR_SLOPES, TENSOR_DSLOPES);
    expect_slopes(name, &trial.problem, TENSOR_SINKS, TENSOR_DSINKS);
    executor_finish(&executor);
    trial_finish(&trial);
}

static struct trial_spec small_spec(void)
{
    struct trial_spec spec = trial_spec_default();
    spec.batch = 2;
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.seqlen_q = 6;
    spec.seqlen_k = 7;
    spec.head_dim_qk = 5;
    spec.head_dim_v = 3;
    spec.scale = 0.6F;
    return spec;
}

Test(kernels_gradients, are_slopes_of_the_loss)
{
    struct trial_spec spec = small_spec();
    check("plain", &spec);
    spec.dlse = true;
    check("dlse", &spec);
    spec.window_right = 0;
    check("causal, bottom-right", &spec);
    spec.alignment = ATTN_TOP_LEFT;
    check("causal, top-left", &spec);
    spec.window_left = 1;
    spec.window_right = 2;
    check("window", &spec);
    spec.seqlen_q = 12;
    spec.alignment = ATTN_BOTTOM_RIGHT;
    check("rows without keys", &spec);
    spec.heads_q = 3;
    spec.heads_kv = 1;
    spec.seqlen_k = spec.seqlen_q;
    spec.packed = true;
    check("one key head, packed", &spec);
}

Test(kernels_gradients, of_each_feature_alone)
{
    struct trial_spec plain = small_spec();
    struct trial_spec spec = plain;
    spec.softcap = 0.8F;
    check("softcap", &spec);
    spec = plain;
    spec.dropout_threshold = 20000;
    check("dropout", &spec);
    spec = plain;
    spec.slopes = true;
    spec.dslopes = true;
    check("slopes", &spec);
    spec.slopes_shared = true;
    check("shared slopes", &spec);
    spec = plain;
    spec.sinks = true;
    spec.dsinks = true;
    check("sinks", &spec);
    spec.sinks_infinite = true;
    check("sinks of -inf", &spec);
    spec = plain;
    spec.bias = true;
    spec.dbias = true;
    spec.bias_infinities = TRIAL_SCATTERED;
    check("-inf in bias", &spec);
    spec = plain;
    spec.key_lengths = true;
    check("key lengths", &spec);
}

Test(kernels_gradients, of_bias_in_every_shape)
{
    for (unsigned shape = 0; shape < 16; shape++) {
        struct trial_spec spec = small_spec();
        spec.bias = true;
        spec.dbias = true;
        for (unsigned dim = 0; dim < 4; dim++) {
            spec.bias_one[dim] = (shape >> dim & 1) != 0;
        }
        char name[32];
        snprintf(name, sizeof name, "bias of shape %u", shape);
        check(name, &spec);
    }
}

static struct trial_spec full_spec(void)
{
    struct trial_spec spec = small_spec();
    spec.softcap = 2;
    spec.dropout_threshold = 15000;
    spec.dropout_seed = UINT64_C(0x123456789abcdef0);
    spec.dropout_offset = 3;
    spec.slopes = true;
    spec.dslopes = true;
    spec.sinks = true;
    spec.dsinks = true;
    spec.bias = true;
    spec.bias_one[0] = true;
    spec.dbias = true;
    spec.dlse = true;
    return spec;
}

Test(kernels_gradients, of_all_features_together)
{
    struct trial_spec spec = full_spec();
    check("everything", &spec);
    spec.window_left = 4;
    spec.window_right = 1;
    spec.key_lengths = true;
    check("everything in a window", &spec);
    spec.batch = 3;
    spec.varlen_q = true;
    check("everything, packed queries", &spec);
    spec.varlen_k = true;
    check("everything, packed", &spec);
    spec.alignment = ATTN_TOP_LEFT;
    spec.hostile = true;
    check("everything, lengths to be clamped", &spec);
}

Test(kernels_gradients, cross_the_borders_of_tiles)
{
    struct trial_spec spec = small_spec();
    spec.batch = 1;
    spec.heads_q = 1;
    spec.heads_kv = 1;
    spec.head_dim_qk = 1;
    spec.head_dim_v = 2;
    spec.seqlen_q = 131;
    spec.seqlen_k = 135;
    spec.dlse = true;
    spec.window_right = 0;
    check("long", &spec);
}

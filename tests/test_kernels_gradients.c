/*
 * The kernels' gradients against finite differences of the loss, which only needs a right forward.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "executor.h"
#include "reference.h"
#include "trial.h"

static void expect_slopes(const char *name, const struct attn_problem *problem,
    enum tensor_id input_id, enum tensor_id gradient_id)
{
    struct tensor input = tensor_of(problem, input_id);
    struct tensor gradient = tensor_of(problem, gradient_id);
    for (int64_t i = 0; i < tensor_elements(&gradient); i++) {
        double expected = reference_slope(problem, &input, i);
        double ours = tensor_get(&gradient, i);
        cr_expect(fabs(ours - expected) < 2e-5 * (1 + fabs(expected)), "%s: %s[%d] is %g, not %g",
            name, tensor_name(gradient_id), (int)i, ours, expected);
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

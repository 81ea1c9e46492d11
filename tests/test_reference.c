#include "reference.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "formula.h"
#include "trial.h"

static bool near(double a, double b)
{
    return a == b || fabs(a - b) < 1e-6 * (1 + fabs(b));
}

/* -- conversions ---------------------------------------------------------------------------- */

Test(reference, dtype_conversion_rounds_to_nearest_even)
{
    static const struct {
        enum attn_dtype dtype;
        double value;
        double rounded;
    } cases[] = {
        {ATTN_FP16, 65504, 65504},
        {ATTN_FP16, 65519.9, 65504},
        {ATTN_FP16, 65520, INFINITY},
        {ATTN_FP16, -1e9, -INFINITY},
        {ATTN_FP16, 0x1p-24, 0x1p-24},
        {ATTN_FP16, 0x1p-25, 0},
        {ATTN_FP16, 0x1.8p-24, 0x1p-23},
        {ATTN_FP16, 1 + 0x1p-11, 1},
        {ATTN_FP16, 1 + 0x3p-11, 1 + 0x1p-9},
        {ATTN_FP16, 0.1, 0x1.998p-4},
        {ATTN_BF16, 1 + 0x1p-8, 1},
        {ATTN_BF16, 1 + 0x3p-8, 1 + 0x1p-6},
        {ATTN_BF16, 0x1.ffp127, INFINITY},
        {ATTN_BF16, 0x1p-133, 0x1p-133},
        {ATTN_BF16, 0x1p-134, 0},
        {ATTN_FP32, 0.1, (double)0.1F},
        {ATTN_FP32, 0x1p-149, 0x1p-149},
        {ATTN_FP32, 0x1p-150, 0},
        {ATTN_FP32, 1e39, INFINITY},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        unsigned char element[4] = {0};
        dtype_store(cases[i].dtype, element, cases[i].value);
        double loaded = dtype_load(cases[i].dtype, element);
        cr_expect(dtype_round(cases[i].dtype, cases[i].value) == cases[i].rounded, "case %zu", i);
        cr_expect(loaded == cases[i].rounded, "case %zu: %a", i, loaded);
    }
}

Test(reference, every_16_bit_pattern_survives_a_round_trip)
{
    static const enum attn_dtype dtypes[] = {ATTN_FP16, ATTN_BF16};

    for (size_t d = 0; d < 2; d++) {
        unsigned wrong = 0;
        for (uint32_t bits = 0; bits < 65536; bits++) {
            uint16_t from = (uint16_t)bits;
            uint16_t to = 0;
            double value = dtype_load(dtypes[d], &from);
            dtype_store(dtypes[d], &to, value);
            double again = dtype_load(dtypes[d], &to);
            wrong += (isnan(value) ? !isnan(again) : from != to) ? 1 : 0;
        }
        cr_expect(wrong == 0, "%u patterns of dtype %d", wrong, (int)dtypes[d]);
    }
}

/* -- cases worked out by hand --------------------------------------------------------------- */

static void set(struct trial *trial, enum tensor_id id, const double *values)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    for (int64_t i = 0; i < tensor_elements(&tensor); i++) {
        tensor_set(&tensor, i, values[i]);
    }
}

Test(reference, two_keys_by_hand)
{
    struct trial_spec spec = trial_spec_default();
    spec.seqlen_k = 2;
    struct trial trial;
    trial_init(&trial, &spec);
    const double third = log(3);
    set(&trial, TENSOR_Q, (double[]){1});
    set(&trial, TENSOR_K, (double[]){0, third});
    set(&trial, TENSOR_V, (double[]){0, 4});
    set(&trial, TENSOR_DOUT, (double[]){1});
    struct reference *r = reference_create(ATTN_BACKWARD, &trial.problem);
    cr_expect(near(r->exact[TENSOR_OUT][0], 3));
    cr_expect(near(r->exact[TENSOR_LSE][0], log(4)));
    cr_expect(near(r->exact[TENSOR_DQ][0], 0.75 * third));
    cr_expect(near(r->exact[TENSOR_DK][0], -0.75));
    cr_expect(near(r->exact[TENSOR_DK][1], 0.75));
    cr_expect(near(r->exact[TENSOR_DV][0], 0.25));
    cr_expect(near(r->exact[TENSOR_DV][1], 0.75));
    cr_expect(fabs(r->low[TENSOR_OUT][0] - 3) < 1e-5);
    reference_destroy(r);
    trial_finish(&trial);
}

Test(reference, dlse_and_sink_by_hand)
{
    struct trial_spec spec = trial_spec_default();
    spec.dlse = true;
    struct trial trial;
    trial_init(&trial, &spec);
    float sink = 0;
    trial.problem.sinks = (struct attn_view){.data = &sink, .head_stride = 1};
    set(&trial, TENSOR_Q, (double[]){2});
    set(&trial, TENSOR_K, (double[]){0});
    set(&trial, TENSOR_V, (double[]){6});
    set(&trial, TENSOR_DOUT, (double[]){1});
    set(&trial, TENSOR_DLSE, (double[]){10});
    /* p = 1/2, out = 3, delta = 3 - 10; ds = 1/2 * (6 + 7) */
    struct reference *r = reference_create(ATTN_BACKWARD, &trial.problem);
    cr_expect(near(r->exact[TENSOR_OUT][0], 3));
    cr_expect(near(r->exact[TENSOR_LSE][0], log(2)));
    cr_expect(near(r->exact[TENSOR_DK][0], 13));
    cr_expect(near(r->exact[TENSOR_DQ][0], 0));
    cr_expect(near(r->exact[TENSOR_DSINKS][0], 3.5));
    reference_destroy(r);
    trial_finish(&trial);
}

Test(reference, mask_matches_hand_drawn_pictures)
{
    static const struct {
        const char *picture; /* rows of keys, # visible */
        int64_t seqlen_q;
        int64_t seqlen_k;
        int64_t left;
        int64_t right;
        enum attn_alignment alignment;
    } cases[] = {
        {"#...|##..|###.", 3, 4, -1, 0, ATTN_TOP_LEFT},
        {"##..|###.|####", 3, 4, -1, 0, ATTN_BOTTOM_RIGHT},
        {"...|...|#..|##.|###", 5, 3, -1, 0, ATTN_BOTTOM_RIGHT},
        {"#..|##.|###|###|###", 5, 3, -1, 0, ATTN_TOP_LEFT},
        {"##..|###.|.###", 3, 4, 1, 1, ATTN_TOP_LEFT},
        {".###|..##|...#", 3, 4, 0, -1, ATTN_BOTTOM_RIGHT},
        {"#.|.#|..|..", 4, 2, 0, 0, ATTN_TOP_LEFT},
        {"####|####", 2, 4, INT64_MAX, INT64_MAX, ATTN_BOTTOM_RIGHT},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct attn_problem p = {.window_left = cases[c].left,
            .window_right = cases[c].right,
            .alignment = cases[c].alignment};
        for (int64_t i = 0; i < cases[c].seqlen_q; i++) {
            int64_t begin = 0;
            int64_t end = 0;
            formula_visible(&p, i, cases[c].seqlen_q, cases[c].seqlen_k, &begin, &end);
            for (int64_t j = 0; j < cases[c].seqlen_k; j++) {
                bool drawn = cases[c].picture[i * (cases[c].seqlen_k + 1) + j] == '#';
                cr_expect(
                    drawn == (j >= begin && j < end), "picture %zu (%d, %d)", c, (int)i, (int)j);
            }
        }
    }
}

Test(reference, a_query_without_keys_is_zero_and_minus_infinity)
{
    struct trial_spec spec = trial_spec_default();
    spec.seqlen_q = 3;
    spec.seqlen_k = 1;
    spec.window_right = 0;
    struct trial trial;
    trial_init(&trial, &spec);
    struct reference *r = reference_create(ATTN_BACKWARD, &trial.problem);
    struct tensor v = tensor_of(&trial.problem, TENSOR_V);
    for (int i = 0; i < 2; i++) {
        cr_expect(r->exact[TENSOR_OUT][i] == 0 && r->low[TENSOR_OUT][i] == 0);
        cr_expect(r->exact[TENSOR_LSE][i] == -INFINITY && r->low[TENSOR_LSE][i] == -INFINITY);
        cr_expect(r->exact[TENSOR_DQ][i] == 0);
    }
    cr_expect(near(r->exact[TENSOR_OUT][2], tensor_get(&v, 0)));
    reference_destroy(r);
    trial_finish(&trial);
}

Test(reference, query_heads_share_their_key_head)
{
    struct trial_spec spec = trial_spec_default();
    spec.heads_q = 6;
    spec.heads_kv = 2;
    struct trial trial;
    trial_init(&trial, &spec);
    struct tensor v = tensor_of(&trial.problem, TENSOR_V);
    struct tensor dout = tensor_of(&trial.problem, TENSOR_DOUT);
    struct reference *r = reference_create(ATTN_BACKWARD, &trial.problem);
    for (int h = 0; h < 6; h++) {
        cr_expect(r->exact[TENSOR_OUT][h] == tensor_get(&v, h / 3), "head %d", h);
    }
    double sum = tensor_get(&dout, 3) + tensor_get(&dout, 4) + tensor_get(&dout, 5);
    cr_expect(near(r->exact[TENSOR_DV][1], sum));
    reference_destroy(r);
    trial_finish(&trial);
}

/* Those published with the generator. */
Test(reference, philox_gives_the_known_answers)
{
    static const struct {
        uint64_t seed;
        uint32_t counter[4];
        uint32_t answer[4];
    } cases[] = {
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {UINT64_C(0x299f31d0a4093822), {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        uint32_t words[4];
        memcpy(words, cases[c].counter, sizeof words);
        formula_philox(words, cases[c].seed);
        cr_expect(memcmp(words, cases[c].answer, sizeof words) == 0, "case %zu", c);
    }
}

/* Key 0, counter 0. */
Test(reference, dropout_numbers_are_philox_by_coordinate)
{
    static const struct {
        int64_t row;
        int64_t key;
        uint32_t value;
    } cases[] = {{0, 0, 0xe8d5}, {0, 1, 0x6627}, {0, 8, 0xc58d}, {0, 9, 0xe169}, {8, 0, 0xac4c},
        {8, 1, 0xbc57}, {8, 8, 0xdbd8}, {8, 9, 0x9b00}};

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct attn_problem p = {.dropout_threshold = cases[c].value};
        cr_expect(formula_kept(&p, cases[c].row, cases[c].key, 0), "case %zu", c);
        p.dropout_threshold++;
        cr_expect(!formula_kept(&p, cases[c].row, cases[c].key, 0), "case %zu", c);
    }
}

Test(reference, packed_sequences_equal_separate_ones)
{
    static const int32_t starts_q[] = {0, 3, 3, 7};
    static const int32_t starts_k[] = {0, 2, 6, 11};
    static const int32_t keys[] = {2, 4, 3};
    struct trial_spec spec = trial_spec_default();
    spec.seqlen_q = 9; /* two rows belong to no sequence */
    spec.seqlen_k = 11;
    spec.head_dim_qk = 3;
    spec.head_dim_v = 2;
    spec.window_right = 0;
    struct trial trial;
    trial_init(&trial, &spec);
    struct attn_problem whole = trial.problem;
    whole.batch = 3;
    whole.seqlen_q = 4;
    whole.seqlen_k = 5;
    whole.lengths = (struct attn_lengths){starts_q, starts_k, keys, 9, 11};
    struct reference *packed = reference_create(ATTN_BACKWARD, &whole);
    for (int b = 0; b < 3; b++) {
        struct attn_problem one = trial.problem;
        one.seqlen_q = starts_q[b + 1] - starts_q[b];
        one.seqlen_k = keys[b];
        one.q.data = (float *)one.q.data + starts_q[b] * one.q.row_stride;
        one.k.data = (float *)one.k.data + starts_k[b] * one.k.row_stride;
        one.v.data = (float *)one.v.data + starts_k[b] * one.v.row_stride;
        one.dout.data = (float *)one.dout.data + starts_q[b] * one.dout.row_stride;
        struct reference *alone = reference_create(ATTN_BACKWARD, &one);
        cr_expect(memcmp(alone->exact[TENSOR_OUT], packed->exact[TENSOR_OUT] + 2 * starts_q[b],
                      (size_t)one.seqlen_q * 2 * sizeof(double)) == 0);
        cr_expect(memcmp(alone->exact[TENSOR_DK], packed->exact[TENSOR_DK] + 3 * starts_k[b],
                      (size_t)one.seqlen_k * 3 * sizeof(double)) == 0);
        reference_destroy(alone);
    }
    for (int i = 14; i < 18; i++) {
        cr_expect(packed->exact[TENSOR_OUT][i] == 0);
    }
    cr_expect(packed->exact[TENSOR_LSE][7] == -INFINITY && packed->low[TENSOR_LSE][8] == -INFINITY);
    for (int i = 3 * 9; i < 3 * 11; i++) {
        cr_expect(packed->exact[TENSOR_DK][i] == 0, "keys past seqlens_k");
    }
    reference_destroy(packed);
    trial_finish(&trial);
}

static void expect_sequence(
    const char *name, const struct attn_problem *problem, int32_t b, const struct sequence expected)
{
    struct sequence s = sequence_of(problem, b);
    cr_expect(memcmp(&s, &expected, sizeof s) == 0, "%s %d: %d+%d, %d+%d", name, (int)b,
        (int)s.first_q, (int)s.seqlen_q, (int)s.first_k, (int)s.seqlen_k);
}

Test(reference, lengths_are_clamped)
{
    static const int32_t falling[] = {4, 9, 2, 12};
    static const int32_t beyond[] = {-5, INT32_MIN, 7, INT32_MAX};
    static const int32_t keys[] = {3, -1, INT32_MAX};
    struct attn_problem p = {.batch = 3, .seqlen_q = 4, .seqlen_k = 6};
    p.lengths = (struct attn_lengths){falling, beyond, NULL, 10, 10};
    expect_sequence("wild", &p, 0, (struct sequence){4, 4, 0, 0});
    expect_sequence("wild", &p, 1, (struct sequence){9, 0, 0, 6});
    expect_sequence("wild", &p, 2, (struct sequence){9, 1, 7, 3});
    p.lengths = (struct attn_lengths){NULL, falling, keys, 0, 8};
    expect_sequence("keys", &p, 0, (struct sequence){0, 4, 4, 3});
    expect_sequence("keys", &p, 1, (struct sequence){4, 4, 8, 0});
    expect_sequence("keys", &p, 2, (struct sequence){8, 4, 8, 0});
    p.lengths.cu_seqlens_k = NULL;
    expect_sequence("dense", &p, 0, (struct sequence){0, 4, 0, 3});
    expect_sequence("dense", &p, 1, (struct sequence){4, 4, 6, 0});
    expect_sequence("dense", &p, 2, (struct sequence){8, 4, 12, 6});
}

/* -- finite differences --------------------------------------------------------------------- */

static void check_gradient(const char *name, const struct attn_problem *problem,
    const struct reference *reference, enum tensor_id input_id, enum tensor_id gradient_id)
{
    struct tensor input = tensor_of(problem, input_id);
    for (int64_t i = 0; i < reference->count[gradient_id]; i++) {
        double expected = reference_slope(problem, &input, i);
        double gradient = reference->exact[gradient_id][i];
        cr_expect(fabs(gradient - expected) < 1e-4 * (1 + fabs(expected)), "%s, %s[%d]: %g not %g",
            name, tensor_name(gradient_id), (int)i, gradient, expected);
    }
}

static void check_all_gradients(const char *name, const struct attn_problem *problem)
{
    struct reference *reference = reference_create(ATTN_BACKWARD, problem);
    check_gradient(name, problem, reference, TENSOR_Q, TENSOR_DQ);
    check_gradient(name, problem, reference, TENSOR_K, TENSOR_DK);
    check_gradient(name, problem, reference, TENSOR_V, TENSOR_DV);
    check_gradient(name, problem, reference, TENSOR_BIAS, TENSOR_DBIAS);
    check_gradient(name, problem, reference, TENSOR_SLOPES, TENSOR_DSLOPES);
    check_gradient(name, problem, reference, TENSOR_SINKS, TENSOR_DSINKS);
    reference_destroy(reference);
}

Test(reference, gradients_match_finite_differences)
{
    struct trial_spec spec = trial_spec_default();
    spec.batch = 2;
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.seqlen_q = 5;
    spec.seqlen_k = 4;
    spec.head_dim_qk = 3;
    spec.head_dim_v = 2;
    spec.scale = 0.5F;
    spec.window_right = 1;
    spec.dlse = true;
    struct trial trial;
    trial_init(&trial, &spec);
    float bias[4 * 5] = {0.5F, -1.0F, 0.25F, -(float)INFINITY, 2.0F};
    float slopes[8] = {0.5F, 0.25F, 0.1F, 0.0F, -0.5F, 0.3F, 0.2F, 0.1F};
    float sinks[4] = {0.3F, -0.5F, 1.0F, 0.0F};

    struct attn_problem p = trial.problem;
    check_all_gradients("plain", &p);
    p.softcap = 1.5F;
    check_all_gradients("softcap", &p);
    p.dropout_threshold = 20000;
    p.dropout_seed = 77;
    check_all_gradients("dropout", &p);
    p.slopes = (struct attn_view){.data = slopes, .batch_stride = 4, .head_stride = 1};
    check_all_gradients("slopes", &p);
    p.sinks = (struct attn_view){.data = sinks, .head_stride = 1};
    check_all_gradients("sinks", &p);
    p.bias = (struct attn_view){.data = bias, .row_stride = 1, .head_stride = 5};
    memcpy(p.bias_broadcast, (bool[4]){true, false, false, true}, sizeof p.bias_broadcast);
    bias[3] = -2; /* a difference quotient has no meaning at minus infinity */
    check_all_gradients("bias", &p);
    p.window_left = 0;
    p.alignment = ATTN_TOP_LEFT;
    check_all_gradients("everything", &p);
    trial_finish(&trial);
}

Test(reference, a_row_of_minus_infinities_is_no_row)
{
    struct trial_spec spec = trial_spec_default();
    spec.seqlen_q = 2;
    spec.seqlen_k = 2;
    struct trial trial;
    trial_init(&trial, &spec);
    const float none = -(float)INFINITY;
    float bias[4] = {none, none, none, 0};
    trial.problem.bias = (struct attn_view){bias, 0, 2, 0, 1};
    struct reference *r = reference_create(ATTN_BACKWARD, &trial.problem);
    struct tensor v = tensor_of(&trial.problem, TENSOR_V);
    cr_expect(r->exact[TENSOR_OUT][0] == 0 && r->exact[TENSOR_LSE][0] == -INFINITY);
    cr_expect(near(r->exact[TENSOR_OUT][1], tensor_get(&v, 1)));
    for (int i = 0; i < 2; i++) {
        cr_expect(!isnan(r->exact[TENSOR_DQ][i]) && !isnan(r->exact[TENSOR_DK][i]));
        cr_expect(!isnan(r->low[TENSOR_DQ][i]) && !isnan(r->low[TENSOR_DK][i]));
    }
    reference_destroy(r);
    trial_finish(&trial);
}

/* -- what rounding may do --------------------------------------------------------------------- */

/* One key, one query, p = 1: ds is dlse, and the one rounding of it is in all of dk. */
Test(reference, noise_knows_how_ds_is_rounded)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = ATTN_FP16;
    spec.head_dim_qk = 2;
    spec.scale = 0.5F;
    spec.dlse = true;
    struct trial trial;
    trial_init(&trial, &spec);
    set(&trial, TENSOR_Q, (double[]){2, -4});
    set(&trial, TENSOR_K, (double[]){1, 0});
    set(&trial, TENSOR_V, (double[]){0});
    set(&trial, TENSOR_DOUT, (double[]){1});
    set(&trial, TENSOR_DLSE, (double[]){2533}); /* between 2532 and 2534 */
    struct reference *r = reference_create(ATTN_BACKWARD, &trial.problem);
    const double deviation = 1 / sqrt(3);
    cr_expect(near(r->exact[TENSOR_DK][0], 2533));
    cr_expect(fabs(r->noise[TENSOR_DK][0] - deviation) < 0.01, "%g", r->noise[TENSOR_DK][0]);
    cr_expect(fabs(r->noise[TENSOR_DK][1] - 2 * deviation) < 0.01, "%g", r->noise[TENSOR_DK][1]);
    cr_expect(fabs(r->noise[TENSOR_DQ][0] - deviation / 2) < 0.01, "%g", r->noise[TENSOR_DQ][0]);
    cr_expect(r->noise[TENSOR_DQ][1] == 0, "nothing of k is in it");
    cr_expect(r->noise[TENSOR_DV][0] < 1e-6, "a probability of 1 needs no rounding");
    cr_expect(r->noise[TENSOR_OUT][0] == 0);
    reference_destroy(r);
    trial_finish(&trial);
}

/* Two keys, of which fp16 has neither probability; of large scores it does not have 1 either, since
 * fp32 has moved it before. */
Test(reference, noise_knows_how_probabilities_are_rounded)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = ATTN_FP16;
    spec.seqlen_k = 2;
    struct trial trial;
    trial_init(&trial, &spec);
    set(&trial, TENSOR_Q, (double[]){1});
    set(&trial, TENSOR_K, (double[]){0, 1});
    set(&trial, TENSOR_V, (double[]){8, 0});
    struct reference *r = reference_create(ATTN_FORWARD, &trial.problem);
    double largest = 1 / (1 + exp(-1)); /* counts as 1, beside it the other is exp(-1) */
    double expected = 8 * largest * 0x1p-13 / sqrt(3);
    cr_expect(fabs(r->noise[TENSOR_OUT][0] - expected) < 0.01 * expected, "%g, not %g",
        r->noise[TENSOR_OUT][0], expected);
    reference_destroy(r);
    set(&trial, TENSOR_Q, (double[]){300});
    set(&trial, TENSOR_K, (double[]){400, 0});
    r = reference_create(ATTN_FORWARD, &trial.problem);
    expected = 8 * 0x1p-11 / sqrt(3);
    cr_expect(fabs(r->noise[TENSOR_OUT][0] - expected) < 0.01 * expected, "%g, not %g",
        r->noise[TENSOR_OUT][0], expected);
    reference_destroy(r);
    trial_finish(&trial);
}

/* low's scores are of the dtype; those of a strict one are not, its results are. */
Test(reference, strict_keeps_scores_in_fp32)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = ATTN_BF16;
    spec.seqlen_k = 2;
    struct trial trial;
    trial_init(&trial, &spec);
    set(&trial, TENSOR_Q, (double[]){1001}); /* 1000 in bf16 */
    set(&trial, TENSOR_K, (double[]){1, 1.0078125});
    set(&trial, TENSOR_V, (double[]){0, 1});
    struct reference *low = reference_create(ATTN_FORWARD, &trial.problem);
    struct reference *strict = reference_create_strict(ATTN_FORWARD, &trial.problem);
    double exact = strict->exact[TENSOR_LSE][0];
    cr_expect(exact == low->exact[TENSOR_LSE][0]);
    cr_expect(fabs(exact - 1007.8129) < 1e-3, "%g", exact);
    cr_expect(fabs(low->low[TENSOR_LSE][0] - 1008) < 1e-3, "%g", low->low[TENSOR_LSE][0]);
    cr_expect(fabs(strict->low[TENSOR_LSE][0] - exact) < 1e-3, "%g", strict->low[TENSOR_LSE][0]);
    reference_destroy(low);
    reference_destroy(strict);
    trial_finish(&trial);
}

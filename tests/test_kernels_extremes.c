/*
 * Numbers from the ends of what floating point has: as scores, as what makes them, and in dropout.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>

#include "executor.h"
#include "judge.h"
#include "tested.h"
#include "trial.h"

static void solve(const char *name, struct trial *trial)
{
    struct verdict verdict = tested_judge(trial, 2, 0);
    cr_expect(
        !verdict.failed, "%s, dtype %d, ratio %g", name, (int)trial->problem.dtype, verdict.ratio);
}

static void fill(struct trial *trial, enum tensor_id id, double even, double odd)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    for (int64_t i = 0; i < tensor_elements(&tensor); i++) {
        tensor_set(&tensor, i, i % 2 == 0 ? even : odd);
    }
    trial_snapshot(trial);
}

Test(kernels_extremes, judged)
{
    static const struct {
        const char *name;
        float softcap;
        double query_size;
        double bias_size;
        double slopes[2];
        double sinks[2];
    } cases[] = {
        {"a tiny cap", 1e-3F, 300, 1, {0.1, 0.2}, {0, 0}},
        {"a huge cap", 1e6F, 300, 1, {0.1, 0.2}, {0, 0}},
        {"a cap far above subnormal scores", 1e30F, 1e-6, 1, {0, 0}, {0, 0}},
        {"huge bias", 0, 1, 1e4, {0.1, 0.2}, {0, 0}},
        {"huge slopes", 0, 1, 1, {1000, -1000}, {0, 0}},
        {"huge sinks", 0, 1, 1, {0.1, 0}, {3000, -3000}},
        {"endless sinks", 5, 1, 1, {0.1, 0}, {-INFINITY, -1e30}},
        {"all of it", 500, 300, 1e4, {100, -50}, {1e4, -1e4}},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < TESTED_DTYPES; d++) {
            struct trial_spec spec = tested_spec(tested_dtype(d));
            spec.softcap = cases[c].softcap;
            spec.slopes = spec.dslopes = true;
            spec.sinks = spec.dsinks = true;
            spec.bias = spec.dbias = true;
            spec.query_size = cases[c].query_size;
            spec.bias_size = cases[c].bias_size;
            spec.slopes_shared = true;
            struct trial trial;
            trial_init(&trial, &spec);
            fill(&trial, TENSOR_SLOPES, cases[c].slopes[0], cases[c].slopes[1]);
            fill(&trial, TENSOR_SINKS, cases[c].sinks[0], cases[c].sinks[1]);
            solve(cases[c].name, &trial);
            trial_finish(&trial);
        }
    }
}

/* Hardly anything is kept, and what is kept counts 65536-fold. */
Test(kernels_extremes, nearly_everything_dropped)
{
    for (int d = 1; d < TESTED_DTYPES; d++) { /* fp16 has no such numbers */
        struct trial_spec spec = tested_spec(tested_dtype(d));
        spec.dropout_threshold = 65535;
        spec.seqlen_q = 300;
        spec.seqlen_k = 300;
        struct trial trial;
        trial_init(&trial, &spec);
        solve("threshold 65535", &trial);
        trial_finish(&trial);
    }
}

/* 0 of a tensor that the problem does not have. */
static int64_t elements(const struct tensor *tensor)
{
    return tensor->view.data == NULL ? 0 : tensor_elements(tensor);
}

/* -- answers that need no reference ----------------------------------------------------------- */

/* A row whose first keys, as many as `keys`, have the same weight, and others none. */
struct flat_row {
    int64_t row;
    int64_t keys;
};

/* The row of a head among all rows of q and its like, and the key among those of k and v. */
static int64_t query_line(const struct attn_problem *problem, int64_t head, int64_t row)
{
    int64_t heads = problem->heads_q;
    return (head / heads * problem->seqlen_q + row) * heads + head % heads;
}

static int64_t key_line(const struct attn_problem *problem, int64_t head, int64_t key)
{
    int64_t heads = problem->heads_q;
    int64_t shared_by = heads / problem->heads_kv;
    return (head / heads * problem->seqlen_k + key) * problem->heads_kv + head % heads / shared_by;
}

/* How many elements of out are not the mean of the keys' values; head: of all batches. */
static int64_t wrong_means(const struct attn_problem *problem, int64_t head, struct flat_row row)
{
    struct tensor v = tensor_of(problem, TENSOR_V);
    struct tensor out = tensor_of(problem, TENSOR_OUT);
    int64_t line = query_line(problem, head, row.row);
    int64_t wrong = 0;
    for (int64_t c = 0; c < v.columns; c++) {
        double mean = 0;
        for (int64_t key = 0; key < row.keys; key++) {
            mean += tensor_get(&v, key_line(problem, head, key) * v.columns + c) / (double)row.keys;
        }
        double error = fabs(tensor_get(&out, line * out.columns + c) - mean);
        wrong += error <= 0.01 * (1 + fabs(mean)) ? 0 : 1;
    }
    return wrong;
}

/* dout of a row times a row of another tensor. */
static double dot(
    const struct attn_problem *problem, int64_t line, enum tensor_id id, int64_t other)
{
    struct tensor dout = tensor_of(problem, TENSOR_DOUT);
    struct tensor tensor = tensor_of(problem, id);
    double sum = 0;
    for (int64_t c = 0; c < dout.columns; c++) {
        sum += tensor_get(&dout, line * dout.columns + c) *
               tensor_get(&tensor, other * tensor.columns + c);
    }
    return sum;
}

/* dbias is p (dp - delta), p = e^(s - lse) being 1: lse, so far from 0, has no room for a logarithm. */
static void expect_dbias(
    const char *name, const struct attn_problem *problem, int64_t head, struct flat_row row)
{
    struct tensor dbias = tensor_of(problem, TENSOR_DBIAS);
    int64_t line = query_line(problem, head, row.row);
    double delta = dot(problem, line, TENSOR_OUT, line);
    int64_t wrong = 0;
    for (int64_t key = 0; key < dbias.columns; key++) {
        bool counts = key < row.keys;
        double exact = dot(problem, line, TENSOR_V, key_line(problem, head, key)) - delta;
        double ours = tensor_get(&dbias, line * dbias.columns + key);
        double error = fabs(ours - (counts ? exact : 0));
        wrong += error <= (counts ? 0.02 * (5 + fabs(exact)) : 0) ? 0 : 1;
    }
    cr_expect(wrong == 0, "%s: %d of dbias, row %d", name, (int)wrong, (int)row.row);
}

static void expect_near(
    const char *name, const struct attn_problem *ours, const struct attn_problem *theirs)
{
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_COUNT; id++) {
        struct tensor x = tensor_of(ours, id);
        struct tensor y = tensor_of(theirs, id);
        double largest = 1;
        int64_t wrong = 0;
        for (int64_t i = 0; id != TENSOR_LSE && i < elements(&y); i++) {
            largest = fmax(largest, fabs(tensor_get(&y, i)));
        }
        for (int64_t i = 0; i < elements(&x); i++) {
            double a = tensor_get(&x, i);
            double b = tensor_get(&y, i);
            wrong += a == b || fabs(a - b) <= 0.02 * largest + 1e-6 * fabs(b) ? 0 : 1;
        }
        cr_expect(wrong == 0, "%s: %d of %s differ", name, (int)wrong, tensor_name(id));
    }
}

static void expect_numbers(const char *name, const struct attn_problem *problem)
{
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_COUNT; id++) {
        struct tensor tensor = tensor_of(problem, id);
        int64_t wrong = 0;
        for (int64_t i = 0; i < elements(&tensor); i++) {
            wrong += isnan(tensor_get(&tensor, i)) ? 1 : 0;
        }
        cr_expect(wrong == 0, "%s: %d of %s are NaN", name, (int)wrong, tensor_name(id));
    }
}

/* -- the least finite bias -------------------------------------------------------------------- */

/* Masks of other libraries are made of the least finite number instead of -inf. */
static const struct flat_row least_rows[] = {{5, 90}, {17, 45}, {18, 45}, {40, 1}};

/* A row's bias in all batches and heads, for keys [begin, end). */
static void set_bias(struct trial *trial, int64_t row, int64_t begin, int64_t end, double value)
{
    struct tensor bias = tensor_of(&trial->problem, TENSOR_BIAS);
    for (int64_t i = 0; i < tensor_elements(&bias); i++) {
        int64_t key = i % bias.columns;
        if (i / (bias.columns * bias.heads) % bias.rows == row && key >= begin && key < end) {
            tensor_set(&bias, i, value);
        }
    }
}

static double least_of(const struct attn_problem *problem)
{
    return problem->bias_dtype == ATTN_BF16 ? -0x1.fep127 : -(double)FLT_MAX;
}

static double nearly_least(const struct attn_problem *problem)
{
    return dtype_round(problem->bias_dtype, 0.9 * least_of(problem));
}

static void least_init(struct trial *trial, const struct trial_spec *spec)
{
    trial_init(trial, spec);
    double least = least_of(&trial->problem);
    set_bias(trial, 5, 0, 90, least);
    set_bias(trial, 17, 0, 45, least);
    set_bias(trial, 17, 45, 90, -INFINITY);
    set_bias(trial, 18, 0, 45, nearly_least(&trial->problem));
    set_bias(trial, 18, 45, 90, least);
    set_bias(trial, 40, 1, 90, least);
    set_bias(trial, 50, 0, 90, -INFINITY);
    if (spec->sinks) {
        fill(trial, TENSOR_SINKS, -INFINITY, 1);
    }
    trial_snapshot(trial);
}

/* Where there are sinks, those of odd heads take the rows that they are looked at in. */
static void expect_least(const char *name, const struct attn_problem *problem)
{
    struct tensor lse = tensor_of(problem, TENSOR_LSE);
    for (int64_t head = 0; head < 4; head += problem->sinks.data != NULL ? 2 : 1) {
        for (size_t r = 0; r < sizeof least_rows / sizeof least_rows[0]; r++) {
            struct flat_row row = least_rows[r];
            double value = tensor_get(&lse, query_line(problem, head, row.row));
            double expected = row.row == 18 ? nearly_least(problem) : least_of(problem);
            cr_expect(row.keys == 1 || value == expected, "%s: lse of row %d is %g", name,
                (int)row.row, value);
            int64_t wrong = wrong_means(problem, head, row);
            cr_expect(wrong == 0, "%s: %d of out, row %d", name, (int)wrong, (int)row.row);
            expect_dbias(name, problem, head, row);
        }
    }
}

Test(kernels_extremes, the_least_finite_bias_is_not_minus_infinity)
{
    static const struct {
        const char *name;
        bool fp32;
        bool sinks;
        float softcap;
        bool slopes;
    } cases[] = {
        {"bias of the dtype", false, false, 0, false},
        {"bias of fp32", true, false, 0, false},
        {"sinks", true, true, 0, false},
        {"softcap", false, false, 4, false},
        {"slopes", true, false, 0, true},
        {"all of it", false, true, 4, true},
    };
    const struct attn_family *cpu = attn_family_find("cpu");

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < TESTED_DTYPES; d++) {
            struct trial_spec spec = tested_spec(tested_dtype(d));
            spec.batch = 1;
            spec.bias = spec.dbias = true;
            spec.bias_fp32 = cases[c].fp32 || spec.dtype == ATTN_FP16; /* whose least is ordinary */
            spec.dlse = false;
            spec.sinks = spec.dsinks = cases[c].sinks;
            spec.softcap = cases[c].softcap;
            spec.slopes = spec.dslopes = cases[c].slopes;
            struct trial ours;
            struct trial mixed; /* lse is of another implementation */
            struct trial theirs;
            least_init(&ours, &spec);
            least_init(&mixed, &spec);
            least_init(&theirs, &spec);
            cr_expect(tested_compute(&ours, tested_family(), tested_family(), 2));
            cr_expect(tested_compute(&mixed, cpu, tested_family(), 2));
            cr_expect(tested_compute(&theirs, cpu, cpu, 2));
            expect_least(cases[c].name, &ours.problem);
            expect_least(cases[c].name, &mixed.problem);
            expect_near(cases[c].name, &ours.problem, &theirs.problem);
            expect_near(cases[c].name, &mixed.problem, &theirs.problem);
            trial_finish(&ours);
            trial_finish(&mixed);
            trial_finish(&theirs);
        }
    }
}

/* What ALiBi takes beyond the least number is -inf, and the greatest is not too far from the least. */
Test(kernels_extremes, sums_and_differences_of_the_ends)
{
    const struct attn_family *cpu = attn_family_find("cpu");

    for (int d = 0; d < 2 * TESTED_DTYPES; d++) {
        struct trial_spec spec = tested_spec(tested_dtype(d));
        spec.batch = 1;
        spec.bias = spec.dbias = true;
        spec.bias_fp32 = true;
        spec.slopes = spec.dslopes = d < TESTED_DTYPES;
        struct trial trials[2];
        for (int i = 0; i < 2; i++) {
            trial_init(&trials[i], &spec);
            set_bias(&trials[i], 5, 0, 90, -(double)FLT_MAX);
            set_bias(&trials[i], 17, 0, 90, -(double)FLT_MAX);
            set_bias(&trials[i], 17, 30, 32, FLT_MAX);
            trial_snapshot(&trials[i]);
            if (spec.slopes) {
                fill(&trials[i], TENSOR_SLOPES, 1e37, -1e-3);
            }
            cr_expect(tested_compute(
                &trials[i], i == 0 ? tested_family() : cpu, i == 0 ? tested_family() : cpu, 2));
        }
        expect_numbers("ends", &trials[0].problem);
        expect_near("ends", &trials[0].problem, &trials[1].problem);
        trial_finish(&trials[0]);
        trial_finish(&trials[1]);
    }
}

/* -- scales ----------------------------------------------------------------------------------- */

/* A product of 0 is a score of 0 whatever it is multiplied by, and a tiny cap leaves no other. */
Test(kernels_extremes, no_scale_makes_nan)
{
    static const struct {
        const char *name;
        float scale;
        float softcap;
        enum trial_values values;
    } cases[] = {
        {"a subnormal cap", 0.125F, 1e-40F, TRIAL_NORMAL},
        {"a subnormal cap, keys of 0", 0.125F, 1e-40F, TRIAL_ZERO_KEYS},
        {"a tiny cap, huge scores", 1e10F, 1e-30F, TRIAL_NORMAL},
        {"a tiny cap, a negative scale", -1e10F, 1e-30F, TRIAL_ZERO_KEYS},
        {"a huge scale, keys of 0", 2.5e38F, 0, TRIAL_ZERO_KEYS},
        {"a huge negative scale, keys of 0", -2.5e38F, 0, TRIAL_ZERO_KEYS},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < TESTED_DTYPES; d++) {
            struct trial_spec spec = tested_spec(tested_dtype(d));
            spec.batch = 1;
            spec.scale = cases[c].scale;
            spec.softcap = cases[c].softcap;
            spec.values = cases[c].values;
            struct trial trial;
            trial_init(&trial, &spec);
            cr_expect(tested_compute(&trial, tested_family(), tested_family(), 2));
            expect_numbers(cases[c].name, &trial.problem);
            int64_t wrong = 0;
            for (int64_t i = 0; i < 4 * 70; i++) {
                wrong += wrong_means(&trial.problem, i / 70, (struct flat_row){i % 70, 90});
            }
            cr_expect(wrong == 0, "%s: %d of out", cases[c].name, (int)wrong);
            trial_finish(&trial);
        }
    }
}

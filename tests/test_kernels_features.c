/*
 * The optional features where it is easy to get them wrong: infinities and neighbours.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

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

static void add_all(struct trial_spec *spec)
{
    spec->softcap = 4;
    spec->dropout_threshold = 9000;
    spec->slopes = true;
    spec->dslopes = true;
    spec->sinks = true;
    spec->dsinks = true;
    spec->bias = true;
    spec->dbias = true;
}

/* -- infinities ----------------------------------------------------------------------------- */

/* Sets bias of all batches and heads for keys [begin, end) of a row. */
static void block(struct trial *trial, int64_t row, int64_t begin, int64_t end)
{
    struct tensor bias = tensor_of(&trial->problem, TENSOR_BIAS);
    for (int64_t i = 0; i < tensor_elements(&bias); i++) {
        int64_t key = i % bias.columns;
        if (i / (bias.columns * bias.heads) % bias.rows == row && key >= begin && key < end) {
            tensor_set(&bias, i, -INFINITY);
        }
    }
    trial_snapshot(trial);
}

static void expect_row(const struct trial *trial, enum tensor_id id, int64_t row, double value)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    int64_t wrong = 0;
    for (int64_t i = 0; i < tensor_elements(&tensor); i++) {
        bool there = i / (tensor.heads * tensor.columns) % tensor.rows == row;
        wrong += there && tensor_get(&tensor, i) != value ? 1 : 0;
    }
    cr_expect(
        wrong == 0, "%s of row %d: %d are not %g", tensor_name(id), (int)row, (int)wrong, value);
}

Test(kernels_features, a_row_of_minus_infinities_sees_nothing)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = tested_spec(tested_dtype(d));
        spec.bias = true;
        spec.dbias = true;
        spec.seqlen_k = 300; /* whole blocks without a finite score */
        struct trial trial;
        trial_init(&trial, &spec);
        block(&trial, 5, 0, 300);
        block(&trial, 17, 0, 299);
        block(&trial, 18, 1, 300);
        block(&trial, 40, 64, 256);
        solve("rows of -inf", &trial);
        expect_row(&trial, TENSOR_OUT, 5, 0);
        expect_row(&trial, TENSOR_LSE, 5, -INFINITY);
        expect_row(&trial, TENSOR_DQ, 5, 0);
        expect_row(&trial, TENSOR_DBIAS, 5, 0);
        trial_finish(&trial);
    }
}

Test(kernels_features, sinks_take_rows_without_keys)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = tested_spec(tested_dtype(d));
        spec.seqlen_q = 120; /* the first 30 see no key */
        spec.window_right = 0;
        spec.sinks = true;
        spec.dsinks = true;
        struct trial trial;
        trial_init(&trial, &spec);
        solve("sinks", &trial);
        struct tensor sinks = tensor_of(&trial.problem, TENSOR_SINKS);
        struct tensor lse = tensor_of(&trial.problem, TENSOR_LSE);
        for (int64_t i = 0; i < 30 * 4; i++) {
            double error = tensor_get(&lse, i) - tensor_get(&sinks, i % 4);
            cr_expect(fabs(error) < 1e-6, "row %d: off by %g", (int)(i / 4), error);
        }
        expect_row(&trial, TENSOR_OUT, 29, 0);
        expect_row(&trial, TENSOR_DQ, 29, 0);
        trial_finish(&trial);
    }
}

/* However bias lies, and whatever of it there is: rows that copies of 16 bytes can take and others, a
 * rest at their end, blocks of queries and keys that exist in part. */
Test(kernels_features, bias_lies_anyhow)
{
    static const struct {
        const char *name;
        int32_t head_dim;
        int64_t keys;
        bool aligned;
        bool one_query;
        bool one_key;
        bool fp32;
    } cases[] = {
        {"rows of 16 bytes, d32", 32, 200, true, false, false, false},
        {"rows of 16 bytes, d64", 64, 200, true, false, false, false},
        {"rows of 16 bytes, d128", 128, 200, true, false, false, false},
        {"rows with a rest", 64, 197, true, false, false, false}, /* the first of 8 heads */
        {"rows of pairs", 64, 198, true, false, false, false},
        {"odd rows", 128, 197, false, false, false, false},
        {"rows of fp32", 64, 200, true, false, false, true},
        {"odd rows of fp32", 128, 197, false, false, false, true},
        {"one query", 128, 200, true, true, false, false},
        {"one query at an odd address", 64, 197, false, true, false, false},
        {"one query of fp32", 64, 200, true, true, false, true},
        {"one key", 128, 200, true, false, true, false},
        {"one key of fp32", 32, 197, false, false, true, true},
        {"one element", 64, 200, false, true, true, false},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct trial_spec spec = tested_spec(tested_dtype((int)c));
        spec.batch = 1;
        spec.heads_q = 8;
        spec.head_dim_qk = spec.head_dim_v = cases[c].head_dim;
        spec.seqlen_q = 140;
        spec.seqlen_k = cases[c].keys;
        spec.window_right = c % 2 == 0 ? ATTN_UNBOUNDED : 10;
        spec.bias = spec.dbias = true;
        spec.bias_infinities = TRIAL_SCATTERED;
        spec.bias_one[2] = cases[c].one_query;
        spec.bias_one[3] = cases[c].one_key;
        spec.bias_fp32 = cases[c].fp32;
        spec.aligned = cases[c].aligned;
        struct trial trial;
        trial_init(&trial, &spec);
        solve(cases[c].name, &trial);
        trial_finish(&trial);
    }
}

/* -- neighbours ----------------------------------------------------------------------------- */

static struct trial_spec packed_spec(enum attn_dtype dtype)
{
    struct trial_spec spec = tested_spec(dtype);
    add_all(&spec);
    spec.seed = 3;
    spec.varlen_q = true;
    spec.varlen_k = true;
    return spec;
}

static bool is_of_keys(enum tensor_id id)
{
    return id == TENSOR_K || id == TENSOR_V || id == TENSOR_DK || id == TENSOR_DV;
}

/* Whether element index of a packed tensor, or of bias and its like, belongs to sequence b. */
static bool belongs(const struct attn_problem *problem, enum tensor_id id, int64_t index, int32_t b)
{
    struct sequence s = sequence_of(problem, b);
    struct tensor tensor = tensor_of(problem, id);
    int64_t row = index / (tensor.heads * tensor.columns);
    if (id == TENSOR_BIAS || id == TENSOR_DBIAS || id == TENSOR_SLOPES || id == TENSOR_DSLOPES) {
        return row / tensor.rows == b;
    }
    int64_t first = is_of_keys(id) ? s.first_k : s.first_q;
    return row >= first && row < first + (is_of_keys(id) ? s.seqlen_k : s.seqlen_q);
}

static void poison(struct trial *trial, int32_t b)
{
    static const enum tensor_id inputs[] = {
        TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_DOUT, TENSOR_DLSE, TENSOR_BIAS, TENSOR_SLOPES};

    for (size_t t = 0; t < sizeof inputs / sizeof inputs[0]; t++) {
        struct tensor tensor = tensor_of(&trial->problem, inputs[t]);
        for (int64_t i = 0; i < tensor_elements(&tensor); i++) {
            if (belongs(&trial->problem, inputs[t], i, b)) {
                tensor_set(&tensor, i, i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY);
            }
        }
    }
}

/* All but what sequence b alone makes; dsinks are sums over all sequences. */
static void expect_same_elsewhere(const struct trial *clean, const struct trial *dirty, int32_t b)
{
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_DSINKS; id++) {
        struct tensor x = tensor_of(&clean->problem, id);
        struct tensor y = tensor_of(&dirty->problem, id);
        int64_t wrong = 0;
        for (int64_t i = 0; i < tensor_elements(&x); i++) {
            bool same = memcmp(tensor_at(&x, i), tensor_at(&y, i), dtype_bytes(x.dtype)) == 0;
            wrong += same || belongs(&clean->problem, id, i, b) ? 0 : 1;
        }
        cr_expect(wrong == 0, "sequence %d: %d of %s differ", b, (int)wrong, tensor_name(id));
    }
}

Test(kernels_features, nothing_of_a_sequence_reaches_its_neighbours)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = packed_spec(tested_dtype(d));
        struct trial clean;
        trial_init(&clean, &spec);
        cr_expect(tested_compute(&clean, tested_family(), tested_family(), 2));
        for (int32_t b = 0; b < spec.batch; b++) {
            struct trial dirty;
            trial_init(&dirty, &spec);
            poison(&dirty, b);
            cr_expect(tested_compute(&dirty, tested_family(), tested_family(), 2));
            expect_same_elsewhere(&clean, &dirty, b);
            trial_finish(&dirty);
        }
        trial_finish(&clean);
    }
}

/* The same for whole problems of one group. */
Test(kernels_features, nothing_of_a_problem_reaches_others_of_its_group)
{
    struct trial_spec spec = packed_spec(ATTN_BF16);
    struct trial trials[3];
    struct trial alone;
    struct attn_problem forward[3];
    struct attn_problem backward[3];
    trial_init(&alone, &spec);
    cr_expect(tested_compute(&alone, tested_family(), tested_family(), 2));
    for (int i = 0; i < 3; i++) {
        trial_init(&trials[i], &spec);
        for (int32_t b = 0; i != 1 && b < spec.batch; b++) {
            poison(&trials[i], b);
        }
        forward[i] = trial_forward(&trials[i]);
        backward[i] = trials[i].problem;
    }
    struct executor executor;
    executor_init(&executor, tested_family(), 3);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, forward, 3, 0) == 0);
    cr_expect(executor_solve(&executor, ATTN_BACKWARD, backward, 3, 0) == 0);
    executor_finish(&executor);
    for (size_t i = 0; i < TENSOR_COUNT; i++) {
        const struct trial_storage *a = &alone.storage[i];
        const struct trial_storage *b = &trials[1].storage[i];
        cr_expect(a->size == 0 || memcmp(a->bytes, b->bytes, a->size) == 0, "%s",
            tensor_name((enum tensor_id)i));
    }
    for (int i = 0; i < 3; i++) {
        trial_finish(&trials[i]);
    }
    trial_finish(&alone);
}

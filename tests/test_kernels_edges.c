/*
 * The borders of what a problem may be: nothing to do, nobody to see, memory far away.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <sys/mman.h>

#include "executor.h"
#include "judge.h"
#include "tested.h"
#include "trial.h"

static void solve(const char *name, struct trial *trial, unsigned workers)
{
    struct verdict verdict = tested_judge(trial, workers, 0);
    cr_expect(!verdict.failed, "%s, ratio %g", name, verdict.ratio);
}

static void expect_value(
    const char *name, const struct attn_problem *problem, enum tensor_id id, double value)
{
    struct tensor tensor = tensor_of(problem, id);
    for (int64_t i = 0; i < tensor_elements(&tensor); i++) {
        double ours = tensor_get(&tensor, i);
        if (ours != value) {
            cr_expect(
                false, "%s: %s[%d] is %g, not %g", name, tensor_name(id), (int)i, ours, value);
            return;
        }
    }
}

static void expect_nothing(const char *name, const struct attn_problem *problem)
{
    expect_value(name, problem, TENSOR_OUT, 0);
    expect_value(name, problem, TENSOR_LSE, -INFINITY);
    expect_value(name, problem, TENSOR_DQ, 0);
    expect_value(name, problem, TENSOR_DK, 0);
    expect_value(name, problem, TENSOR_DV, 0);
}

static struct trial_spec usual_spec(enum attn_dtype dtype)
{
    struct trial_spec spec = tested_spec(dtype);
    spec.batch = 2;
    spec.seqlen_k = 50;
    return spec;
}

Test(kernels_edges, no_rows_no_keys_no_batch)
{
    static const struct {
        const char *name;
        int32_t batch;
        int64_t seqlen_q;
        int64_t seqlen_k;
    } cases[] = {{"no batch", 0, 70, 50}, {"no rows", 2, 0, 50}, {"no keys", 2, 70, 0},
        {"neither rows nor keys", 2, 0, 0}, {"nothing at all", 0, 0, 0}};

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < TESTED_DTYPES; d++) {
            struct trial_spec spec = usual_spec(tested_dtype(d));
            spec.batch = cases[c].batch;
            spec.seqlen_q = cases[c].seqlen_q;
            spec.seqlen_k = cases[c].seqlen_k;
            spec.window_right = d == 1 ? 0 : ATTN_UNBOUNDED;
            struct trial trial;
            trial_init(&trial, &spec);
            solve(cases[c].name, &trial, 2);
            expect_nothing(cases[c].name, &trial.problem);
            trial_finish(&trial);
        }
    }
}

/* There is nothing at the address of slopes then, and it may be any. */
Test(kernels_edges, kv_heads_without_query_heads)
{
    const struct attn_view nothing = {
        .data = (void *)(uintptr_t)0x5a5a5a5a5a5a5a5b, /* far away, and of no float */
        .batch_stride = INT64_MAX / 64,
        .head_stride = -12345,
    };

    for (int d = 0; d < 2 * TESTED_DTYPES; d++) {
        struct trial_spec spec = usual_spec(tested_dtype(d));
        spec.heads_q = 0;
        spec.heads_kv = 1;
        spec.slopes = true;
        spec.deterministic = d < TESTED_DTYPES;
        struct trial trial;
        trial_init(&trial, &spec);
        trial.problem.slopes = nothing;
        solve("no query heads", &trial, 2);
        expect_nothing("no query heads", &trial.problem);
        trial_finish(&trial);
    }
}

/* Rows that see no key, at the start, at the end, or all of them. */
Test(kernels_edges, rows_without_keys_are_exactly_zero)
{
    static const struct {
        const char *name;
        int64_t seqlen_q;
        int64_t seqlen_k;
        int64_t left;
        int64_t right;
        enum attn_alignment alignment;
        int64_t first_empty;
        int64_t last_empty;
    } cases[] = {
        {"more rows than keys, causal", 70, 50, -1, 0, ATTN_BOTTOM_RIGHT, 0, 19},
        {"many more rows than keys", 300, 3, -1, 0, ATTN_BOTTOM_RIGHT, 0, 296},
        {"diagonal leaves the keys", 150, 20, 0, 0, ATTN_TOP_LEFT, 20, 149},
        {"left window leaves the keys", 150, 20, 5, -1, ATTN_TOP_LEFT, 25, 149},
        {"one row, one key", 2, 1, -1, 0, ATTN_BOTTOM_RIGHT, 0, 0},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < TESTED_DTYPES; d++) {
            struct trial_spec spec = usual_spec(tested_dtype(d));
            spec.seqlen_q = cases[c].seqlen_q;
            spec.seqlen_k = cases[c].seqlen_k;
            spec.window_left = cases[c].left;
            spec.window_right = cases[c].right;
            spec.alignment = cases[c].alignment;
            struct trial trial;
            trial_init(&trial, &spec);
            solve(cases[c].name, &trial, 3);
            struct attn_problem empty = trial.problem;
            empty.seqlen_q = cases[c].last_empty - cases[c].first_empty + 1;
            empty.seqlen_k = 0;
            size_t element = dtype_bytes(spec.dtype);
            size_t row = (size_t)cases[c].first_empty;
            empty.out.data = (char *)empty.out.data + row * (size_t)empty.out.row_stride * element;
            empty.dq.data = (char *)empty.dq.data + row * (size_t)empty.dq.row_stride * element;
            empty.lse.data = (char *)empty.lse.data + row * (size_t)empty.lse.row_stride * 4;
            expect_nothing(cases[c].name, &empty);
            trial_finish(&trial);
        }
    }
}

/* A row attends to a key only if it sees it: what lies behind the mask may be anything. */
Test(kernels_edges, keys_that_nobody_sees_get_zero_gradients)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = usual_spec(tested_dtype(d));
        spec.seqlen_q = 30;
        spec.seqlen_k = 200;
        spec.alignment = ATTN_TOP_LEFT;
        spec.window_right = 0;
        struct trial trial;
        trial_init(&trial, &spec);
        solve("top-left causal", &trial, 2);
        struct attn_problem unseen = trial.problem;
        unseen.seqlen_q = 0;
        unseen.seqlen_k = 170;
        size_t element = dtype_bytes(spec.dtype);
        unseen.dk.data = (char *)unseen.dk.data + 30 * (size_t)unseen.dk.row_stride * element;
        unseen.dv.data = (char *)unseen.dv.data + 30 * (size_t)unseen.dv.row_stride * element;
        expect_nothing("unseen keys", &unseen);
        trial_finish(&trial);
    }
}

/* Subnormal fp16 queries times a large scale are logits like any other. */
Test(kernels_edges, extreme_logits_and_scales)
{
    static const struct {
        const char *name;
        float scale;
        double query_size;
        double value_size;
        bool dlse;
        enum trial_values values;
    } cases[] = {
        {"scale 0", 0, 1, 1, true, TRIAL_NORMAL},
        {"negative scale", -0.3F, 1, 1, true, TRIAL_NORMAL},
        {"logits of thousands", 1, 300, 1, true, TRIAL_NORMAL},
        {"logits of millionths", 1e-6F, 1, 1, true, TRIAL_NORMAL},
        {"subnormal queries", 0x1p18F, 0x1p-19, 0x1p-9, false, TRIAL_NORMAL},
        {"equal keys", 1, 20, 1, true, TRIAL_EQUAL_KEYS},
        {"zero keys", 1, 1, 1, true, TRIAL_ZERO_KEYS},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < TESTED_DTYPES; d++) {
            struct trial_spec spec = usual_spec(tested_dtype(d));
            spec.scale = cases[c].scale;
            spec.query_size = cases[c].query_size;
            spec.value_size = cases[c].value_size;
            spec.dlse = cases[c].dlse;
            spec.values = cases[c].values;
            struct trial trial;
            trial_init(&trial, &spec);
            solve(cases[c].name, &trial, 2);
            trial_finish(&trial);
        }
    }
}

/* A query that is not a number makes its own row NaN, lse included, and no other. */
Test(kernels_edges, nan_stays_in_its_row)
{
    const int64_t line = 60 * 4 + 1; /* query 60 of head 1 */

    for (int d = 0; d < 2 * TESTED_DTYPES; d++) {
        struct trial_spec spec = usual_spec(tested_dtype(d));
        spec.window_right = 0;
        spec.softcap = d < TESTED_DTYPES ? 0 : 2;
        spec.sinks = d >= TESTED_DTYPES;
        struct trial trial;
        trial_init(&trial, &spec);
        struct tensor q = tensor_of(&trial.problem, TENSOR_Q);
        tensor_set(&q, line * q.columns + 7, NAN);
        struct attn_problem forward = trial_forward(&trial);
        struct executor executor;
        executor_init(&executor, tested_family(), 1);
        cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward, 1, 0) == 0);
        executor_finish(&executor);
        for (enum tensor_id id = TENSOR_OUT; id <= TENSOR_LSE; id++) {
            struct tensor result = tensor_of(&forward, id);
            int64_t wrong = 0;
            for (int64_t i = 0; i < tensor_elements(&result); i++) {
                bool nan = isnan(tensor_get(&result, i));
                wrong += nan == (i / result.columns == line) ? 0 : 1;
            }
            cr_expect(wrong == 0, "case %d: %d of %s", d, (int)wrong, tensor_name(id));
        }
        trial_finish(&trial);
    }
}

/* The mean of two numbers needs no rounding before the last: exactly one answer is right. */
Test(kernels_edges, results_round_to_nearest_even)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = usual_spec(tested_dtype(d));
        spec.seqlen_k = 2;
        spec.values = TRIAL_ZERO_KEYS;
        struct trial trial;
        trial_init(&trial, &spec);
        solve("two zero keys", &trial, 1);
        struct tensor v = tensor_of(&trial.problem, TENSOR_V);
        struct tensor out = tensor_of(&trial.problem, TENSOR_OUT);
        int64_t wrong = 0;
        for (int64_t i = 0; i < tensor_elements(&out); i++) {
            int64_t column = i % out.columns;
            int64_t kv_head = i / out.columns % out.heads / 2;
            int64_t batch = i / (out.columns * out.heads * out.rows);
            int64_t first = (batch * 4 + kv_head) * v.columns + column;
            double mean = (tensor_get(&v, first) + tensor_get(&v, first + 2 * v.columns)) / 2;
            wrong += tensor_get(&out, i) == dtype_round(spec.dtype, mean) ? 0 : 1;
        }
        cr_expect(wrong == 0, "dtype %d: %d of %d", (int)spec.dtype, (int)wrong,
            (int)tensor_elements(&out));
        trial_finish(&trial);
    }
}

/* -- memory far away ------------------------------------------------------------------------ */

static const size_t far_bytes = (size_t)1 << 41; /* of addresses; little of it is touched */

static const enum tensor_id far_tensors[] = {TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_BIAS, TENSOR_OUT,
    TENSOR_LSE, TENSOR_DOUT, TENSOR_DQ, TENSOR_DK, TENSOR_DV, TENSOR_DBIAS};

/* The trial's tensors again, with strides of more than 2^31 elements in the dimension chosen. */
static struct attn_problem far_problem(const struct trial *trial, char *map, int dimension)
{
    struct attn_problem problem = trial->problem;
    const int64_t stride = (INT64_C(1) << 31) + 12345;
    for (size_t t = 0; t < sizeof far_tensors / sizeof far_tensors[0]; t++) {
        struct attn_view *view = tensor_view(&problem, far_tensors[t]);
        struct tensor near = tensor_of(&trial->problem, far_tensors[t]);
        struct tensor far = near;
        far.view.data = map + (t << 20);
        far.view.batch_stride = dimension == 0 ? stride : near.rows * near.heads * near.columns;
        far.view.row_stride = dimension == 1 ? stride : near.heads * near.columns;
        far.view.head_stride = dimension == 2 ? stride : near.columns;
        for (int64_t i = 0; i < tensor_elements(&near); i++) {
            tensor_set(&far, i, far_tensors[t] >= TENSOR_OUT ? NAN : tensor_get(&near, i));
        }
        *view = far.view;
    }
    return problem;
}

static void expect_same_values(
    const char *name, const struct attn_problem *near, const struct attn_problem *far)
{
    for (enum tensor_id id = TENSOR_OUT; id <= TENSOR_DBIAS; id++) {
        struct tensor a = tensor_of(near, id);
        struct tensor b = tensor_of(far, id);
        int64_t wrong = 0;
        for (int64_t i = 0; i < tensor_elements(&a); i++) {
            wrong += tensor_get(&a, i) == tensor_get(&b, i) ? 0 : 1;
        }
        cr_expect(wrong == 0, "%s: %d elements of %s differ", name, (int)wrong, tensor_name(id));
    }
}

/* Both directions once more without padding spoiled, near and far. */
static void solve_far(const char *name, struct trial *trial, char *map, int dimension)
{
    struct attn_problem backward = far_problem(trial, map, dimension);
    struct trial far = {.problem = backward};
    struct attn_problem forward[2] = {trial_forward(trial), trial_forward(&far)};
    struct executor executor;
    executor_init(&executor, tested_family(), 1);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward[0], 1, 0) == 0);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward[1], 1, 0) == 0);
    cr_expect(executor_solve(&executor, ATTN_BACKWARD, &backward, 1, 0) == 0);
    expect_same_values(name, &trial->problem, &backward);
    executor_finish(&executor);
    madvise(map, far_bytes, MADV_DONTNEED);
}

static struct trial_spec far_spec(void)
{
    struct trial_spec spec = usual_spec(ATTN_BF16);
    spec.batch = 3;
    spec.heads_kv = 3;
    spec.heads_q = 3;
    spec.seqlen_q = 200; /* several tiles */
    spec.seqlen_k = 180;
    spec.dlse = false;
    spec.bias = true;
    spec.dbias = true;
    return spec;
}

Test(kernels_edges, strides_beyond_31_bits)
{
    static const char *const names[] = {"batches", "rows", "heads"};
    char *map = mmap(NULL, far_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        cr_skip_test("no two terabytes of addresses here");
    }
    for (int dimension = 0; dimension < 3; dimension++) {
        struct trial_spec spec = far_spec();
        struct trial trial;
        trial_init(&trial, &spec);
        solve(names[dimension], &trial, 1);
        solve_far(names[dimension], &trial, map, dimension);
        trial_finish(&trial);
    }
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct trial_spec spec = far_spec();
        struct trial trial;
        spec.seed = seed;
        spec.varlen_q = true;
        spec.varlen_k = seed != 2;
        spec.seqlen_q = 60; /* all of them lie one behind the other */
        spec.seqlen_k = 70;
        trial_init(&trial, &spec);
        solve("packed rows", &trial, 1);
        solve_far("packed rows", &trial, map, 1);
        trial_finish(&trial);
    }
    munmap(map, far_bytes);
}

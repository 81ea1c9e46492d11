/*
 * What a family says about itself and about problems before it runs them.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "bar.h"
#include "executor.h"
#include "formula.h"
#include "trial.h"

static const enum attn_direction directions[] = {ATTN_FORWARD, ATTN_BACKWARD};

Test(kernels_table, every_family_is_found_by_its_name)
{
    cr_assert(attn_family_count() >= 1);
    for (size_t i = 0; i < attn_family_count(); i++) {
        const struct attn_family *family = attn_family_at(i);
        const char *name = attn_family_name(family);
        cr_expect(name != NULL && *name != '\0');
        cr_expect(attn_family_find(name) == family, "%s", name);
        enum attn_device device = attn_family_device(family);
        cr_expect(device == ATTN_DEVICE_CPU || device == ATTN_DEVICE_CUDA, "%s", name);
        cr_expect(attn_family_device(family) != ATTN_DEVICE_CPU || attn_scratch_bytes(family) > 0);
    }
    cr_expect(attn_family_find("cpu") != NULL);
    cr_expect(attn_family_device(attn_family_find("cpu")) == ATTN_DEVICE_CPU);
    cr_expect(attn_family_find("cp") == NULL);
    cr_expect(attn_family_find("cpu2") == NULL);
    cr_expect(attn_family_find("") == NULL);
}

/* -- features: done right or refused -------------------------------------------------------- */

static const int32_t starts[] = {0, 5, 12};
static const int32_t key_lengths[] = {3, 6};
static float numbers[4096];

static void add_bias(struct attn_problem *p)
{
    p->bias = (struct attn_view){numbers, 0, 12, 144, 1};
    p->bias_broadcast[0] = true;
}

static void add_bias_gradient(struct attn_problem *p)
{
    static float gradient[1024];
    add_bias(p);
    p->dbias = p->bias;
    p->dbias.data = gradient;
}

static void add_softcap(struct attn_problem *p)
{
    p->softcap = 0.5F;
}

static void add_slopes(struct attn_problem *p)
{
    p->slopes = (struct attn_view){.data = numbers, .head_stride = 1};
}

static void add_sinks(struct attn_problem *p)
{
    p->sinks = (struct attn_view){.data = numbers, .head_stride = 1};
}

static void add_dropout(struct attn_problem *p)
{
    p->dropout_threshold = 30000;
    p->dropout_seed = 5;
}

static void add_sequences(struct attn_problem *p)
{
    p->batch = 2;
    p->seqlen_q = 7;
    p->seqlen_k = 7;
    p->lengths = (struct attn_lengths){starts, starts, NULL, 12, 12};
}

static void add_key_lengths(struct attn_problem *p)
{
    p->batch = 2;
    p->seqlen_q = 6;
    p->seqlen_k = 6;
    p->q.batch_stride = 6 * p->q.row_stride;
    p->k.batch_stride = 6 * p->k.row_stride;
    p->v.batch_stride = 6 * p->v.row_stride;
    p->out.batch_stride = 6 * p->out.row_stride;
    p->dout.batch_stride = 6 * p->dout.row_stride;
    p->dq.batch_stride = 6 * p->dq.row_stride;
    p->dk.batch_stride = 6 * p->dk.row_stride;
    p->dv.batch_stride = 6 * p->dv.row_stride;
    p->lse.batch_stride = 6 * p->lse.row_stride;
    p->lengths.seqlens_k = key_lengths;
}

static const struct {
    const char *name;
    void (*add)(struct attn_problem *problem);
} features[] = {
    {"bias", add_bias},
    {"bias gradient", add_bias_gradient},
    {"softcap", add_softcap},
    {"slopes", add_slopes},
    {"sinks", add_sinks},
    {"dropout", add_dropout},
    {"sequences", add_sequences},
    {"key lengths", add_key_lengths},
};

static void expect_right(const char *name, const struct attn_family *family,
    enum attn_direction direction, const struct attn_problem *problem)
{
    struct executor executor;
    executor_init(&executor, family, 2);
    struct trial holder = {.problem = *problem};
    struct attn_problem forward = trial_forward(&holder);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward, 1, 0) == 0);
    if (direction == ATTN_BACKWARD) {
        cr_expect(executor_solve(&executor, ATTN_BACKWARD, problem, 1, 0) == 0);
    }
    struct reference *reference = reference_create(direction, problem);
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_COUNT; id++) {
        struct tensor tensor = tensor_of(problem, id);
        if (reference->exact[id] != NULL && tensor.view.data != NULL) {
            struct bar bar = bar_tensor(reference, problem, id);
            cr_expect(bar.ratio <= 1, "%s, direction %d: %s off by %g, allowed %g", name,
                (int)direction, tensor_name(id), bar.error, bar.limit);
        }
    }
    reference_destroy(reference);
    executor_finish(&executor);
}

static void check_feature(const struct attn_family *family, const char *name,
    void (*add)(struct attn_problem *problem), enum attn_direction direction)
{
    struct trial_spec spec = trial_spec_default();
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.seqlen_q = 12;
    spec.seqlen_k = 12;
    spec.head_dim_qk = 8;
    spec.head_dim_v = 8;
    spec.layout[TENSOR_LSE] = TRIAL_HEAD_MAJOR;
    struct trial trial;
    trial_init(&trial, &spec);
    struct attn_problem problem = trial.problem;
    add(&problem);
    const char *refusal = attn_unsupported(family, direction, &problem);
    if (refusal == NULL) {
        expect_right(name, family, direction, &problem);
    } else {
        cr_expect(strlen(refusal) > 10, "%s: '%s' is no sentence", name, refusal);
    }
    trial_finish(&trial);
}

Test(kernels_table, features_are_done_right_or_refused)
{
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        numbers[i] = (float)(i % 7) * 0.3F;
    }
    for (size_t f = 0; f < attn_family_count(); f++) {
        const struct attn_family *family = attn_family_at(f);
        for (size_t d = 0; d < 2 && attn_family_device(family) == ATTN_DEVICE_CPU; d++) {
            for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
                check_feature(family, features[i].name, features[i].add, directions[d]);
            }
        }
    }
}

/* -- sizes ---------------------------------------------------------------------------------- */

/* Nothing here is launched: addresses only say that a tensor is there. */
static struct attn_problem planned(int64_t seqlen_q, int64_t seqlen_k)
{
    static float somewhere;
    struct attn_problem p = {.dtype = ATTN_BF16,
        .batch = 2,
        .heads_q = 4,
        .heads_kv = 2,
        .head_dim_qk = 64,
        .head_dim_v = 96,
        .seqlen_q = seqlen_q,
        .seqlen_k = seqlen_k,
        .scale = 0.125F,
        .window_left = ATTN_UNBOUNDED,
        .window_right = ATTN_UNBOUNDED,
        .alignment = ATTN_BOTTOM_RIGHT,
        .bias_dtype = ATTN_FP32};
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        bool rare =
            id == TENSOR_BIAS || id == TENSOR_SLOPES || id == TENSOR_SINKS || id >= TENSOR_DBIAS;
        struct tensor tensor = tensor_of(&p, id);
        if (!rare) {
            *tensor_view(&p, id) =
                (struct attn_view){&somewhere, tensor.rows * tensor.heads * tensor.columns,
                    tensor.heads * tensor.columns, tensor.columns, 1};
        }
    }
    return p;
}

Test(kernels_table, plans_are_judged_without_their_memory)
{
    static const enum attn_dtype dtypes[] = {ATTN_FP16, ATTN_BF16, ATTN_FP32};
    const struct attn_family *cpu = attn_family_find("cpu");
    for (size_t i = 0; i < 6; i++) {
        struct attn_problem p = planned(1000, 3000);
        p.dtype = dtypes[i / 2];
        cr_expect(attn_unsupported(cpu, directions[i % 2], &p) == NULL);
        p.head_dim_qk = 1;
        p.head_dim_v = 256;
        cr_expect(attn_unsupported(cpu, directions[i % 2], &p) == NULL);
        p.seqlen_q = 0;
        cr_expect(attn_unsupported(cpu, directions[i % 2], &p) == NULL);
        p.seqlen_k = INT64_C(1) << 32;
        p.window_left = INT64_MAX;
        cr_expect(attn_unsupported(cpu, directions[i % 2], &p) == NULL);
    }
}

Test(kernels_table, workspace_is_linear_in_the_lengths)
{
    const struct attn_family *cpu = attn_family_find("cpu");
    for (size_t d = 0; d < 2; d++) {
        struct attn_problem none = planned(0, 0);
        cr_expect(attn_workspace_bytes(cpu, directions[d], &none) >= 1);
        for (int64_t n = 4096; n <= 65536; n *= 4) {
            struct attn_problem once = planned(n, n);
            struct attn_problem twice = planned(2 * n, 2 * n);
            size_t small = attn_workspace_bytes(cpu, directions[d], &once);
            size_t large = attn_workspace_bytes(cpu, directions[d], &twice);
            cr_expect(small >= 1);
            cr_expect(large <= 2 * small + 65536, "length %d: %zu bytes, twice that %zu", (int)n,
                small, large);
        }
    }
}

/* shape: which extents of bias are 1, as bits. */
static struct attn_problem planned_with_all(int64_t length, unsigned shape, bool packed)
{
    static float somewhere;
    struct attn_problem p = planned(length, length);
    for (int dim = 0; dim < 4; dim++) {
        p.bias_broadcast[dim] = (shape >> dim & 1) != 0;
    }
    p.bias_dtype = ATTN_BF16;
    p.bias = (struct attn_view){&somewhere, 4 * length * length, length, length * length, 1};
    p.dbias = p.bias;
    p.slopes = (struct attn_view){.data = &somewhere, .batch_stride = 4, .head_stride = 1};
    p.dslopes = p.slopes;
    p.sinks = (struct attn_view){.data = &somewhere, .head_stride = 1};
    p.dsinks = p.sinks;
    p.softcap = 30;
    p.dropout_threshold = 6554;
    if (packed) {
        p.batch = 2;
        p.lengths = (struct attn_lengths){starts, starts, key_lengths, 2 * length, 2 * length};
    }
    return p;
}

/* A matrix of scores or of dbias would show at once. */
Test(kernels_table, workspace_stays_linear_with_all_features)
{
    const struct attn_family *cpu = attn_family_find("cpu");
    for (unsigned n = 0; n < 64; n++) {
        enum attn_direction direction = directions[n / 32];
        struct attn_problem small = planned_with_all(8192, n % 16, n / 16 % 2 == 1);
        struct attn_problem large = planned_with_all(131072, n % 16, n / 16 % 2 == 1);
        cr_expect(attn_unsupported(cpu, direction, &large) == NULL);
        size_t few = attn_workspace_bytes(cpu, direction, &small);
        size_t many = attn_workspace_bytes(cpu, direction, &large);
        cr_expect(many <= 16 * few + 65536, "bias %u: %zu bytes, 16 times that %zu", n, few, many);
        cr_expect(many / (2 * 131072) < 4 * 4096, "bias %u: %zu bytes", n, many);
    }
}

static void expect_refusal(const char *name, const struct attn_problem *problem)
{
    const char *why = attn_unsupported(attn_family_find("cpu"), ATTN_BACKWARD, problem);
    cr_expect(why != NULL && strlen(why) > 10, "%s: %s", name, why == NULL ? "taken" : why);
}

Test(kernels_table, what_makes_no_sense_is_refused)
{
    const struct attn_problem good = planned_with_all(100, 0, true);
    struct attn_problem p = good;
    p.softcap = -1;
    expect_refusal("negative softcap", &p);
    p.softcap = NAN;
    expect_refusal("softcap NaN", &p);
    p.softcap = 1.1e30F;
    expect_refusal("softcap too large", &p);
    p.softcap = ATTN_MAX_SOFTCAP;
    cr_expect_null(attn_unsupported(attn_family_find("cpu"), ATTN_BACKWARD, &p));
    p = good;
    p.dropout_threshold = 65536;
    expect_refusal("everything dropped", &p);
    p = good;
    p.bias.data = NULL;
    expect_refusal("dbias without bias", &p);
    p = good;
    p.slopes.data = NULL;
    expect_refusal("dslopes without slopes", &p);
    p = good;
    p.sinks.data = NULL;
    expect_refusal("dsinks without sinks", &p);
    p = good;
    p.bias_dtype = ATTN_FP16;
    expect_refusal("a third dtype", &p);
    p = good;
    p.dbias.column_stride = 2;
    expect_refusal("keys of dbias apart", &p);
    p = good;
    p.lengths.total_k = -1;
    expect_refusal("fewer rows than none", &p);
}

Test(kernels_table, flops_of_packed_sequences_are_bounded_by_their_rows)
{
    struct attn_problem dense = planned(100, 100);
    struct attn_problem p = planned_with_all(100, 15, true);
    double two = attn_flops(ATTN_FORWARD, &dense); /* of two sequences */
    cr_expect(attn_flops(ATTN_FORWARD, &p) == two);
    p.batch = 50;
    cr_expect(attn_flops(ATTN_FORWARD, &p) <= two * (1 + 1e-12));
}

Test(kernels_table, every_problem_has_a_tile)
{
    static const int64_t lengths[] = {0, 1, 63, 64, 65, 5000};
    const struct attn_family *cpu = attn_family_find("cpu");
    for (size_t d = 0; d < 2; d++) {
        for (size_t i = 0; i < 36; i++) {
            struct attn_problem p = planned(lengths[i / 6], lengths[i % 6]);
            cr_expect(attn_tile_count(cpu, directions[d], &p) >= 1);
            p.batch = 0;
            cr_expect(attn_tile_count(cpu, directions[d], &p) >= 1);
        }
    }
}

static double counted_flops(enum attn_direction direction, const struct attn_problem *p)
{
    double visible = 0;
    for (int64_t row = 0; row < p->seqlen_q; row++) {
        int64_t begin = 0;
        int64_t end = 0;
        formula_visible(p, row, p->seqlen_q, p->seqlen_k, &begin, &end);
        for (int64_t key = 0; key < p->seqlen_k; key++) {
            visible += key >= begin && key < end ? 1 : 0;
        }
    }
    double per_score =
        (direction == ATTN_FORWARD ? 4.0 : 10.0) * (double)(p->head_dim_qk + p->head_dim_v) / 2;
    return per_score * visible * p->batch * p->heads_q;
}

Test(kernels_table, flops_equal_a_count_of_visible_scores)
{
    static const int64_t windows[] = {ATTN_UNBOUNDED, 0, 1, 10, 33, 1000, INT64_MAX};
    static const int64_t lengths[] = {0, 1, 20, 51};
    for (size_t i = 0; i < 7 * 7 * 4 * 4 * 2 * 2; i++) {
        struct attn_problem p = planned(lengths[i / 49 % 4], lengths[i / 196 % 4]);
        p.window_left = windows[i % 7];
        p.window_right = windows[i / 7 % 7];
        p.alignment = i / 784 % 2 == 0 ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT;
        enum attn_direction direction = directions[i / 1568];
        double expected = counted_flops(direction, &p);
        double ours = attn_flops(direction, &p);
        cr_expect(fabs(ours - expected) <= 1e-9 * expected, "%dx%d window %d/%d: %g, not %g",
            (int)p.seqlen_q, (int)p.seqlen_k, (int)p.window_left, (int)p.window_right, ours,
            expected);
    }
}

Test(kernels_table, flops_of_long_problems_are_counted_at_once)
{
    struct attn_problem p = planned(INT64_C(1) << 30, INT64_C(1) << 30);
    p.window_right = 0;
    double n = 0x1p30;
    double expected = 4 * 80 * 8 * n * (n + 1) / 2;
    double ours = attn_flops(ATTN_FORWARD, &p);
    cr_expect(fabs(ours - expected) < 1e-6 * expected, "%g, not %g", ours, expected);
}

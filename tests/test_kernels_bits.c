/*
 * No result depends on what else is in a group, on the number of workers, or on the cuts: bit for
 * bit.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "executor.h"
#include "tested.h"
#include "trial.h"

/* An emulated device is slow, and the caller's workers are none of its business. */
#if defined(TESTED_EMULATED)
#define TRIALS 10
#define EMULATED true
#else
#define TRIALS 20
#define EMULATED false
#endif

/* None in every third trial, all in every fifth. */
static void add_features(struct trial_spec *spec, int n)
{
    bool all = n % 5 == 4;
    if (n % 3 == 0 && !all) {
        return;
    }
    spec->softcap = all || n % 2 == 0 ? 3 : 0;
    spec->dropout_threshold = all || n % 4 == 1 ? 13000 : 0;
    spec->slopes = all || n % 4 > 1;
    spec->dslopes = spec->slopes;
    spec->sinks = all || n % 3 == 1;
    spec->dsinks = spec->sinks;
    spec->bias = all || n % 2 == 1;
    spec->dbias = spec->bias;
    for (int dim = 0; dim < 4; dim++) {
        spec->bias_one[dim] = (n * 7 >> dim & 1) != 0;
    }
    spec->bias_infinities = TRIAL_SCATTERED;
    spec->varlen_q = all || n % 7 == 1;
    spec->varlen_k = all || n % 7 < 2;
    spec->key_lengths = all || n % 7 == 2;
    spec->hostile = n % 2 == 1;
}

static struct trial_spec spec_of(int n)
{
    static const int64_t lengths[] = {70, 129, 1, 200, 33, 64, 256, 17};
    static const int32_t dims[] = {64, 40, 17, 128, 96, 256, 8};
    struct trial_spec spec = trial_spec_default();
    spec.seed = (uint64_t)n;
    spec.dtype = tested_dtype(n);
    spec.batch = 1 + n % 3;
    spec.heads_kv = 1 + n % 2;
    spec.heads_q = spec.heads_kv * (1 + n % 4);
    spec.seqlen_q = lengths[n % 8];
    spec.seqlen_k = lengths[(n * 3 + 1) % 8];
    spec.head_dim_qk = dims[n % 7];
    spec.head_dim_v = dims[(n * 2 + n % 2) % 7];
    spec.scale = 1 / sqrtf((float)spec.head_dim_qk);
    spec.window_right = n % 2 == 0 ? 0 : ATTN_UNBOUNDED;
    spec.window_left = n % 5 == 0 ? 50 : ATTN_UNBOUNDED;
    spec.dlse = n % 3 == 0;
    spec.deterministic = true;
    spec.aligned = n % 4 > 1;
    add_features(&spec, n);
    spec.layout[TENSOR_K] = (enum trial_layout)(n % TRIAL_INPUT_LAYOUTS);
    spec.layout[TENSOR_DQ] = (enum trial_layout)(n % TRIAL_OUTPUT_LAYOUTS);
    return spec;
}

static void solve_one(struct executor *executor, struct trial *trial, uint64_t tiles_per_launch)
{
    struct attn_problem forward = trial_forward(trial);
    cr_expect(executor_solve(executor, ATTN_FORWARD, &forward, 1, tiles_per_launch) == 0);
    cr_expect(executor_solve(executor, ATTN_BACKWARD, &trial->problem, 1, tiles_per_launch) == 0);
}

/* Fresh copies of all trials, solved one by one by one worker in one launch each. */
static void solve_plainly(struct trial trials[TRIALS])
{
    struct executor executor;
    executor_init(&executor, tested_family(), 1);
    for (int i = 0; i < TRIALS; i++) {
        struct trial_spec spec = spec_of(i);
        trial_init(&trials[i], &spec);
        solve_one(&executor, &trials[i], 0);
    }
    executor_finish(&executor);
}

static void expect_same(const char *how, const struct trial *expected, const struct trial *ours)
{
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        const struct trial_storage *a = &expected->storage[id];
        const struct trial_storage *b = &ours->storage[id];
        cr_expect(a->size == b->size && (a->size == 0 || memcmp(a->bytes, b->bytes, a->size) == 0),
            "%s: %s differs (dtype %d, lengths %dx%d, dims %d/%d)", how, tensor_name(id),
            (int)ours->problem.dtype, (int)ours->problem.seqlen_q, (int)ours->problem.seqlen_k,
            ours->problem.head_dim_qk, ours->problem.head_dim_v);
    }
}

static void finish_all(struct trial trials[TRIALS])
{
    for (int i = 0; i < TRIALS; i++) {
        trial_finish(&trials[i]);
    }
}

/* Every trial again with so many workers and tiles per launch, against the plain way. */
static void expect_same_with(const char *how, unsigned workers, uint64_t tiles_per_launch)
{
    struct trial plain[TRIALS];
    solve_plainly(plain);
    struct executor executor;
    executor_init(&executor, tested_family(), workers);
    for (int i = 0; i < TRIALS; i++) {
        struct trial_spec spec = spec_of(i);
        struct trial trial;
        trial_init(&trial, &spec);
        solve_one(&executor, &trial, tiles_per_launch);
        expect_same(how, &plain[i], &trial);
        trial_finish(&trial);
    }
    executor_finish(&executor);
    finish_all(plain);
}

Test(kernels_bits, do_not_depend_on_the_number_of_workers)
{
    if (TESTED_SLOWLY) {
        return;
    }
    expect_same_with("one worker again", 1, 0);
    if (EMULATED) {
        return;
    }
    expect_same_with("two workers", 2, 0);
    expect_same_with("three workers", 3, 0);
    expect_same_with("seven workers", 7, 0);
}

Test(kernels_bits, do_not_depend_on_the_cuts)
{
    expect_same_with("five tiles at a time", 3, 5);
    if (TESTED_SLOWLY) {
        return;
    }
    expect_same_with("a tile at a time", 1, 1);
    if (EMULATED) {
        return;
    }
    expect_same_with("two tiles at a time", 2, 2);
    expect_same_with("thirteen tiles at a time", 2, 13);
}

/* Runs all problems of a direction in groups of equal keys. Returns the size of the largest. */
static size_t solve_in_groups(struct executor *executor, enum attn_direction direction,
    const struct attn_problem problems[TRIALS], uint64_t tiles_per_launch)
{
    struct attn_problem group[TRIALS];
    bool done[TRIALS] = {false};
    size_t largest = 0;
    for (int i = 0; i < TRIALS; i++) {
        size_t count = 0;
        uint32_t key = attn_group_key(executor->family, direction, &problems[i]);
        for (int j = i; j < TRIALS; j++) {
            if (!done[j] && attn_group_key(executor->family, direction, &problems[j]) == key) {
                group[count++] = problems[j];
                done[j] = true;
            }
        }
        if (count > 0) {
            cr_expect(executor_solve(executor, direction, group, count, tiles_per_launch) == 0);
        }
        largest = count > largest ? count : largest;
    }
    return largest;
}

static void expect_same_in_groups(const char *how, unsigned workers, uint64_t tiles_per_launch)
{
    struct trial plain[TRIALS];
    solve_plainly(plain);
    struct trial trials[TRIALS];
    struct attn_problem forward[TRIALS];
    struct attn_problem backward[TRIALS];
    for (int i = 0; i < TRIALS; i++) {
        struct trial_spec spec = spec_of(i);
        trial_init(&trials[i], &spec);
        forward[i] = trial_forward(&trials[i]);
        backward[i] = trials[i].problem;
    }
    struct executor executor;
    executor_init(&executor, tested_family(), workers);
    size_t largest = solve_in_groups(&executor, ATTN_FORWARD, forward, tiles_per_launch);
    cr_expect(largest > 1, "no two problems share a launch");
    solve_in_groups(&executor, ATTN_BACKWARD, backward, tiles_per_launch);
    executor_finish(&executor);
    for (int i = 0; i < TRIALS; i++) {
        expect_same(how, &plain[i], &trials[i]);
    }
    finish_all(trials);
    finish_all(plain);
}

Test(kernels_bits, do_not_depend_on_the_group)
{
    if (!TESTED_SLOWLY) {
        expect_same_in_groups("groups, one worker", 1, 0);
    }
    if (!EMULATED) {
        expect_same_in_groups("groups, three workers", 3, 0);
    }
    expect_same_in_groups("groups in slices of three tiles", 2, 3);
}

/* Far more problems than fit into any one table of a launch. */
Test(kernels_bits, of_hundreds_of_problems_in_one_group)
{
    enum { MANY = EMULATED ? 100 : 400 };
    static struct trial alone[MANY];
    static struct trial grouped[MANY];
    static struct attn_problem forward[MANY];
    static struct attn_problem backward[MANY];
    struct executor executor;
    executor_init(&executor, tested_family(), 3);
    for (int i = 0; i < MANY; i++) {
        struct trial_spec spec = trial_spec_default();
        spec.seed = (uint64_t)i;
        spec.dtype = tested_dtype(2);
        spec.deterministic = true;
        spec.seqlen_q = i % 5;
        spec.seqlen_k = i % 7;
        spec.head_dim_qk = 1 + i % 11;
        trial_init(&alone[i], &spec);
        trial_init(&grouped[i], &spec);
        solve_one(&executor, &alone[i], 0);
        forward[i] = trial_forward(&grouped[i]);
        backward[i] = grouped[i].problem;
    }
    uint32_t key = attn_group_key(executor.family, ATTN_FORWARD, &forward[0]);
    for (int i = 1; i < MANY; i++) {
        cr_assert(attn_group_key(executor.family, ATTN_FORWARD, &forward[i]) == key);
    }
    cr_expect(executor_solve(&executor, ATTN_FORWARD, forward, MANY, 0) == 0);
    cr_expect(executor_solve(&executor, ATTN_BACKWARD, backward, MANY, 0) == 0);
    executor_finish(&executor);
    for (int i = 0; i < MANY; i++) {
        expect_same("hundreds", &alone[i], &grouped[i]);
        trial_finish(&alone[i]);
        trial_finish(&grouped[i]);
    }
}

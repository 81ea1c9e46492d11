/*
 * Sequence lengths: every kind of nonsense in them, and somebody who changes them all the time.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "executor.h"
#include "judge.h"
#include "trial.h"

#define BATCH 4

static struct trial_spec packed_spec(void)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = ATTN_BF16;
    spec.batch = BATCH;
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.head_dim_qk = 20;
    spec.head_dim_v = 9;
    spec.seqlen_q = 70;
    spec.seqlen_k = 70;
    spec.scale = 0.2F;
    spec.varlen_q = true;
    spec.varlen_k = true;
    spec.key_lengths = true;
    spec.window_right = 0;
    spec.softcap = 4;
    spec.dropout_threshold = 9000;
    spec.slopes = true;
    spec.dslopes = true;
    spec.sinks = true;
    spec.dsinks = true;
    spec.bias = true;
    spec.dbias = true;
    spec.dlse = true;
    return spec;
}

static void solve(const char *name, struct trial *trial, uint64_t tiles_per_launch)
{
    const struct judge_run run = {
        attn_family_find("cpu"), ATTN_BACKWARD, true, 3, tiles_per_launch};
    struct verdict verdict = {0};
    judge_trial(&verdict, trial, &run);
    cr_expect(!verdict.failed, "%s, ratio %g", name, verdict.ratio);
}

/* Gives packed tensors at most 80 rows, of those that they have. */
static void cut_rows(struct attn_lengths *lengths)
{
    int64_t total = lengths->total_q < lengths->total_k ? lengths->total_q : lengths->total_k;
    total = total < 80 ? total : 80;
    lengths->total_q = total;
    lengths->total_k = total;
}

Test(kernels_lengths, nonsense_is_clamped)
{
    static const struct {
        const char *name;
        int32_t q[BATCH + 1];
        int32_t k[BATCH + 1];
        int32_t keys[BATCH];
    } cases[] = {
        {"in order", {0, 20, 40, 60, 80}, {0, 10, 40, 50, 80}, {10, 30, 10, 30}},
        {"nothing", {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}, {0, 0, 0, 0}},
        {"no queries", {0, 0, 0, 0, 0}, {0, 10, 40, 50, 80}, {10, 30, 10, 30}},
        {"no keys", {0, 20, 40, 60, 80}, {80, 80, 80, 80, 80}, {9, 9, 9, 9}},
        {"all in the last", {0, 0, 0, 0, 80}, {0, 0, 0, 0, 80}, {80, 80, 80, 80}},
        {"falling", {80, 60, 40, 20, 0}, {80, 60, 40, 20, 0}, {80, 80, 80, 80}},
        {"saw", {0, 50, 10, 60, 20}, {0, 30, 10, 80, 20}, {80, 20, 80, 5}},
        {"negative", {-1, -20, -3, INT32_MIN, -1}, {-1, 30, -1, 60, -9}, {-1, -5, 3, INT32_MIN}},
        {"beyond", {0, 1000, 2000, 3000, INT32_MAX}, {70, 79, 81, 90, INT32_MAX},
            {INT32_MAX, INT32_MAX, 1, 2}},
        {"extremes", {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX},
            {INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN},
            {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN}},
        {"longer than the longest", {0, 80, 80, 80, 80}, {0, 75, 75, 75, 80}, {80, 80, 80, 80}},
    };

    struct trial_spec spec = packed_spec();
    spec.seqlen_q = 40;
    spec.seqlen_k = 50;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (uint64_t tiles = 0; tiles < 2; tiles++) {
            struct trial trial;
            trial_init(&trial, &spec);
            cut_rows(&trial.problem.lengths);
            memcpy(trial.lengths[TRIAL_CU_SEQLENS_Q].bytes, cases[c].q, sizeof cases[c].q);
            memcpy(trial.lengths[TRIAL_CU_SEQLENS_K].bytes, cases[c].k, sizeof cases[c].k);
            memcpy(trial.lengths[TRIAL_SEQLENS_K].bytes, cases[c].keys, sizeof cases[c].keys);
            trial_refill(&trial, &spec);
            solve(cases[c].name, &trial, tiles);
            trial_finish(&trial);
        }
    }
}

/* -- somebody changes them ------------------------------------------------------------------ */

struct vandal {
    volatile int32_t lengths[TRIAL_LENGTHS][BATCH + 1];
    atomic_bool done;
};

static void *change_lengths(void *argument)
{
    struct vandal *vandal = argument;
    struct trial_rng rng = {99};
    while (!atomic_load(&vandal->done)) {
        int64_t which = trial_range(&rng, 0, TRIAL_LENGTHS - 1);
        int64_t place = trial_range(&rng, 0, BATCH);
        const int64_t values[] = {trial_range(&rng, 0, 300), trial_range(&rng, 0, 300),
            trial_range(&rng, -10, 10), INT32_MIN, INT32_MAX, place * 60};
        vandal->lengths[which][place] = (int32_t)values[trial_range(&rng, 0, 5)];
    }
    return NULL;
}

/* What comes out is anybody's guess, but it lies where outputs belong. */
static void solve_beside(struct trial *trial, unsigned workers, uint64_t tiles_per_launch)
{
    bool written[TENSOR_COUNT];
    struct attn_problem forward = trial_forward(trial);
    struct executor executor;
    executor_init(&executor, attn_family_find("cpu"), workers);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward, 1, tiles_per_launch) == 0);
    cr_expect(executor_solve(&executor, ATTN_BACKWARD, &trial->problem, 1, tiles_per_launch) == 0);
    executor_finish(&executor);
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        written[id] = trial_forward_outputs[id] || trial_backward_outputs[id];
    }
    cr_expect(trial_intact(trial, written), "%u workers, %d tiles: written elsewhere", workers,
        (int)tiles_per_launch);
}

Test(kernels_lengths, may_change_while_kernels_run)
{
    struct vandal vandal = {.done = false};
    struct trial_spec spec = packed_spec();
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, change_lengths, &vandal) == 0);
    for (int round = 0; round < (ORACLE_QUICK ? 20 : 120); round++) {
        struct trial trial;
        spec.dtype = (enum attn_dtype)(ATTN_FP16 + round % 3);
        spec.varlen_q = round % 4 != 1;
        spec.varlen_k = round % 4 != 2;
        trial_init(&trial, &spec);
        struct attn_lengths *lengths = &trial.problem.lengths;
        int32_t(*wild)[BATCH + 1] = (int32_t(*)[BATCH + 1])(uintptr_t)vandal.lengths;
        lengths->cu_seqlens_q = spec.varlen_q ? wild[TRIAL_CU_SEQLENS_Q] : NULL;
        lengths->cu_seqlens_k = spec.varlen_k ? wild[TRIAL_CU_SEQLENS_K] : NULL;
        lengths->seqlens_k = wild[TRIAL_SEQLENS_K];
        solve_beside(&trial, 1 + (unsigned)round % 3, (uint64_t)round % 3);
        trial_finish(&trial);
    }
    atomic_store(&vandal.done, true);
    pthread_join(thread, NULL);
}

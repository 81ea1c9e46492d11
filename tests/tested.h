/*
 * The kernel family that a build of the kernels' tests is about: CMake says which, and how many of
 * fp16, bf16 and fp32, in this order, it computes. Any thread.
 */
#pragma once

#include "executor.h"
#include "judge.h"
#include "trial.h"

static inline const struct attn_family *tested_family(void)
{
    return attn_family_find(TESTED_FAMILY);
}

/* One after another, again and again. */
static inline enum attn_dtype tested_dtype(int n)
{
    return (enum attn_dtype)(ATTN_FP16 + n % TESTED_DTYPES);
}

/* Nothing round, several of everything. */
static inline struct trial_spec tested_spec(enum attn_dtype dtype)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = dtype;
    spec.batch = 3;
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.head_dim_qk = 24;
    spec.head_dim_v = 40;
    spec.seqlen_q = 70;
    spec.seqlen_k = 90;
    spec.scale = 0.2F;
    spec.dlse = true;
    spec.deterministic = true;
    return spec;
}

/* Both directions, judged by the bar and by what was written. tiles_per_launch 0: all in one. */
static inline struct verdict tested_judge(
    struct trial *trial, unsigned workers, uint64_t tiles_per_launch)
{
    const struct judge_run run = {.family = tested_family(),
        .direction = ATTN_BACKWARD,
        .lse = true,
        .workers = workers,
        .tiles_per_launch = tiles_per_launch};
    struct verdict verdict = {0};
    judge_trial(&verdict, trial, &run);
    return verdict;
}

/* Both directions, unjudged, each by its family. false: one was not computed. */
static inline bool tested_compute(struct trial *trial, const struct attn_family *forward,
    const struct attn_family *backward, unsigned workers)
{
    struct attn_problem problem = trial_forward(trial);
    struct executor executor;
    executor_init(&executor, forward, workers);
    bool computed = executor_solve(&executor, ATTN_FORWARD, &problem, 1, 0) == 0;
    executor_finish(&executor);
    executor_init(&executor, backward, workers);
    computed = executor_solve(&executor, ATTN_BACKWARD, &trial->problem, 1, 0) == 0 && computed;
    executor_finish(&executor);
    return computed;
}

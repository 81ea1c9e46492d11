/*
 * The shapes that attention libraries are usually tested with, against the float64 reference.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "judge.h"
#include "trial.h"

struct shape {
    int64_t seqlen_q;
    int64_t seqlen_k;
};

/* The short ones run with several head dims each; the sanitizers' builds stop after the first. */
static const struct shape short_shapes[] = {{1, 1}, {64, 128}, {128, 192}, {239, 1}, {799, 3},
    {113, 203}, {113, 128}, {128, 217}, {113, 211}, {108, 256}, {256, 256}, {256, 512}, {384, 256},
    {640, 128}, {512, 256}};
static const struct shape long_shapes[] = {{1024, 1024}, {1023, 1024}, {1024, 1023}};
static const struct shape huge_shapes[] = {{4096, 4096}, {4224, 4224}};

static const int32_t head_dims[] = {32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256};

static const struct {
    int32_t heads_q;
    int32_t heads_kv;
} heads[] = {{2, 2}, {3, 1}, {4, 2}, {1, 1}};

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

static void check(const struct trial_spec *spec, enum attn_direction direction)
{
    char name[160];
    snprintf(name, sizeof name, "dtype %d, %dx%d, dims %d/%d, heads %d/%d, window %d/%d, align %d",
        (int)spec->dtype, (int)spec->seqlen_q, (int)spec->seqlen_k, spec->head_dim_qk,
        spec->head_dim_v, spec->heads_q, spec->heads_kv, (int)spec->window_left,
        (int)spec->window_right, (int)spec->alignment);
    struct trial trial;
    trial_init(&trial, spec);
    const struct judge_run run = {attn_family_find("cpu"), direction, true, 1, 0, NULL, false};
    struct verdict verdict = {0};
    judge_trial(&verdict, &trial, &run);
    cr_expect(!verdict.failed, "%s, ratio %g", name, verdict.ratio);
    trial_finish(&trial);
}

/* Combination number n of a shape: the tables turn at different speeds. */
static struct trial_spec spec_of(enum attn_dtype dtype, const struct shape *shape, int n)
{
    struct trial_spec spec = trial_spec_default();
    spec.seed = (uint64_t)n + 1000 * (uint64_t)dtype;
    spec.dtype = dtype;
    spec.seqlen_q = shape->seqlen_q;
    spec.seqlen_k = shape->seqlen_k;
    spec.head_dim_qk = head_dims[n % COUNT_OF(head_dims)];
    spec.head_dim_v = n % 5 == 4 ? head_dims[(n + 3) % COUNT_OF(head_dims)] : spec.head_dim_qk;
    spec.scale = 1 / sqrtf((float)spec.head_dim_qk);
    spec.heads_q = heads[n % COUNT_OF(heads)].heads_q;
    spec.heads_kv = heads[n % COUNT_OF(heads)].heads_kv;
    spec.alignment = n % 7 < 3 ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT;
    if (n % 3 > 0) {
        spec.window_right = n % 3 == 1 ? 0 : 30 + n;
        spec.window_left = n % 3 == 1 ? ATTN_UNBOUNDED : 57 + 3 * n;
    }
    spec.dlse = n % 4 == 1;
    spec.slopes = n % 4 == 2;
    spec.dslopes = n % 8 == 2;
    spec.softcap = n % 5 == 1 ? 15 : 0;
    spec.dropout_threshold = n % 6 == 3 ? 11141 : 0; /* 0.17 */
    spec.varlen_q = n % 7 == 5;
    spec.varlen_k = n % 7 == 5;
    spec.batch = n % 7 == 5 ? 3 : 1;
    return spec;
}

static void check_shapes(enum attn_dtype dtype)
{
    int n = (int)dtype * 5;
    for (int round = 0; round < (ORACLE_QUICK ? 1 : 3); round++) {
        for (int s = 0; s < COUNT_OF(short_shapes); s++) {
            struct trial_spec spec = spec_of(dtype, &short_shapes[s], n++);
            check(&spec, ATTN_BACKWARD);
        }
    }
    for (int s = 0; s < (ORACLE_QUICK ? 0 : COUNT_OF(long_shapes)); s++) {
        struct trial_spec spec = spec_of(dtype, &long_shapes[s], n++);
        spec.heads_q = spec.heads_kv;
        check(&spec, ATTN_BACKWARD);
    }
}

Test(kernels_shapes, fp16)
{
    check_shapes(ATTN_FP16);
}

Test(kernels_shapes, bf16)
{
    check_shapes(ATTN_BF16);
}

Test(kernels_shapes, fp32)
{
    check_shapes(ATTN_FP32);
}

Test(kernels_shapes, thousands_of_rows)
{
    for (int s = 0; s < (ORACLE_QUICK ? 0 : COUNT_OF(huge_shapes)); s++) {
        struct trial_spec spec = spec_of(ATTN_BF16, &huge_shapes[s], 0);
        spec.heads_q = 1;
        spec.heads_kv = 1;
        spec.window_right = 0;
        spec.bias = s == 1;
        spec.bias_one[2] = true;
        check(&spec, ATTN_FORWARD);
    }
}

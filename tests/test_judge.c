/*
 * What the numeric bar lets pass and what it does not: a plain program in fp32, written here from the
 * formulas as kernels on matrix units have to compute them, right or with a mistake.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "judge.h"
#include "trial.h"

#define KEYS 150

enum mistake {
    NONE,
    LSE_IN_BF16,
    SCORES_IN_DTYPE,
    MAX_NOT_SUBTRACTED,
    SCALE_OF_BF16,
    KEYS_LEFT_OUT,
    DS_OFF_BY_THREE_PERCENT,
};

struct plain {
    const struct attn_problem *problem;
    enum mistake mistake;
    float scale;
    float p[KEYS]; /* of one query */
    float dq[ATTN_MAX_HEAD_DIM];
    float *dk; /* sums of a head, keys times columns */
    float *dv;
};

/* Element number `column` of a row of one head; all heads and rows of one batch. */
static float get(
    const struct plain *plain, enum tensor_id id, int64_t row, int64_t head, int64_t column)
{
    struct tensor tensor = tensor_of(plain->problem, id);
    return (float)tensor_get(&tensor, (row * tensor.heads + head) * tensor.columns + column);
}

static void set(const struct plain *plain, enum tensor_id id, int64_t row, int64_t head,
    int64_t column, float value)
{
    struct tensor tensor = tensor_of(plain->problem, id);
    tensor_set(&tensor, (row * tensor.heads + head) * tensor.columns + column, (double)value);
}

static float operand(const struct plain *plain, float value)
{
    return (float)dtype_round(plain->problem->dtype, (double)value);
}

static float dot(const struct plain *plain, enum tensor_id a, int64_t row_a, enum tensor_id b,
    int64_t row_b, int64_t head)
{
    int64_t columns = tensor_of(plain->problem, a).columns;
    float sum = 0;
    for (int64_t c = 0; c < columns; c++) {
        sum += get(plain, a, row_a, head, c) * get(plain, b, row_b, head, c);
    }
    return sum;
}

static float score(const struct plain *plain, int64_t row, int64_t key, int64_t head)
{
    float s = dot(plain, TENSOR_Q, row, TENSOR_K, key, head) * plain->scale;
    s = plain->mistake == SCORES_IN_DTYPE ? operand(plain, s) : s;
    return plain->mistake == KEYS_LEFT_OUT && key >= 128 ? -INFINITY : s;
}

static void forward(struct plain *plain, int64_t row, int64_t head)
{
    float largest = -INFINITY;
    float sum = 0;
    for (int64_t key = 0; key < KEYS; key++) {
        plain->p[key] = score(plain, row, key, head);
        largest = fmaxf(largest, plain->p[key]);
    }
    largest = plain->mistake == MAX_NOT_SUBTRACTED ? 0 : largest;
    for (int64_t key = 0; key < KEYS; key++) {
        plain->p[key] = expf(plain->p[key] - largest);
        sum += plain->p[key];
    }
    for (int64_t c = 0; c < plain->problem->head_dim_v; c++) {
        float out = 0;
        for (int64_t key = 0; key < KEYS; key++) {
            out += operand(plain, plain->p[key]) * get(plain, TENSOR_V, key, head, c);
        }
        set(plain, TENSOR_OUT, row, head, c, out / sum);
    }
    float lse = largest + logf(sum);
    lse = plain->mistake == LSE_IN_BF16 ? (float)dtype_round(ATTN_BF16, (double)lse) : lse;
    set(plain, TENSOR_LSE, row, head, 0, lse);
}

static void backward(struct plain *plain, int64_t row, int64_t head)
{
    const struct attn_problem *problem = plain->problem;
    float lse = get(plain, TENSOR_LSE, row, head, 0);
    float delta = dot(plain, TENSOR_DOUT, row, TENSOR_OUT, row, head);
    for (int64_t c = 0; c < problem->head_dim_qk; c++) {
        plain->dq[c] = 0;
    }
    for (int64_t key = 0; key < KEYS; key++) {
        float p = expf(score(plain, row, key, head) - lse);
        float ds = p * (dot(plain, TENSOR_DOUT, row, TENSOR_V, key, head) - delta);
        ds = operand(plain, plain->mistake == DS_OFF_BY_THREE_PERCENT ? ds * 1.03F : ds);
        for (int64_t c = 0; c < problem->head_dim_qk; c++) {
            plain->dq[c] += ds * get(plain, TENSOR_K, key, head, c);
            plain->dk[key * problem->head_dim_qk + c] += ds * get(plain, TENSOR_Q, row, head, c);
        }
        for (int64_t c = 0; c < problem->head_dim_v; c++) {
            plain->dv[key * problem->head_dim_v + c] +=
                operand(plain, p) * get(plain, TENSOR_DOUT, row, head, c);
        }
    }
    for (int64_t c = 0; c < problem->head_dim_qk; c++) {
        set(plain, TENSOR_DQ, row, head, c, plain->dq[c] * plain->scale);
    }
}

static void solve_head(struct plain *plain, int64_t head)
{
    const struct attn_problem *problem = plain->problem;
    plain->dk = calloc((size_t)(KEYS * problem->head_dim_qk), sizeof *plain->dk);
    plain->dv = calloc((size_t)(KEYS * problem->head_dim_v), sizeof *plain->dv);
    cr_assert(plain->dk != NULL && plain->dv != NULL);
    for (int64_t row = 0; row < problem->seqlen_q; row++) {
        forward(plain, row, head);
        backward(plain, row, head);
    }
    for (int64_t key = 0; key < KEYS; key++) {
        for (int64_t c = 0; c < problem->head_dim_qk; c++) {
            float dk = plain->dk[key * problem->head_dim_qk + c] * plain->scale;
            set(plain, TENSOR_DK, key, head, c, dk);
        }
        for (int64_t c = 0; c < problem->head_dim_v; c++) {
            set(plain, TENSOR_DV, key, head, c, plain->dv[key * problem->head_dim_v + c]);
        }
    }
    free(plain->dk);
    free(plain->dv);
}

/* Scores are about `size`, at most four times that. */
static struct trial_spec spec_of(enum attn_dtype dtype, double size)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = dtype;
    spec.head_dim_qk = 64;
    spec.head_dim_v = 64;
    spec.seqlen_q = 24;
    spec.seqlen_k = KEYS;
    spec.scale = 1;
    spec.query_size = size / 8;
    return spec;
}

static struct verdict judge_plain(const struct trial_spec *spec, enum mistake mistake, bool strict)
{
    struct verdict verdict = {.out = fopen("/dev/null", "w")};
    struct trial trial;
    trial_init(&trial, spec);
    float scale =
        mistake == SCALE_OF_BF16 ? (float)dtype_round(ATTN_BF16, (double)spec->scale) : spec->scale;
    struct plain plain = {.problem = &trial.problem, .mistake = mistake, .scale = scale};
    for (int64_t head = 0; head < spec->heads_q; head++) {
        solve_head(&plain, head);
    }
    struct reference *reference = strict ? reference_create_strict(ATTN_BACKWARD, &trial.problem)
                                         : reference_create(ATTN_BACKWARD, &trial.problem);
    struct attn_problem only_forward = trial_forward(&trial);
    judge(&verdict, reference, &only_forward, ATTN_FORWARD);
    judge(&verdict, reference, &trial.problem, ATTN_BACKWARD);
    reference_destroy(reference);
    trial_finish(&trial);
    (void)fclose(verdict.out);
    return verdict;
}

static const double sizes[] = {1, 100, 25000, 100000};

Test(judge, lets_a_plain_program_pass)
{
    for (enum attn_dtype dtype = ATTN_FP16; dtype <= ATTN_BF16; dtype++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            struct trial_spec spec = spec_of(dtype, sizes[i]);
            struct verdict verdict = judge_plain(&spec, NONE, true);
            cr_expect(!verdict.failed, "dtype %d, scores of %g: ratio %g", (int)dtype, sizes[i],
                verdict.ratio);
            verdict = judge_plain(&spec, NONE, false);
            cr_expect(!verdict.failed, "dtype %d, scores of %g: ratio %g beside a low dtype",
                (int)dtype, sizes[i], verdict.ratio);
        }
    }
}

/* Scores from 0 to 1e5 on, and mistakes that show there. */
Test(judge, finds_mistakes)
{
    static const struct {
        const char *name;
        enum mistake mistake;
        double size;
    } cases[] = {
        {"lse in bf16", LSE_IN_BF16, 1},
        {"lse in bf16", LSE_IN_BF16, 25000},
        {"lse in bf16", LSE_IN_BF16, 100000},
        {"scores in the dtype", SCORES_IN_DTYPE, 100},
        {"scores in the dtype", SCORES_IN_DTYPE, 25000},
        {"scores in the dtype", SCORES_IN_DTYPE, 100000},
        {"scores without the largest", MAX_NOT_SUBTRACTED, 100},
        {"scores without the largest", MAX_NOT_SUBTRACTED, 25000},
        {"a scale of 8 bits", SCALE_OF_BF16, 100},
        {"a scale of 8 bits", SCALE_OF_BF16, 100000},
        {"the last keys left out", KEYS_LEFT_OUT, 1},
        {"the last keys left out", KEYS_LEFT_OUT, 100},
        {"the last keys left out", KEYS_LEFT_OUT, 100000},
        {"ds off by three percent", DS_OFF_BY_THREE_PERCENT, 1},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (enum attn_dtype dtype = ATTN_FP16; dtype <= ATTN_BF16; dtype++) {
            struct trial_spec spec = spec_of(dtype, cases[i].size);
            spec.scale = cases[i].mistake == SCALE_OF_BF16 ? 0.999F : 1;
            struct verdict verdict = judge_plain(&spec, cases[i].mistake, true);
            cr_expect(verdict.failed, "%s, dtype %d, scores of %g: ratio %g", cases[i].name,
                (int)dtype, cases[i].size, verdict.ratio);
        }
    }
}

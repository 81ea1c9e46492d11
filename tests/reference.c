#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "formula.h"

static void *reserve(int64_t count)
{
    void *memory = calloc(count > 0 ? (size_t)count : 1, sizeof(double));
    if (memory == NULL) {
        fprintf(stderr, "reference: out of memory for %lld numbers\n", (long long)count);
        abort();
    }
    return memory;
}

static double *transpose(
    const struct formula *pass, const double *tensor, int64_t columns, double *max_length)
{
    double *result = reserve(columns * pass->sequence.seqlen_k);
    *max_length = 0;
    for (int64_t key = 0; key < pass->sequence.seqlen_k; key++) {
        const double *row = formula_key_row(pass, tensor, key, columns);
        for (int64_t c = 0; c < columns; c++) {
            result[c * pass->sequence.seqlen_k + key] = row[c];
        }
        *max_length = fmax(*max_length, formula_length(row, columns));
    }
    return result;
}

static void run_head(struct formula *pass)
{
    const struct attn_problem *p = pass->problem;
    pass->kv_head = pass->head / (p->heads_q / p->heads_kv);
    pass->k_columns = transpose(pass, pass->k, p->head_dim_qk, &pass->max_key);
    pass->v_columns = transpose(pass, pass->v, p->head_dim_v, &pass->max_value);
    for (int64_t row = 0; row < pass->sequence.seqlen_q; row++) {
        int64_t begin = 0;
        int64_t end = 0;
        formula_visible(p, row, pass->sequence.seqlen_q, pass->sequence.seqlen_k, &begin, &end);
        end = end < begin ? begin : end;
        formula_forward_row(pass, row, begin, end);
        if (pass->backward) {
            formula_backward_row(pass, row, begin, end);
        }
    }
    free(pass->k_columns);
    free(pass->v_columns);
}

static double *gather(const struct attn_problem *problem, enum tensor_id id)
{
    struct tensor tensor = tensor_of(problem, id);
    if (tensor.view.data == NULL) {
        return NULL;
    }
    int64_t count = tensor_elements(&tensor);
    double *values = reserve(count);
    for (int64_t i = 0; i < count; i++) {
        values[i] = tensor_get(&tensor, i);
    }
    return values;
}

/* What a row of no sequence keeps. */
static void clear_lse(struct formula *pass)
{
    struct tensor lse = tensor_of(pass->problem, TENSOR_LSE);
    for (int64_t i = 0; i < tensor_elements(&lse); i++) {
        pass->result[TENSOR_LSE][i] = -INFINITY;
    }
}

static void run_pass(struct formula *pass)
{
    const struct attn_problem *p = pass->problem;
    double *rows = reserve(6 * p->seqlen_k);
    pass->scores = rows;
    pass->weights = rows + p->seqlen_k;
    pass->dropped = rows + 2 * p->seqlen_k;
    pass->slope_of_cap = rows + 3 * p->seqlen_k;
    pass->dp = rows + 4 * p->seqlen_k;
    pass->keep = rows + 5 * p->seqlen_k;
    clear_lse(pass);
    for (pass->batch = 0; pass->batch < p->batch; pass->batch++) {
        pass->sequence = sequence_of(p, pass->batch);
        for (pass->head = 0; pass->head < p->heads_q; pass->head++) {
            run_head(pass);
        }
    }
    formula_finish_out(pass);
    if (pass->backward) {
        double scale = (double)p->scale;
        formula_finish_sums(pass, TENSOR_DQ, scale);
        formula_finish_sums(pass, TENSOR_DK, scale);
        formula_finish_sums(pass, TENSOR_DV, 1);
        formula_finish_sums(pass, TENSOR_DBIAS, 1);
        formula_finish_sums(pass, TENSOR_DSLOPES, 1);
        formula_finish_sums(pass, TENSOR_DSINKS, 1);
    }
    free(rows);
}

static bool is_result(
    enum attn_direction direction, const struct attn_problem *problem, enum tensor_id id)
{
    if (id == TENSOR_OUT || id == TENSOR_LSE) {
        return true;
    }
    if (id < TENSOR_OUT || direction == ATTN_FORWARD) {
        return false;
    }
    return (id != TENSOR_DBIAS || problem->bias.data != NULL) &&
           (id != TENSOR_DSLOPES || problem->slopes.data != NULL) &&
           (id != TENSOR_DSINKS || problem->sinks.data != NULL);
}

static void allocate_results(
    struct reference *reference, enum attn_direction direction, const struct attn_problem *problem)
{
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        if (is_result(direction, problem, id)) {
            struct tensor tensor = tensor_of(problem, id);
            reference->count[id] = tensor_elements(&tensor);
            reference->exact[id] = reserve(reference->count[id]);
            reference->low[id] = reserve(reference->count[id]);
            reference->noise[id] = reserve(reference->count[id]);
        }
    }
}

static struct formula open_pass(enum attn_direction direction, const struct attn_problem *problem)
{
    bool backward = direction == ATTN_BACKWARD;
    struct formula pass = {
        .problem = problem,
        .backward = backward,
        .q = gather(problem, TENSOR_Q),
        .k = gather(problem, TENSOR_K),
        .v = gather(problem, TENSOR_V),
        .dout = backward ? gather(problem, TENSOR_DOUT) : NULL,
        .dlse = backward ? gather(problem, TENSOR_DLSE) : NULL,
        .bias = gather(problem, TENSOR_BIAS),
        .slopes = gather(problem, TENSOR_SLOPES),
        .sinks = gather(problem, TENSOR_SINKS),
    };
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        pass.shape[id] = tensor_of(problem, id);
    }
    return pass;
}

static void close_pass(struct formula *pass)
{
    const double *const inputs[] = {
        pass->q, pass->k, pass->v, pass->dout, pass->dlse, pass->bias, pass->slopes, pass->sinks};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        free((void *)(uintptr_t)inputs[i]);
    }
}

/* Results that are sums of products with rounded factors. */
static const enum tensor_id spread_ids[] = {TENSOR_OUT, TENSOR_DQ, TENSOR_DK, TENSOR_DV};

static void run_exact(struct formula *pass, const struct reference *reference)
{
    double *spread[TENSOR_COUNT] = {NULL};
    for (size_t i = 0; i < sizeof spread_ids / sizeof *spread_ids; i++) {
        enum tensor_id id = spread_ids[i];
        spread[id] = reference->exact[id] != NULL ? reserve(reference->count[id]) : NULL;
    }
    pass->spread = spread;
    run_pass(pass);
    pass->spread = NULL;
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        free(spread[id]);
    }
}

static struct reference *create(
    enum attn_direction direction, const struct attn_problem *problem, bool strict)
{
    struct reference *reference = reserve(sizeof *reference / sizeof(double) + 1);
    allocate_results(reference, direction, problem);
    struct formula pass = open_pass(direction, problem);
    pass.result = reference->exact;
    pass.noise = reference->noise;
    run_exact(&pass, reference);
    pass.result = reference->low;
    pass.noise = NULL;
    pass.low = true;
    pass.strict = strict;
    run_pass(&pass);
    close_pass(&pass);
    return reference;
}

struct reference *reference_create(
    enum attn_direction direction, const struct attn_problem *problem)
{
    return create(direction, problem, false);
}

struct reference *reference_create_strict(
    enum attn_direction direction, const struct attn_problem *problem)
{
    return create(direction, problem, true);
}

void reference_destroy(struct reference *reference)
{
    for (enum tensor_id id = 0; reference != NULL && id < TENSOR_COUNT; id++) {
        free(reference->exact[id]);
        free(reference->low[id]);
        free(reference->noise[id]);
    }
    free(reference);
}

double reference_loss(const struct attn_problem *problem)
{
    struct tensor dout = tensor_of(problem, TENSOR_DOUT);
    struct tensor dlse = tensor_of(problem, TENSOR_DLSE);
    struct reference *reference = reference_create(ATTN_FORWARD, problem);
    double loss = 0;
    for (int64_t i = 0; i < reference->count[TENSOR_OUT]; i++) {
        bool nothing = reference->exact[TENSOR_LSE][i / dout.columns] == -INFINITY;
        loss += nothing ? 0 : tensor_get(&dout, i) * reference->exact[TENSOR_OUT][i];
    }
    for (int64_t i = 0; i < reference->count[TENSOR_LSE] && dlse.view.data != NULL; i++) {
        double lse = reference->exact[TENSOR_LSE][i];
        loss += isfinite(lse) ? tensor_get(&dlse, i) * lse : 0;
    }
    reference_destroy(reference);
    return loss;
}

double reference_slope(
    const struct attn_problem *problem, const struct tensor *input, int64_t index)
{
    const double step = 0x1p-10;
    double middle = tensor_get(input, index);
    tensor_set(input, index, middle + step);
    double high = tensor_get(input, index);
    double above = reference_loss(problem);
    tensor_set(input, index, middle - step);
    double low = tensor_get(input, index);
    double below = reference_loss(problem);
    tensor_set(input, index, middle);
    return (above - below) / (high - low);
}

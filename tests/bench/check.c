#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bar.h"
#include "dice.h"
#include "formula.h"
#include "progress.h"

#define WHOLE_WORK 3e8 /* scores * head dims * passes: about two seconds of the reference */
#define SAMPLE_HEADS 3
#define SAMPLE_ROWS 24

/* One query head of one sequence, as a problem of its own. */
struct strip {
    struct attn_problem problem;
    int64_t sequence;
    int64_t head;
    int rows;
    int64_t row[SAMPLE_ROWS];    /* sampled, ascending */
    double *exact[TENSOR_COUNT]; /* owned, as the next three; NULL: no result */
    double *low[TENSOR_COUNT];
    double *noise[TENSOR_COUNT];
    double *spread[TENSOR_COUNT];
};

static const enum tensor_id forward_results[] = {TENSOR_OUT, TENSOR_LSE};

static const enum tensor_id backward_results[] = {
    TENSOR_DQ, TENSOR_DK, TENSOR_DV, TENSOR_DBIAS, TENSOR_DSLOPES, TENSOR_DSINKS};

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static double *numbers(int64_t count)
{
    return workers_memory((size_t)(count > 0 ? count : 1) * sizeof(double));
}

/* -- launching ------------------------------------------------------------------------------ */

int check_launch(const struct attn_family *family, struct workers *workers,
    enum attn_direction direction, const struct attn_problem *problem, void *workspace)
{
    const struct attn_slice slice = {
        problem, workspace, 0, attn_tile_count(family, direction, problem)};
    const struct attn_target target = {.executor = &workers->base};
    return attn_launch(family, direction, &slice, 1, &target);
}

/* Outputs start as NaN. */
static void compute(struct check *check, struct subject *subject, const struct attn_family *family,
    struct workers *workers, enum attn_direction direction)
{
    bool forward = direction == ATTN_FORWARD;
    const struct attn_problem *problem = forward ? &subject->forward : &subject->backward;
    const enum tensor_id *results = forward ? forward_results : backward_results;
    size_t count = forward ? COUNT_OF(forward_results) : COUNT_OF(backward_results);
    for (size_t i = 0; i < count; i++) {
        subject_set_bytes(subject, results[i], 0xff);
    }
    void *workspace = workers_memory(attn_workspace_bytes(family, direction, problem));
    int error = check_launch(family, workers, direction, problem, workspace);
    free(workspace);
    if (error != 0) {
        check->wrong = true;
        (void)snprintf(
            check->complaint, sizeof check->complaint, "the launch returned error %d", error);
    }
}

/* -- judging -------------------------------------------------------------------------------- */

static void judge(struct check *check, const struct bar *bar, enum tensor_id id, const char *place)
{
    if (bar->ratio > check->ratio || check->worst == NULL) {
        check->ratio = bar->ratio;
        check->worst = tensor_name(id);
    }
    if (!(bar->ratio <= 1) && !check->wrong) {
        check->wrong = true;
        (void)snprintf(check->complaint, sizeof check->complaint,
            "%s%s is off by %.3g at element %lld, allowed are %.3g", tensor_name(id), place,
            bar->error, (long long)bar->worst, bar->limit);
    }
}

static void judge_whole(
    struct check *check, const struct subject *subject, enum attn_direction direction)
{
    const struct attn_problem *problem = &subject->backward;
    progress_show("computing the float64 reference");
    struct reference *reference = reference_create(direction, problem);
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_COUNT; id++) {
        if (reference->exact[id] != NULL && subject->memory[id] != NULL) {
            struct bar bar = bar_tensor(reference, problem, id);
            judge(check, &bar, id, "");
        }
    }
    reference_destroy(reference);
}

/* -- a strip -------------------------------------------------------------------------------- */

static void shift(struct attn_view *view, enum attn_dtype dtype, int64_t elements)
{
    if (view->data != NULL) {
        view->data = (char *)view->data + elements * (int64_t)dtype_bytes(dtype);
    }
}

/* Moves a tensor with rows to the strip's sequence and head; kv tensors to its kv head. */
static void narrow(struct strip *strip, const struct shape *shape, enum tensor_id id)
{
    struct attn_view *view = tensor_view(&strip->problem, id);
    bool keys = id == TENSOR_K || id == TENSOR_V || id == TENSOR_DK || id == TENSOR_DV;
    bool fp32 = id == TENSOR_LSE || id == TENSOR_DLSE;
    bool packed = shape->varlen_q.count > 0;
    int64_t head = keys ? strip->head / (shape->heads_q / shape->heads_kv) : strip->head;
    int64_t row =
        keys ? shape_start_k(shape, strip->sequence) : shape_start_q(shape, strip->sequence);
    shift(view, fp32 ? ATTN_FP32 : shape->dtype,
        (packed ? 0 : strip->sequence * view->batch_stride) + row * view->row_stride +
            head * view->head_stride);
}

static void narrow_extras(struct strip *strip)
{
    struct attn_problem *p = &strip->problem;
    struct attn_view *const biases[] = {&p->bias, &p->dbias};
    struct attn_view *const heads[] = {&p->slopes, &p->dslopes, &p->sinks, &p->dsinks};
    for (size_t i = 0; i < COUNT_OF(biases); i++) { /* strides of broadcast dimensions are 0 */
        shift(biases[i], p->bias_dtype,
            strip->sequence * biases[i]->batch_stride + strip->head * biases[i]->head_stride);
    }
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        shift(heads[i], ATTN_FP32, strip->head * heads[i]->head_stride);
    }
    p->bias_broadcast[0] = true;
    p->bias_broadcast[1] = true;
}

static int compare_rows(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The first and the last row are where masks begin and end. */
static void draw_rows(struct strip *strip, struct dice *dice)
{
    int64_t all = strip->problem.seqlen_q;
    strip->rows = all < SAMPLE_ROWS ? (int)all : SAMPLE_ROWS;
    int64_t band = all / (strip->rows > 0 ? strip->rows : 1);
    for (int i = 0; i < strip->rows; i++) {
        strip->row[i] = i * band + (int64_t)dice_below(dice, (uint32_t)band);
    }
    if (strip->rows > 0) {
        strip->row[0] = 0;
        strip->row[strip->rows - 1] = all - 1;
    }
    qsort(strip->row, (size_t)strip->rows, sizeof strip->row[0], compare_rows);
}

static void strip_init(
    struct strip *strip, const struct subject *subject, int64_t lane, struct dice *dice)
{
    const struct shape *shape = subject->shape;

    static const enum tensor_id ids[] = {TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_DOUT, TENSOR_DLSE,
        TENSOR_OUT, TENSOR_LSE, TENSOR_DQ, TENSOR_DK, TENSOR_DV};

    *strip = (struct strip){.problem = subject->backward,
        .sequence = lane / shape->heads_q,
        .head = lane % shape->heads_q};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        narrow(strip, shape, ids[i]);
    }
    narrow_extras(strip);
    strip->problem.batch = 1;
    strip->problem.heads_q = 1;
    strip->problem.heads_kv = 1;
    strip->problem.seqlen_q = shape_rows_q(shape, strip->sequence);
    strip->problem.seqlen_k = shape_rows_k(shape, strip->sequence);
    strip->problem.lengths = (struct attn_lengths){0};
    draw_rows(strip, dice);
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_COUNT; id++) {
        struct tensor tensor = tensor_of(&strip->problem, id);
        if (tensor.view.data != NULL) {
            strip->exact[id] = numbers(tensor_elements(&tensor));
            strip->low[id] = numbers(tensor_elements(&tensor));
            strip->noise[id] = numbers(tensor_elements(&tensor));
            strip->spread[id] = numbers(tensor_elements(&tensor));
        }
    }
}

static void strip_finish(struct strip *strip)
{
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        free(strip->exact[id]);
        free(strip->low[id]);
        free(strip->noise[id]);
        free(strip->spread[id]);
    }
}

/* -- a strip's reference -------------------------------------------------------------------- */

static double *gather(const struct attn_problem *problem, enum tensor_id id)
{
    struct tensor tensor = tensor_of(problem, id);
    if (tensor.view.data == NULL) {
        return NULL;
    }
    int64_t count = tensor_elements(&tensor);
    double *values = numbers(count);
    for (int64_t i = 0; i < count; i++) {
        values[i] = tensor_get(&tensor, i);
    }
    return values;
}

static double *transpose(const double *tensor, int64_t rows, int64_t columns, double *longest)
{
    double *result = numbers(rows * columns);
    *longest = 0;
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t c = 0; c < columns; c++) {
            result[c * rows + row] = tensor[row * columns + c];
        }
        *longest = fmax(*longest, formula_length(tensor + row * columns, columns));
    }
    return result;
}

static void run_pass(struct formula *pass, const struct strip *strip)
{
    const struct attn_problem *p = pass->problem;
    for (int i = 0; i < strip->rows; i++) {
        int64_t begin = 0;
        int64_t end = 0;
        formula_visible(p, strip->row[i], p->seqlen_q, p->seqlen_k, &begin, &end);
        end = end < begin ? begin : end;
        formula_forward_row(pass, strip->row[i], begin, end);
        if (pass->backward) {
            formula_backward_row(pass, strip->row[i], begin, end);
        }
    }
    for (size_t i = 0; i < COUNT_OF(backward_results) && pass->backward; i++) {
        enum tensor_id id = backward_results[i];
        bool scaled = id == TENSOR_DQ || id == TENSOR_DK;
        formula_finish_sums(pass, id, scaled ? (double)p->scale : 1);
    }
    formula_finish_out(pass);
}

static void strip_compute(
    struct strip *strip, const struct shape *shape, enum attn_direction direction)
{
    const struct attn_problem *p = &strip->problem;
    double *inputs[TENSOR_OUT];
    double *rows = numbers(6 * p->seqlen_k);
    for (enum tensor_id id = 0; id < TENSOR_OUT; id++) {
        inputs[id] = gather(p, id);
    }
    struct formula pass = {
        .problem = p,
        .result = strip->exact,
        .noise = strip->noise,
        .spread = strip->spread,
        .backward = direction == ATTN_BACKWARD,
        /* dropout's lane, of a problem with one head */
        .batch = (int32_t)(strip->sequence * shape->heads_q + strip->head),
        .sequence = {.seqlen_q = p->seqlen_q, .seqlen_k = p->seqlen_k},
        .q = inputs[TENSOR_Q],
        .k = inputs[TENSOR_K],
        .v = inputs[TENSOR_V],
        .dout = inputs[TENSOR_DOUT],
        .dlse = inputs[TENSOR_DLSE],
        .bias = inputs[TENSOR_BIAS],
        .slopes = inputs[TENSOR_SLOPES],
        .sinks = inputs[TENSOR_SINKS],
        .scores = rows,
        .weights = rows + p->seqlen_k,
        .keep = rows + 2 * p->seqlen_k,
        .dropped = rows + 3 * p->seqlen_k,
        .slope_of_cap = rows + 4 * p->seqlen_k,
        .dp = rows + 5 * p->seqlen_k,
    };
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        pass.shape[id] = tensor_of(p, id);
    }
    pass.k_columns = transpose(pass.k, p->seqlen_k, p->head_dim_qk, &pass.max_key);
    pass.v_columns = transpose(pass.v, p->seqlen_k, p->head_dim_v, &pass.max_value);
    run_pass(&pass, strip);
    pass.result = strip->low;
    pass.noise = NULL;
    pass.low = true;
    run_pass(&pass, strip);
    for (size_t i = 0; i < COUNT_OF(inputs); i++) {
        free(inputs[i]);
    }
    free(pass.k_columns);
    free(pass.v_columns);
    free(rows);
}

/* -- a sample ------------------------------------------------------------------------------- */

/* Moves the sampled rows of a result, or all of it, to the front of its arrays; returns how many
 * elements there are. */
static int64_t pick(struct strip *strip, enum tensor_id id, double *ours)
{
    struct tensor tensor = tensor_of(&strip->problem, id);
    bool by_row = id == TENSOR_OUT || id == TENSOR_LSE || id == TENSOR_DQ;
    int64_t count = by_row ? strip->rows * tensor.columns : tensor_elements(&tensor);
    for (int64_t i = 0; i < count; i++) {
        int64_t from =
            by_row ? strip->row[i / tensor.columns] * tensor.columns + i % tensor.columns : i;
        ours[i] = tensor_get(&tensor, from);
        strip->exact[id][i] = strip->exact[id][from];
        strip->low[id][i] = strip->low[id][from];
        strip->noise[id][i] = strip->noise[id][from];
    }
    return count;
}

static void judge_strip(struct check *check, struct strip *strip, enum attn_direction direction)
{
    bool forward = direction == ATTN_FORWARD;
    const enum tensor_id *results = forward ? forward_results : backward_results;
    size_t count = forward ? COUNT_OF(forward_results) : COUNT_OF(backward_results);
    char place[80];
    (void)snprintf(place, sizeof place, " of sequence %lld, head %lld", (long long)strip->sequence,
        (long long)strip->head);
    for (size_t i = 0; i < count; i++) {
        enum tensor_id id = results[i];
        struct tensor tensor = tensor_of(&strip->problem, id);
        if (tensor.view.data != NULL) {
            double *ours = numbers(tensor_elements(&tensor));
            int64_t elements = pick(strip, id, ours);
            struct bar bar = bar_check(tensor.dtype, forward ? 2 : 3, elements, ours,
                strip->exact[id], strip->low[id], strip->noise[id]);
            judge(check, &bar, id, place);
            free(ours);
        }
    }
}

/* Random numbers in the strip's rows, zero in all others. */
static void sparse_gradient(struct subject *subject, const struct strip *strip, enum tensor_id id)
{
    struct tensor tensor = tensor_of(&strip->problem, id);
    struct dice dice = {(uint64_t)id};
    subject_set_bytes(subject, id, 0);
    for (int64_t i = 0; tensor.view.data != NULL && i < strip->rows * tensor.columns; i++) {
        int64_t index = strip->row[i / tensor.columns] * tensor.columns + i % tensor.columns;
        tensor_set(&tensor, index, (double)dice_below(&dice, 4096) / 1024 - 2);
    }
}

static void check_sample(struct check *check, struct subject *subject,
    const struct attn_family *family, struct workers *workers, enum attn_direction direction)
{
    struct dice dice = {1};
    int64_t lanes = subject->shape->batch * subject->shape->heads_q;
    check->sampled = true;
    check->heads = lanes < SAMPLE_HEADS ? (int)lanes : SAMPLE_HEADS;
    for (int i = 0; i < check->heads && !check->wrong; i++) {
        struct strip strip;
        int64_t band = lanes / check->heads;
        int64_t lane = i * band + dice_below(&dice, (uint32_t)band);
        progress_show("checking sample %d of %d", i + 1, check->heads);
        strip_init(&strip, subject, lane, &dice);
        check->rows = strip.rows > check->rows ? strip.rows : check->rows;
        if (direction == ATTN_BACKWARD) {
            sparse_gradient(subject, &strip, TENSOR_DOUT);
            sparse_gradient(subject, &strip, TENSOR_DLSE);
            compute(check, subject, family, workers, ATTN_BACKWARD);
        }
        strip_compute(&strip, subject->shape, direction);
        judge_strip(check, &strip, direction);
        strip_finish(&strip);
    }
    if (direction == ATTN_BACKWARD) {
        subject_fill(subject, TENSOR_DOUT);
        subject_fill(subject, TENSOR_DLSE);
    }
}

/* -- public --------------------------------------------------------------------------------- */

struct check check_run(struct subject *subject, const struct attn_family *family,
    struct workers *workers, enum attn_direction direction, bool sample)
{
    struct check check = {.done = true};
    double passes = direction == ATTN_FORWARD ? 1 : 3;
    double work = passes * shape_score_bytes(subject->shape) /
                  (double)dtype_bytes(subject->shape->dtype) *
                  (double)(subject->shape->head_dim_qk + subject->shape->head_dim_v);
    progress_show("checking");
    compute(&check, subject, family, workers, ATTN_FORWARD);
    if (!check.wrong && (sample || work > WHOLE_WORK)) {
        check_sample(&check, subject, family, workers, direction);
    } else if (!check.wrong) {
        if (direction == ATTN_BACKWARD) {
            compute(&check, subject, family, workers, ATTN_BACKWARD);
        }
        judge_whole(&check, subject, direction);
    }
    return check;
}

#include "trial_fill.h"

#include <math.h>
#include <stdlib.h>

/* -- lengths -------------------------------------------------------------------------------- */

/* Starts of sequences, some of them empty, some longer than counts, with gaps at both ends. */
static int64_t draw_starts(struct trial_rng *rng, int32_t *starts, int32_t batch, int64_t longest)
{
    int64_t row = trial_chance(rng, 3) ? trial_range(rng, 1, 3) : 0;
    starts[0] = (int32_t)row;
    for (int32_t b = 0; b < batch; b++) {
        int64_t length = trial_chance(rng, 5) ? 0 : trial_range(rng, longest / 3, longest);
        row += trial_chance(rng, 8) ? longest + trial_range(rng, 1, 3) : length;
        starts[b + 1] = (int32_t)row;
    }
    return row + (trial_chance(rng, 3) ? trial_range(rng, 1, 4) : 0);
}

static void spoil_lengths(struct trial_rng *rng, int32_t *lengths, int64_t count, int64_t total)
{
    int64_t spoiled = count > 0 ? trial_range(rng, 1, 3) : 0;
    for (int64_t i = 0; i < spoiled; i++) {
        const int64_t wrong[] = {-1, INT32_MIN, INT32_MAX, total + 1, 2 * total + 7, 0,
            trial_range(rng, -total, 2 * total), trial_range(rng, 0, total)};
        lengths[trial_range(rng, 0, count - 1)] = (int32_t)wrong[trial_range(rng, 0, 7)];
    }
}

int64_t trial_fill_count(const struct trial_spec *spec, enum trial_lengths which)
{
    switch (which) {
    case TRIAL_CU_SEQLENS_Q:
        return spec->varlen_q ? spec->batch + 1 : 0;
    case TRIAL_CU_SEQLENS_K:
        return spec->varlen_k ? spec->batch + 1 : 0;
    case TRIAL_SEQLENS_K:
    case TRIAL_LENGTHS:
        break;
    }
    return spec->key_lengths ? spec->batch : 0;
}

void trial_fill_lengths(const struct trial_spec *spec, int32_t *const arrays[TRIAL_LENGTHS],
    int64_t *total_q, int64_t *total_k)
{
    struct trial_rng rng = {~spec->seed};
    struct trial_rng same = rng;
    int64_t totals[TRIAL_LENGTHS] = {0, 0, spec->seqlen_k};
    if (arrays[0] != NULL) {
        totals[0] = draw_starts(&rng, arrays[0], spec->batch, spec->seqlen_q);
    }
    if (arrays[1] != NULL) {
        totals[1] =
            draw_starts(spec->packed ? &same : &rng, arrays[1], spec->batch, spec->seqlen_k);
    }
    for (int32_t b = 0; arrays[2] != NULL && b < spec->batch; b++) {
        arrays[2][b] = (int32_t)trial_range(&rng, 0, spec->seqlen_k + 2);
    }
    for (enum trial_lengths i = 0; i < TRIAL_LENGTHS; i++) {
        if (spec->hostile && arrays[i] != NULL) {
            spoil_lengths(&rng, arrays[i], trial_fill_count(spec, i), totals[i]);
        }
    }
    *total_q = totals[0];
    *total_k = totals[1];
}

/* -- values --------------------------------------------------------------------------------- */

static void fill(
    const struct attn_problem *problem, enum tensor_id id, struct trial_rng *rng, double size)
{
    struct tensor tensor = tensor_of(problem, id);
    int64_t count = tensor.view.data == NULL ? 0 : tensor_elements(&tensor);
    for (int64_t i = 0; i < count; i++) {
        tensor_set(&tensor, i, size * trial_normal(rng));
    }
}

static void equal_keys(const struct attn_problem *problem)
{
    struct tensor k = tensor_of(problem, TENSOR_K);
    int64_t row = k.heads * k.columns;
    for (int64_t i = 0; i < tensor_elements(&k); i++) {
        tensor_set(&k, i, tensor_get(&k, i / (row * k.rows) * row * k.rows + i % row));
    }
}

static void block_bias(
    const struct attn_problem *problem, struct trial_rng *rng, enum trial_infinities infinities)
{
    struct tensor bias = tensor_of(problem, TENSOR_BIAS);
    bool row = false;
    for (int64_t i = 0; i < tensor_elements(&bias); i++) {
        row = i % bias.columns == 0 ? trial_chance(rng, 4) : row;
        if (infinities == TRIAL_WHOLE_ROWS ? row : trial_chance(rng, 4)) {
            tensor_set(&bias, i, -INFINITY);
        }
    }
}

static void block_sinks(const struct attn_problem *problem, struct trial_rng *rng)
{
    struct tensor sinks = tensor_of(problem, TENSOR_SINKS);
    for (int64_t i = 0; i < tensor_elements(&sinks); i++) {
        if (trial_chance(rng, 3)) {
            tensor_set(&sinks, i, -INFINITY);
        }
    }
}

/* -- what no answer depends on -------------------------------------------------------------- */

static double mark(int64_t index)
{
    static const double marks[3] = {NAN, INFINITY, -INFINITY};
    return marks[index % 3];
}

static bool *flags_of(int64_t count)
{
    bool *flags = calloc(count > 0 ? (size_t)count : 1, sizeof *flags);
    if (flags == NULL) {
        abort();
    }
    return flags;
}

static bool has_strides_of_zero(const struct tensor *tensor)
{
    const struct attn_view *view = &tensor->view;
    return view->row_stride == 0 || view->column_stride == 0 || view->head_stride == 0 ||
           (tensor->batch > 1 && view->batch_stride == 0);
}

static void mark_unused(const struct tensor *tensor, const bool *used)
{
    int64_t row = tensor->heads * tensor->columns;
    for (int64_t i = 0; i < tensor_elements(tensor); i++) {
        if (!used[i / row]) {
            tensor_set(tensor, i, mark(i));
        }
    }
}

void trial_fill_padding(const struct attn_problem *problem, enum tensor_id id)
{
    struct tensor tensor = tensor_of(problem, id);
    bool of_keys = id == TENSOR_K || id == TENSOR_V;
    bool *used = flags_of(tensor.batch * tensor.rows);
    if (tensor.view.data == NULL || has_strides_of_zero(&tensor)) {
        free(used);
        return;
    }
    for (int32_t b = 0; b < problem->batch; b++) {
        struct sequence s = sequence_of(problem, b);
        int64_t first = of_keys ? s.first_k : s.first_q;
        for (int64_t i = 0; i < (of_keys ? s.seqlen_k : s.seqlen_q); i++) {
            used[first + i] = true;
        }
    }
    mark_unused(&tensor, used);
    free(used);
}

static bool sees(const struct attn_problem *p, const struct sequence *s, int64_t row, int64_t key)
{
    int64_t middle = row + (p->alignment == ATTN_BOTTOM_RIGHT ? s->seqlen_k - s->seqlen_q : 0);
    return (p->window_left == ATTN_UNBOUNDED || middle - key <= p->window_left) &&
           (p->window_right == ATTN_UNBOUNDED || key - middle <= p->window_right);
}

/* Elements of bias in no sequence, and those that the mask hides. */
static void fill_hidden_bias(const struct attn_problem *problem)
{
    struct tensor bias = tensor_of(problem, TENSOR_BIAS);
    const bool *one = problem->bias_broadcast;
    if (bias.view.data == NULL || tensor_elements(&bias) == 0 || one[2] || one[3] ||
        bias.view.row_stride == 0 || bias.view.column_stride == 0 ||
        (!one[0] && bias.view.batch_stride == 0)) {
        return;
    }
    bool *used = flags_of(bias.batch * bias.rows * bias.columns);
    for (int32_t b = 0; b < problem->batch; b++) {
        struct sequence s = sequence_of(problem, b);
        bool *first = used + (one[0] ? 0 : b) * bias.rows * bias.columns;
        for (int64_t i = 0; i < s.seqlen_q * s.seqlen_k; i++) {
            int64_t row = i / s.seqlen_k;
            int64_t key = i % s.seqlen_k;
            first[row * bias.columns + key] |= sees(problem, &s, row, key);
        }
    }
    for (int64_t i = 0; i < tensor_elements(&bias); i++) {
        int64_t row = i / (bias.heads * bias.columns); /* of all batches */
        if (!used[row * bias.columns + i % bias.columns]) {
            tensor_set(&bias, i, mark(i));
        }
    }
    free(used);
}

/* -- public --------------------------------------------------------------------------------- */

void trial_fill_values(const struct attn_problem *problem, const struct trial_spec *spec)
{
    static const enum tensor_id padded[] = {TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_DOUT, TENSOR_DLSE};

    struct trial_rng rng = {spec->seed};
    fill(problem, TENSOR_Q, &rng, spec->query_size);
    fill(problem, TENSOR_K, &rng, spec->values == TRIAL_ZERO_KEYS ? 0 : 1);
    fill(problem, TENSOR_V, &rng, spec->value_size);
    fill(problem, TENSOR_DOUT, &rng, spec->value_size);
    fill(problem, TENSOR_DLSE, &rng, 1);
    fill(problem, TENSOR_BIAS, &rng, spec->bias_size);
    fill(problem, TENSOR_SLOPES, &rng, 0.3);
    fill(problem, TENSOR_SINKS, &rng, 2);
    if (spec->values == TRIAL_EQUAL_KEYS) {
        equal_keys(problem);
    }
    if (spec->bias && spec->bias_infinities != TRIAL_FINITE) {
        block_bias(problem, &rng, spec->bias_infinities);
    }
    if (spec->sinks && spec->sinks_infinite) {
        block_sinks(problem, &rng);
    }
    fill_hidden_bias(problem);
    for (size_t i = 0; i < sizeof padded / sizeof padded[0]; i++) {
        trial_fill_padding(problem, padded[i]);
    }
}

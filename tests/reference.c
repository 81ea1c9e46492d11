#include "reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* One sequence and one query head of a problem, in one of the two arithmetics. */
struct pass {
    const struct attn_problem *problem;
    double **result; /* by tensor_id, as in struct reference */
    double **noise;  /* NULL in the low pass */
    bool low;
    bool backward;

    int64_t batch;
    int64_t head;
    int64_t kv_head;
    int64_t first_q; /* rows before this sequence, in the order of tensor_at() */
    int64_t first_k;
    int64_t seqlen_q;
    int64_t seqlen_k;
    double max_key; /* the longest key vector */
    double max_value;

    const double *q; /* the problem's inputs, compact, NULL if absent */
    const double *k;
    const double *v;
    const double *dout;
    const double *dlse;
    double *k_columns; /* this head's k and v, transposed */
    double *v_columns;

    double *scores; /* one row, indexed by key */
    double *weights;
    double *dropped;
    double *slope_of_cap;
    double *dp;
};

static const double unit32 = 0x1p-24;

static void *reserve(int64_t count)
{
    void *memory = calloc(count > 0 ? (size_t)count : 1, sizeof(double));
    if (memory == NULL) {
        fprintf(stderr, "reference: out of memory for %lld numbers\n", (long long)count);
        abort();
    }
    return memory;
}

/* -- arithmetic ----------------------------------------------------------------------------- */

/* A step of a sum or a function: fp32 in the low pass. */
static double step(const struct pass *pass, double value)
{
    return pass->low ? (double)(float)value : value;
}

/* A result that goes to memory: the dtype in the low pass. */
static double store(const struct pass *pass, double value)
{
    return pass->low ? dtype_round(pass->problem->dtype, (double)(float)value) : value;
}

/* y += a * x */
static void axpy(const struct pass *pass, double *y, double a, const double *x, int64_t count)
{
    if (pass->low) {
        for (int64_t i = 0; i < count; i++) {
            y[i] = (double)(float)(y[i] + a * x[i]);
        }
    } else {
        for (int64_t i = 0; i < count; i++) {
            y[i] += a * x[i];
        }
    }
}

static void add_sizes(double *y, double a, const double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        y[i] += a * fabs(x[i]);
    }
}

static double length_of(const double *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += x[i] * x[i];
    }
    return sqrt(sum);
}

static double *query_row(
    const struct pass *pass, const double *tensor, int64_t row, int64_t columns)
{
    int64_t index = (pass->first_q + row) * pass->problem->heads_q + pass->head;
    return (double *)(uintptr_t)(tensor + index * columns);
}

static double *key_row(const struct pass *pass, const double *tensor, int64_t key, int64_t columns)
{
    int64_t index = (pass->first_k + key) * pass->problem->heads_kv + pass->kv_head;
    return (double *)(uintptr_t)(tensor + index * columns);
}

/* -- dropout -------------------------------------------------------------------------------- */

static void philox(uint32_t counter[4], uint64_t seed)
{
    uint32_t key0 = (uint32_t)seed;
    uint32_t key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t even = UINT64_C(0xD2511F53) * counter[0];
        uint64_t odd = UINT64_C(0xCD9E8D57) * counter[2];
        counter[0] = (uint32_t)(odd >> 32) ^ counter[1] ^ key0;
        counter[1] = (uint32_t)odd;
        counter[2] = (uint32_t)(even >> 32) ^ counter[3] ^ key1;
        counter[3] = (uint32_t)even;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

bool reference_kept(const struct attn_problem *problem, int64_t row, int64_t key, uint32_t lane)
{
    uint32_t i = (uint32_t)row;
    uint32_t j = (uint32_t)key;
    uint32_t random[4] = {
        (i >> 4) * 8 + (i & 7), (j >> 4) * 4 + ((j & 7) >> 1), lane, problem->dropout_offset};
    philox(random, problem->dropout_seed);
    uint32_t number = 4 * ((i >> 3) & 1) + 2 * ((j >> 3) & 1) + (j & 1);
    uint32_t value = random[number / 2] >> (16 * (number % 2)) & 0xffff;
    return value >= problem->dropout_threshold;
}

/* What dropout multiplies score (row, key) with. */
static double keep_factor(const struct pass *pass, int64_t row, int64_t key)
{
    const struct attn_problem *p = pass->problem;
    if (p->dropout_threshold == 0) {
        return 1;
    }
    uint32_t lane = (uint32_t)(pass->batch * p->heads_q + pass->head);
    return reference_kept(p, row, key, lane) ? 65536.0 / (65536.0 - p->dropout_threshold) : 0;
}

/* -- forward -------------------------------------------------------------------------------- */

static int64_t diagonal(const struct attn_problem *problem, int64_t seqlen_q, int64_t seqlen_k)
{
    return problem->alignment == ATTN_BOTTOM_RIGHT ? seqlen_k - seqlen_q : 0;
}

void reference_visible(const struct attn_problem *problem, int64_t row, int64_t seqlen_q,
    int64_t seqlen_k, int64_t *begin, int64_t *end)
{
    const int64_t far = INT64_C(1) << 40; /* beyond any length, and sums stay in range */
    int64_t middle = row + diagonal(problem, seqlen_q, seqlen_k);
    int64_t left = problem->window_left;
    int64_t right = problem->window_right;
    int64_t first = left == ATTN_UNBOUNDED ? 0 : middle - (left < far ? left : far);
    int64_t last = right == ATTN_UNBOUNDED ? seqlen_k - 1 : middle + (right < far ? right : far);
    *begin = first > 0 ? first : 0;
    *end = last < seqlen_k ? last + 1 : seqlen_k;
}

static int64_t bias_index(const struct pass *pass, int64_t row, int64_t key)
{
    struct tensor bias = tensor_of(pass->problem, TENSOR_BIAS);
    const bool *one = pass->problem->bias_broadcast;
    int64_t index = one[0] ? 0 : pass->batch;
    index = index * bias.rows + (one[2] ? 0 : row);
    index = index * bias.heads + (one[1] ? 0 : pass->head);
    return index * bias.columns + (one[3] ? 0 : key);
}

static int64_t slope_index(const struct pass *pass)
{
    bool shared = pass->problem->slopes.batch_stride == 0;
    return (shared ? 0 : pass->batch * pass->problem->heads_q) + pass->head;
}

static double position_distance(const struct pass *pass, int64_t row, int64_t key)
{
    int64_t middle = row + diagonal(pass->problem, pass->seqlen_q, pass->seqlen_k);
    return fabs((double)(middle - key));
}

/* What is added to a score after softcap. */
static double score_offset(const struct pass *pass, int64_t row, int64_t key)
{
    const struct attn_problem *p = pass->problem;
    double sum = 0;
    if (p->bias.data != NULL) {
        struct tensor bias = tensor_of(p, TENSOR_BIAS);
        sum += tensor_get(&bias, bias_index(pass, row, key));
    }
    if (p->slopes.data != NULL) {
        struct tensor slopes = tensor_of(p, TENSOR_SLOPES);
        sum -= tensor_get(&slopes, slope_index(pass)) * position_distance(pass, row, key);
    }
    return sum;
}

static void score_row(struct pass *pass, int64_t row, int64_t begin, int64_t end)
{
    const struct attn_problem *p = pass->problem;
    const double *q = query_row(pass, pass->q, row, p->head_dim_qk);
    double cap = (double)p->softcap;
    for (int64_t key = begin; key < end; key++) {
        pass->scores[key] = 0;
        pass->slope_of_cap[key] = 1;
    }
    for (int64_t c = 0; c < p->head_dim_qk; c++) {
        const double *column = pass->k_columns + c * pass->seqlen_k;
        axpy(pass, pass->scores + begin, q[c], column + begin, end - begin);
    }
    for (int64_t key = begin; key < end; key++) {
        double score = store(pass, pass->scores[key] * (double)p->scale);
        if (cap > 0) {
            double bent = step(pass, tanh(step(pass, score / cap)));
            score = store(pass, cap * bent);
            pass->slope_of_cap[key] = step(pass, 1 - bent * bent);
        }
        if (p->bias.data != NULL || p->slopes.data != NULL) {
            score = store(pass, score + score_offset(pass, row, key));
        }
        pass->scores[key] = score;
    }
}

/* Turns the row's scores into weights; returns its lse. */
static double soften_row(struct pass *pass, int64_t begin, int64_t end)
{
    struct tensor sinks = tensor_of(pass->problem, TENSOR_SINKS);
    bool sunk = sinks.view.data != NULL;
    double sink = sunk ? tensor_get(&sinks, pass->head) : -INFINITY;
    double max = sink;
    for (int64_t key = begin; key < end; key++) {
        max = pass->scores[key] > max ? pass->scores[key] : max;
    }
    if (max == -INFINITY) {
        for (int64_t key = begin; key < end; key++) {
            pass->weights[key] = 0;
        }
        return -INFINITY;
    }
    double sum = sunk ? step(pass, exp(step(pass, sink - max))) : 0;
    for (int64_t key = begin; key < end; key++) {
        pass->weights[key] = step(pass, exp(step(pass, pass->scores[key] - max)));
        sum = step(pass, sum + pass->weights[key]);
    }
    for (int64_t key = begin; key < end; key++) {
        pass->weights[key] = store(pass, pass->weights[key] / sum);
    }
    return step(pass, max + step(pass, log(sum)));
}

/*
 * How far fp32 may move a score of the row: rounding grows with the sizes that cancel in the product
 * of q and k, not with the score, and the exponential turns it into as large a relative error.
 */
static double score_noise(const struct pass *pass, int64_t row, int64_t begin, int64_t end)
{
    const struct attn_problem *p = pass->problem;
    const double *q = query_row(pass, pass->q, row, p->head_dim_qk);
    double size = fabs((double)p->scale) * length_of(q, p->head_dim_qk) * pass->max_key;
    for (int64_t key = begin; key < end; key++) {
        double score = fabs(pass->scores[key]);
        size = isfinite(score) && score > size ? score : size;
    }
    return unit32 * (size + 1);
}

static void forward_noise(
    struct pass *pass, int64_t row, int64_t begin, int64_t end, double score_error)
{
    int64_t columns = pass->problem->head_dim_v;
    const double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    double *noise = query_row(pass, pass->noise[TENSOR_OUT], row, columns);
    for (int64_t key = begin; key < end; key++) {
        const double *v = key_row(pass, pass->v, key, columns);
        double weight = pass->dropped[key];
        for (int64_t c = 0; c < columns && weight > 0; c++) {
            noise[c] += weight * (score_error * fabs(v[c] - out[c]) + unit32 * fabs(v[c]));
        }
    }
    double lse = *query_row(pass, pass->result[TENSOR_LSE], row, 1);
    *query_row(pass, pass->noise[TENSOR_LSE], row, 1) =
        isfinite(lse) ? score_error + unit32 * fabs(lse) : 0;
}

static void forward_row(struct pass *pass, int64_t row, int64_t begin, int64_t end)
{
    int64_t columns = pass->problem->head_dim_v;
    double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    score_row(pass, row, begin, end);
    *query_row(pass, pass->result[TENSOR_LSE], row, 1) = soften_row(pass, begin, end);
    for (int64_t key = begin; key < end; key++) {
        pass->dropped[key] = store(pass, pass->weights[key] * keep_factor(pass, row, key));
        axpy(pass, out, pass->dropped[key], key_row(pass, pass->v, key, columns), columns);
    }
    for (int64_t c = 0; c < columns; c++) {
        out[c] = store(pass, out[c]);
    }
    if (pass->noise != NULL) {
        forward_noise(pass, row, begin, end, score_noise(pass, row, begin, end));
    }
}

/* -- backward ------------------------------------------------------------------------------- */

static double delta_of(const struct pass *pass, int64_t row)
{
    int64_t columns = pass->problem->head_dim_v;
    const double *dout = query_row(pass, pass->dout, row, columns);
    const double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    double sum = 0;
    for (int64_t c = 0; c < columns; c++) {
        sum = step(pass, sum + dout[c] * out[c]);
    }
    return pass->dlse == NULL ? sum : step(pass, sum - *query_row(pass, pass->dlse, row, 1));
}

/* dout . v of every visible key */
static void dp_row(struct pass *pass, int64_t row, int64_t begin, int64_t end)
{
    int64_t columns = pass->problem->head_dim_v;
    const double *dout = query_row(pass, pass->dout, row, columns);
    for (int64_t key = begin; key < end; key++) {
        pass->dp[key] = 0;
    }
    for (int64_t c = 0; c < columns; c++) {
        const double *column = pass->v_columns + c * pass->seqlen_k;
        axpy(pass, pass->dp + begin, dout[c], column + begin, end - begin);
    }
    for (int64_t key = begin; key < end; key++) {
        pass->dp[key] = store(pass, pass->dp[key]);
    }
}

/* The gradients that are sums of ds itself. */
static void add_score_gradient(struct pass *pass, int64_t row, int64_t key, double ds)
{
    double *dbias = pass->result[TENSOR_DBIAS];
    double *dslopes = pass->result[TENSOR_DSLOPES];
    if (dbias != NULL) {
        int64_t index = bias_index(pass, row, key);
        dbias[index] = step(pass, dbias[index] + ds);
    }
    if (dslopes != NULL) {
        int64_t index = slope_index(pass);
        double distance = position_distance(pass, row, key);
        dslopes[index] = step(pass, dslopes[index] - distance * ds);
    }
}

static void add_sink_gradient(struct pass *pass, int64_t row, double delta)
{
    double *dsinks = pass->result[TENSOR_DSINKS];
    if (dsinks != NULL) {
        struct tensor sinks = tensor_of(pass->problem, TENSOR_SINKS);
        double lse = *query_row(pass, pass->result[TENSOR_LSE], row, 1);
        double sink = tensor_get(&sinks, pass->head);
        double weight = lse == -INFINITY ? 0 : step(pass, exp(step(pass, sink - lse)));
        dsinks[pass->head] = step(pass, dsinks[pass->head] - weight * delta);
    }
}

/*
 * How far rounding may move delta: the sum itself, what the forward pass did to out, and out's
 * rounding to the dtype, whose independent errors add up as squares.
 */
static double delta_noise(const struct pass *pass, int64_t row)
{
    int64_t columns = pass->problem->head_dim_v;
    const double *dout = query_row(pass, pass->dout, row, columns);
    const double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    const double *out_noise = query_row(pass, pass->noise[TENSOR_OUT], row, columns);
    double sum = pass->dlse == NULL ? 0 : unit32 * fabs(*query_row(pass, pass->dlse, row, 1));
    double squares = 0;
    for (int64_t c = 0; c < columns; c++) {
        double product = dout[c] * out[c];
        sum += unit32 * fabs(product) + fabs(dout[c]) * out_noise[c];
        squares += product * product;
    }
    return sum + dtype_unit(pass->problem->dtype) * sqrt(squares);
}

static void score_gradient_noise(struct pass *pass, int64_t row, int64_t key, double error)
{
    if (pass->noise[TENSOR_DBIAS] != NULL) {
        pass->noise[TENSOR_DBIAS][bias_index(pass, row, key)] += error;
    }
    if (pass->noise[TENSOR_DSLOPES] != NULL) {
        double distance = position_distance(pass, row, key);
        pass->noise[TENSOR_DSLOPES][slope_index(pass)] += distance * error;
    }
}

static void backward_noise(struct pass *pass, int64_t row, int64_t begin, int64_t end, double delta)
{
    int64_t columns_qk = pass->problem->head_dim_qk;
    int64_t columns_v = pass->problem->head_dim_v;
    const double *q = query_row(pass, pass->q, row, columns_qk);
    const double *dout = query_row(pass, pass->dout, row, columns_v);
    double score_error = score_noise(pass, row, begin, end);
    double dp_error = unit32 * length_of(dout, columns_v) * pass->max_value;
    double delta_error = delta_noise(pass, row);
    for (int64_t key = begin; key < end; key++) {
        double weight = pass->weights[key];
        double keep = keep_factor(pass, row, key);
        double ds = fabs(keep * pass->dp[key] - delta);
        double error = weight * (ds * (score_error + unit32) + keep * dp_error + delta_error);
        score_gradient_noise(pass, row, key, error);
        error *= pass->slope_of_cap[key];
        add_sizes(query_row(pass, pass->noise[TENSOR_DQ], row, columns_qk), error,
            key_row(pass, pass->k, key, columns_qk), columns_qk);
        add_sizes(key_row(pass, pass->noise[TENSOR_DK], key, columns_qk), error, q, columns_qk);
        add_sizes(key_row(pass, pass->noise[TENSOR_DV], key, columns_v),
            pass->dropped[key] * (score_error + unit32), dout, columns_v);
    }
    if (pass->noise[TENSOR_DSINKS] != NULL) {
        pass->noise[TENSOR_DSINKS][pass->head] +=
            delta_error + fabs(delta) * (score_error + unit32);
    }
}

static void backward_row(struct pass *pass, int64_t row, int64_t begin, int64_t end)
{
    int64_t columns_qk = pass->problem->head_dim_qk;
    int64_t columns_v = pass->problem->head_dim_v;
    const double *q = query_row(pass, pass->q, row, columns_qk);
    const double *dout = query_row(pass, pass->dout, row, columns_v);
    double *dq = query_row(pass, pass->result[TENSOR_DQ], row, columns_qk);
    double delta = delta_of(pass, row);
    dp_row(pass, row, begin, end);
    for (int64_t key = begin; key < end; key++) {
        if (pass->weights[key] == 0) {
            continue;
        }
        double *dk = key_row(pass, pass->result[TENSOR_DK], key, columns_qk);
        double *dv = key_row(pass, pass->result[TENSOR_DV], key, columns_v);
        double keep = keep_factor(pass, row, key);
        double ds = store(pass, pass->weights[key] * (keep * pass->dp[key] - delta));
        add_score_gradient(pass, row, key, ds);
        ds = store(pass, ds * pass->slope_of_cap[key]);
        axpy(pass, dv, pass->dropped[key], dout, columns_v);
        axpy(pass, dq, ds, key_row(pass, pass->k, key, columns_qk), columns_qk);
        axpy(pass, dk, ds, q, columns_qk);
    }
    add_sink_gradient(pass, row, delta);
    if (pass->noise != NULL) {
        backward_noise(pass, row, begin, end, delta);
    }
}

/* -- passes --------------------------------------------------------------------------------- */

static double *transpose(
    const struct pass *pass, const double *tensor, int64_t columns, double *max_length)
{
    double *result = reserve(columns * pass->seqlen_k);
    *max_length = 0;
    for (int64_t key = 0; key < pass->seqlen_k; key++) {
        const double *row = key_row(pass, tensor, key, columns);
        for (int64_t c = 0; c < columns; c++) {
            result[c * pass->seqlen_k + key] = row[c];
        }
        *max_length = fmax(*max_length, length_of(row, columns));
    }
    return result;
}

static void run_head(struct pass *pass)
{
    const struct attn_problem *p = pass->problem;
    pass->kv_head = pass->head / (p->heads_q / p->heads_kv);
    pass->k_columns = transpose(pass, pass->k, p->head_dim_qk, &pass->max_key);
    pass->v_columns = transpose(pass, pass->v, p->head_dim_v, &pass->max_value);
    for (int64_t row = 0; row < pass->seqlen_q; row++) {
        int64_t begin = 0;
        int64_t end = 0;
        reference_visible(p, row, pass->seqlen_q, pass->seqlen_k, &begin, &end);
        end = end < begin ? begin : end;
        forward_row(pass, row, begin, end);
        if (pass->backward) {
            backward_row(pass, row, begin, end);
        }
    }
    free(pass->k_columns);
    free(pass->v_columns);
}

static void find_sequence(struct pass *pass)
{
    const struct attn_problem *p = pass->problem;
    const struct attn_lengths *lengths = &p->lengths;
    pass->first_q = pass->batch * p->seqlen_q;
    pass->first_k = pass->batch * p->seqlen_k;
    pass->seqlen_q = p->seqlen_q;
    pass->seqlen_k = p->seqlen_k;
    if (lengths->cu_seqlens_q != NULL) {
        pass->first_q = lengths->cu_seqlens_q[pass->batch];
        pass->seqlen_q = lengths->cu_seqlens_q[pass->batch + 1] - pass->first_q;
    }
    if (lengths->cu_seqlens_k != NULL) {
        pass->first_k = lengths->cu_seqlens_k[pass->batch];
        pass->seqlen_k = lengths->cu_seqlens_k[pass->batch + 1] - pass->first_k;
    }
    if (lengths->seqlens_k != NULL && lengths->seqlens_k[pass->batch] < pass->seqlen_k) {
        pass->seqlen_k = lengths->seqlens_k[pass->batch];
    }
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

/* Sums become results: the score's scale is applied once, and the low pass rounds to memory. */
static void finish_sums(struct pass *pass, enum tensor_id id, double factor)
{
    struct tensor tensor = tensor_of(pass->problem, id);
    int64_t count = tensor_elements(&tensor);
    for (int64_t i = 0; i < count && pass->result[id] != NULL; i++) {
        double value = pass->result[id][i] * factor;
        pass->result[id][i] = pass->low ? dtype_round(tensor.dtype, value) : value;
        if (pass->noise != NULL) {
            pass->noise[id][i] = pass->noise[id][i] * fabs(factor) + unit32 * fabs(value);
        }
    }
}

static void run_pass(struct pass *pass)
{
    const struct attn_problem *p = pass->problem;
    double *rows = reserve(5 * p->seqlen_k);
    pass->scores = rows;
    pass->weights = rows + p->seqlen_k;
    pass->dropped = rows + 2 * p->seqlen_k;
    pass->slope_of_cap = rows + 3 * p->seqlen_k;
    pass->dp = rows + 4 * p->seqlen_k;
    for (pass->batch = 0; pass->batch < p->batch; pass->batch++) {
        find_sequence(pass);
        for (pass->head = 0; pass->head < p->heads_q; pass->head++) {
            run_head(pass);
        }
    }
    if (pass->backward) {
        double scale = (double)p->scale;
        finish_sums(pass, TENSOR_DQ, scale);
        finish_sums(pass, TENSOR_DK, scale);
        finish_sums(pass, TENSOR_DV, 1);
        finish_sums(pass, TENSOR_DBIAS, 1);
        finish_sums(pass, TENSOR_DSLOPES, 1);
        finish_sums(pass, TENSOR_DSINKS, 1);
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

static struct pass open_pass(enum attn_direction direction, const struct attn_problem *problem)
{
    bool backward = direction == ATTN_BACKWARD;
    return (struct pass){
        .problem = problem,
        .backward = backward,
        .q = gather(problem, TENSOR_Q),
        .k = gather(problem, TENSOR_K),
        .v = gather(problem, TENSOR_V),
        .dout = backward ? gather(problem, TENSOR_DOUT) : NULL,
        .dlse = backward ? gather(problem, TENSOR_DLSE) : NULL,
    };
}

static void close_pass(struct pass *pass)
{
    const double *const inputs[] = {pass->q, pass->k, pass->v, pass->dout, pass->dlse};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        free((void *)(uintptr_t)inputs[i]);
    }
}

struct reference *reference_create(
    enum attn_direction direction, const struct attn_problem *problem)
{
    struct reference *reference = reserve(sizeof *reference / sizeof(double) + 1);
    allocate_results(reference, direction, problem);
    struct pass pass = open_pass(direction, problem);
    pass.result = reference->exact;
    pass.noise = reference->noise;
    run_pass(&pass);
    pass.result = reference->low;
    pass.noise = NULL;
    pass.low = true;
    run_pass(&pass);
    close_pass(&pass);
    return reference;
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
        loss += tensor_get(&dout, i) * reference->exact[TENSOR_OUT][i];
    }
    for (int64_t i = 0; i < reference->count[TENSOR_LSE] && dlse.view.data != NULL; i++) {
        double lse = reference->exact[TENSOR_LSE][i];
        loss += isfinite(lse) ? tensor_get(&dlse, i) * lse : 0;
    }
    reference_destroy(reference);
    return loss;
}

#include "formula.h"

#include <math.h>

/* -- arithmetic ----------------------------------------------------------------------------- */

/* A step of a sum or a function: fp32 in the low pass. */
static double step(const struct formula *pass, double value)
{
    return pass->low ? (double)(float)value : value;
}

/* A result that goes to memory: the dtype in the low pass. */
static double store(const struct formula *pass, double value)
{
    return pass->low ? dtype_round(pass->problem->dtype, (double)(float)value) : value;
}

/* What a kernel may keep in registers. */
static double hold(const struct formula *pass, double value)
{
    return pass->strict ? step(pass, value) : store(pass, value);
}

/* y += a * x */
static void axpy(const struct formula *pass, double *y, double a, const double *x, int64_t count)
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

/* y += (a * x)^2 / 3, a being the most that a number is rounded by */
static void add_squares(double *y, double a, const double *x, int64_t count)
{
    for (int64_t i = 0; i < count && a > 0; i++) {
        y[i] += a * a * x[i] * x[i] / 3;
    }
}

static double *query_row(
    const struct formula *pass, const double *tensor, int64_t row, int64_t columns)
{
    int64_t index = (pass->sequence.first_q + row) * pass->problem->heads_q + pass->head;
    return (double *)(uintptr_t)(tensor + index * columns);
}

/* -- dropout -------------------------------------------------------------------------------- */

/* What dropout multiplies score (row, key) with. */
static double keep_factor(const struct formula *pass, int64_t row, int64_t key)
{
    const struct attn_problem *p = pass->problem;
    if (p->dropout_threshold == 0) {
        return 1;
    }
    uint32_t lane = (uint32_t)(pass->batch * p->heads_q + pass->head);
    return formula_kept(p, row, key, lane) ? 65536.0 / (65536.0 - p->dropout_threshold) : 0;
}

/* -- forward -------------------------------------------------------------------------------- */

static int64_t diagonal(const struct attn_problem *problem, int64_t seqlen_q, int64_t seqlen_k)
{
    return problem->alignment == ATTN_BOTTOM_RIGHT ? seqlen_k - seqlen_q : 0;
}

static int64_t bias_index(const struct formula *pass, int64_t row, int64_t key)
{
    const struct tensor *bias = &pass->shape[TENSOR_BIAS];
    const bool *one = pass->problem->bias_broadcast;
    int64_t index = one[0] ? 0 : pass->batch;
    index = index * bias->rows + (one[2] ? 0 : row);
    index = index * bias->heads + (one[1] ? 0 : pass->head);
    return index * bias->columns + (one[3] ? 0 : key);
}

static int64_t slope_index(const struct formula *pass, enum tensor_id id)
{
    bool shared = pass->shape[id].batch == 1;
    return (shared ? 0 : pass->batch * pass->problem->heads_q) + pass->head;
}

static double position_distance(const struct formula *pass, int64_t row, int64_t key)
{
    int64_t middle =
        row + diagonal(pass->problem, pass->sequence.seqlen_q, pass->sequence.seqlen_k);
    return fabs((double)(middle - key));
}

/* What is added to a score after softcap. */
static double score_offset(const struct formula *pass, int64_t row, int64_t key)
{
    double sum = 0;
    if (pass->bias != NULL) {
        sum += pass->bias[bias_index(pass, row, key)];
    }
    if (pass->slopes != NULL) {
        sum -= pass->slopes[slope_index(pass, TENSOR_SLOPES)] * position_distance(pass, row, key);
    }
    return sum;
}

static void score_row(struct formula *pass, int64_t row, int64_t begin, int64_t end)
{
    const struct attn_problem *p = pass->problem;
    const double *q = query_row(pass, pass->q, row, p->head_dim_qk);
    double cap = (double)p->softcap;
    for (int64_t key = begin; key < end; key++) {
        pass->scores[key] = 0;
        pass->slope_of_cap[key] = 1;
    }
    for (int64_t c = 0; c < p->head_dim_qk; c++) {
        const double *column = pass->k_columns + c * pass->sequence.seqlen_k;
        axpy(pass, pass->scores + begin, q[c], column + begin, end - begin);
    }
    for (int64_t key = begin; key < end; key++) {
        double score = hold(pass, pass->scores[key] * (double)p->scale);
        if (cap > 0) {
            double bent = step(pass, tanh(step(pass, score / cap)));
            score = hold(pass, cap * bent);
            pass->slope_of_cap[key] = step(pass, 1 - bent * bent);
        }
        if (pass->bias != NULL || pass->slopes != NULL) {
            score = hold(pass, score + score_offset(pass, row, key));
        }
        pass->scores[key] = score;
    }
}

/* Turns the row's scores into weights; returns its lse. */
static double soften_row(struct formula *pass, int64_t begin, int64_t end)
{
    bool sunk = pass->sinks != NULL;
    double sink = sunk ? pass->sinks[pass->head] : -INFINITY;
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
        pass->weights[key] = hold(pass, pass->weights[key] / sum);
    }
    return step(pass, max + step(pass, log(sum)));
}

/*
 * How far fp32 may move a score of the row: rounding grows with the sizes that cancel in the product
 * of q and k, not with the score, and the exponential turns it into as large a relative error.
 */
static double score_noise(const struct formula *pass, int64_t row, int64_t begin, int64_t end)
{
    const struct attn_problem *p = pass->problem;
    const double *q = query_row(pass, pass->q, row, p->head_dim_qk);
    double size = fabs((double)p->scale) * formula_length(q, p->head_dim_qk) * pass->max_key;
    for (int64_t key = begin; key < end; key++) {
        double score = fabs(pass->scores[key]);
        size = isfinite(score) && score > size ? score : size;
    }
    return FORMULA_UNIT32 * (size + 1);
}

/*
 * How far a factor of a product of matrices is moved by its rounding to the dtype: at most to 0, and if
 * the dtype has the number, no farther than fp32 has moved it before. What fp32 does alone is the
 * business of score_noise() and its like.
 */
static double operand_step(const struct formula *pass, double value, double error)
{
    enum attn_dtype dtype = pass->problem->dtype;
    double step = dtype == ATTN_FP32 ? 0 : fmin(dtype_half_step(dtype, value), fabs(value));
    return dtype_round(dtype, value) == value ? fmin(step, error) : step;
}

/* The same of a probability on its way to out, where the row's largest one counts as 1. */
static double weight_step(
    const struct formula *pass, int64_t key, double largest, double score_error)
{
    double weight = pass->weights[key];
    return weight > 0
               ? pass->keep[key] * largest * operand_step(pass, weight / largest, score_error)
               : 0;
}

static double largest_weight(const struct formula *pass, int64_t begin, int64_t end)
{
    double largest = 0;
    for (int64_t key = begin; key < end; key++) {
        largest = fmax(largest, pass->weights[key]);
    }
    return largest;
}

static void forward_noise(
    struct formula *pass, int64_t row, int64_t begin, int64_t end, double score_error)
{
    const double product_error = 3 * FORMULA_UNIT32; /* weight, product and division round */
    int64_t columns = pass->problem->head_dim_v;
    const double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    double *noise = query_row(pass, pass->noise[TENSOR_OUT], row, columns);
    double *spread = query_row(pass, pass->spread[TENSOR_OUT], row, columns);
    double largest = largest_weight(pass, begin, end);
    for (int64_t key = begin; key < end; key++) {
        const double *v = formula_key_row(pass, pass->v, key, columns);
        add_squares(spread, weight_step(pass, key, largest, score_error), v, columns);
        double weight = pass->weights[key];
        double keep = pass->keep[key];
        for (int64_t c = 0; c < columns && weight > 0; c++) {
            noise[c] += weight * (score_error * fabs(keep * v[c] - out[c]) +
                                     product_error * keep * fabs(v[c]));
        }
    }
    double lse = *query_row(pass, pass->result[TENSOR_LSE], row, 1);
    *query_row(pass, pass->noise[TENSOR_LSE], row, 1) =
        isfinite(lse) ? score_error + FORMULA_UNIT32 * fabs(lse) : 0;
}

/* -- backward ------------------------------------------------------------------------------- */

static double delta_of(const struct formula *pass, int64_t row)
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
static void dp_row(struct formula *pass, int64_t row, int64_t begin, int64_t end)
{
    int64_t columns = pass->problem->head_dim_v;
    const double *dout = query_row(pass, pass->dout, row, columns);
    for (int64_t key = begin; key < end; key++) {
        pass->dp[key] = 0;
    }
    for (int64_t c = 0; c < columns; c++) {
        const double *column = pass->v_columns + c * pass->sequence.seqlen_k;
        axpy(pass, pass->dp + begin, dout[c], column + begin, end - begin);
    }
    for (int64_t key = begin; key < end; key++) {
        pass->dp[key] = hold(pass, pass->dp[key]);
    }
}

/* The gradients that are sums of ds itself. */
static void add_score_gradient(struct formula *pass, int64_t row, int64_t key, double ds)
{
    double *dbias = pass->result[TENSOR_DBIAS];
    double *dslopes = pass->result[TENSOR_DSLOPES];
    if (dbias != NULL) {
        int64_t index = bias_index(pass, row, key);
        dbias[index] = step(pass, dbias[index] + ds);
    }
    if (dslopes != NULL) {
        int64_t index = slope_index(pass, TENSOR_DSLOPES);
        double distance = position_distance(pass, row, key);
        dslopes[index] = step(pass, dslopes[index] - distance * ds);
    }
}

static double sink_weight(const struct formula *pass, int64_t row)
{
    double lse = *query_row(pass, pass->result[TENSOR_LSE], row, 1);
    double sink = pass->sinks[pass->head];
    return lse == -INFINITY ? 0 : step(pass, exp(step(pass, sink - lse)));
}

static void add_sink_gradient(struct formula *pass, int64_t row, double delta)
{
    double *dsinks = pass->result[TENSOR_DSINKS];
    if (dsinks != NULL) {
        double part = sink_weight(pass, row) * delta;
        dsinks[pass->head] = step(pass, dsinks[pass->head] - part);
    }
}

/*
 * How far rounding may move delta: the sum itself, what the forward pass did to out, and the rounding
 * of probabilities and of out to the dtype, whose independent errors add up as squares.
 */
static double delta_noise(
    const struct formula *pass, int64_t row, int64_t begin, int64_t end, double score_error)
{
    int64_t columns = pass->problem->head_dim_v;
    const double *dout = query_row(pass, pass->dout, row, columns);
    const double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    const double *out_noise = query_row(pass, pass->noise[TENSOR_OUT], row, columns);
    double sum =
        pass->dlse == NULL ? 0 : FORMULA_UNIT32 * fabs(*query_row(pass, pass->dlse, row, 1));
    double squares = 0;
    for (int64_t c = 0; c < columns; c++) {
        double product = dout[c] * out[c];
        sum += FORMULA_UNIT32 * fabs(product) + fabs(dout[c]) * out_noise[c];
        double rounding = dout[c] * dtype_half_step(pass->problem->dtype, out[c]);
        squares += rounding * rounding;
    }
    double largest = largest_weight(pass, begin, end);
    for (int64_t key = begin; key < end; key++) {
        add_squares(&squares, weight_step(pass, key, largest, score_error), &pass->dp[key], 1);
    }
    return sum + sqrt(squares);
}

static void score_gradient_noise(struct formula *pass, int64_t row, int64_t key, double error)
{
    if (pass->noise[TENSOR_DBIAS] != NULL) {
        pass->noise[TENSOR_DBIAS][bias_index(pass, row, key)] += error;
    }
    if (pass->noise[TENSOR_DSLOPES] != NULL) {
        double distance = position_distance(pass, row, key);
        pass->noise[TENSOR_DSLOPES][slope_index(pass, TENSOR_DSLOPES)] += distance * error;
    }
}

/* What products of probabilities and of ds, rounded to the dtype, add to gradients. Kernels may round ds
 * times any factor. */
static void operand_spread(
    struct formula *pass, int64_t row, int64_t key, double ds, double score_error)
{
    int64_t columns_qk = pass->problem->head_dim_qk;
    int64_t columns_v = pass->problem->head_dim_v;
    double ds_step = operand_step(pass, ds, INFINITY);
    double p_step = pass->keep[key] * operand_step(pass, pass->weights[key], score_error);
    add_squares(query_row(pass, pass->spread[TENSOR_DQ], row, columns_qk), ds_step,
        formula_key_row(pass, pass->k, key, columns_qk), columns_qk);
    add_squares(formula_key_row(pass, pass->spread[TENSOR_DK], key, columns_qk), ds_step,
        query_row(pass, pass->q, row, columns_qk), columns_qk);
    add_squares(formula_key_row(pass, pass->spread[TENSOR_DV], key, columns_v), p_step,
        query_row(pass, pass->dout, row, columns_v), columns_v);
}

static void backward_noise(
    struct formula *pass, int64_t row, int64_t begin, int64_t end, double delta)
{
    int64_t columns_qk = pass->problem->head_dim_qk;
    int64_t columns_v = pass->problem->head_dim_v;
    const double *q = query_row(pass, pass->q, row, columns_qk);
    const double *dout = query_row(pass, pass->dout, row, columns_v);
    double score_error = score_noise(pass, row, begin, end);
    double dp_error = FORMULA_UNIT32 * formula_length(dout, columns_v) * pass->max_value;
    double delta_error = delta_noise(pass, row, begin, end, score_error);
    double cap_error = pass->problem->softcap > 0 ? 4 * FORMULA_UNIT32 : 0; /* 1 - tanh^2 */
    for (int64_t key = begin; key < end; key++) {
        double weight = pass->weights[key];
        double keep = pass->keep[key];
        double ds = fabs(keep * pass->dp[key] - delta);
        double error =
            weight * (ds * (score_error + FORMULA_UNIT32) + keep * dp_error + delta_error);
        score_gradient_noise(pass, row, key, error);
        error = error * pass->slope_of_cap[key] + weight * ds * cap_error;
        add_sizes(query_row(pass, pass->noise[TENSOR_DQ], row, columns_qk), error,
            formula_key_row(pass, pass->k, key, columns_qk), columns_qk);
        add_sizes(
            formula_key_row(pass, pass->noise[TENSOR_DK], key, columns_qk), error, q, columns_qk);
        add_sizes(formula_key_row(pass, pass->noise[TENSOR_DV], key, columns_v),
            pass->dropped[key] * (score_error + FORMULA_UNIT32), dout, columns_v);
        operand_spread(pass, row, key, weight * ds * pass->slope_of_cap[key], score_error);
    }
    if (pass->noise[TENSOR_DSINKS] != NULL) {
        pass->noise[TENSOR_DSINKS][pass->head] +=
            sink_weight(pass, row) * (delta_error + fabs(delta) * (score_error + FORMULA_UNIT32));
    }
}

/* Noise and spread together: independent errors add up as squares. */
static double whole_noise(const struct formula *pass, enum tensor_id id, int64_t index)
{
    double noise = pass->noise[id][index];
    double spread = pass->spread[id] != NULL ? pass->spread[id][index] : 0;
    return sqrt(noise * noise + spread);
}

/* -- public ------------------------------------------------------------------------------------ */

void formula_philox(uint32_t counter[4], uint64_t seed)
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

bool formula_kept(const struct attn_problem *problem, int64_t row, int64_t key, uint32_t lane)
{
    uint32_t i = (uint32_t)row;
    uint32_t j = (uint32_t)key;
    uint32_t random[4] = {
        (i >> 4) * 8 + (i & 7), (j >> 4) * 4 + ((j & 7) >> 1), lane, problem->dropout_offset};
    formula_philox(random, problem->dropout_seed);
    uint32_t number = 4 * ((i >> 3) & 1) + 2 * ((j >> 3) & 1) + (j & 1);
    uint32_t value = random[number / 2] >> (16 * (number % 2)) & 0xffff;
    return value >= problem->dropout_threshold;
}

void formula_visible(const struct attn_problem *problem, int64_t row, int64_t seqlen_q,
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

double formula_length(const double *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += x[i] * x[i];
    }
    return sqrt(sum);
}

double *formula_key_row(
    const struct formula *pass, const double *tensor, int64_t key, int64_t columns)
{
    int64_t index = (pass->sequence.first_k + key) * pass->problem->heads_kv + pass->kv_head;
    return (double *)(uintptr_t)(tensor + index * columns);
}

void formula_forward_row(struct formula *pass, int64_t row, int64_t begin, int64_t end)
{
    int64_t columns = pass->problem->head_dim_v;
    double *out = query_row(pass, pass->result[TENSOR_OUT], row, columns);
    score_row(pass, row, begin, end);
    *query_row(pass, pass->result[TENSOR_LSE], row, 1) = soften_row(pass, begin, end);
    for (int64_t key = begin; key < end; key++) {
        pass->keep[key] = keep_factor(pass, row, key);
        pass->dropped[key] = store(pass, pass->weights[key] * pass->keep[key]);
        axpy(pass, out, pass->dropped[key], formula_key_row(pass, pass->v, key, columns), columns);
    }
    for (int64_t c = 0; c < columns; c++) {
        out[c] = store(pass, out[c]);
    }
    if (pass->noise != NULL) {
        forward_noise(pass, row, begin, end, score_noise(pass, row, begin, end));
    }
}

void formula_backward_row(struct formula *pass, int64_t row, int64_t begin, int64_t end)
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
        double *dk = formula_key_row(pass, pass->result[TENSOR_DK], key, columns_qk);
        double *dv = formula_key_row(pass, pass->result[TENSOR_DV], key, columns_v);
        double ds = hold(pass, pass->weights[key] * (pass->keep[key] * pass->dp[key] - delta));
        add_score_gradient(pass, row, key, ds);
        ds = store(pass, ds * pass->slope_of_cap[key]);
        axpy(pass, dv, pass->dropped[key], dout, columns_v);
        axpy(pass, dq, ds, formula_key_row(pass, pass->k, key, columns_qk), columns_qk);
        axpy(pass, dk, ds, q, columns_qk);
    }
    add_sink_gradient(pass, row, delta);
    if (pass->noise != NULL) {
        backward_noise(pass, row, begin, end, delta);
    }
}

void formula_finish_sums(struct formula *pass, enum tensor_id id, double factor)
{
    struct tensor tensor = tensor_of(pass->problem, id);
    int64_t count = pass->result[id] != NULL ? tensor_elements(&tensor) : 0;
    for (int64_t i = 0; i < count; i++) {
        double value = pass->result[id][i] * factor;
        pass->result[id][i] = pass->low ? dtype_round(tensor.dtype, value) : value;
        if (pass->noise != NULL) {
            double noise = whole_noise(pass, id, i);
            pass->noise[id][i] = noise * fabs(factor) + FORMULA_UNIT32 * fabs(value);
        }
    }
}

void formula_finish_out(struct formula *pass)
{
    struct tensor out = tensor_of(pass->problem, TENSOR_OUT);
    for (int64_t i = 0; i < tensor_elements(&out) && pass->noise != NULL; i++) {
        pass->noise[TENSOR_OUT][i] = whole_noise(pass, TENSOR_OUT, i);
    }
}

#include "exact.h"

#include "part.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Results of both arithmetics. Every array has room for a whole tensor of the request. */
struct exact {
    struct attention *attention; /* borrowed */
    struct rng rng;
    uint64_t every;
    uint64_t seen;  /* requests of the current `every` */
    uint64_t drawn; /* the one to check among them */
    struct exact_summary summary;
    char failure[160];
    size_t out_count;
    size_t lse_count;
    size_t qkv_count;
    float *single; /* owned; all arrays of floats below lie in it */
    double *twice; /* owned; likewise */
    float *qkv;    /* copies of the request's tensors */
    float *dout;
    float *out;
    float *lse;
    float *dqkv;
    float *out32; /* what the plain formula makes, in the arithmetic of the request's type */
    float *lse32;
    float *dqkv32;
    float *row32;
    double *out64;
    double *lse64;
    double *dqkv64;
    double *row64;
};

struct exact_inputs {
    const struct tensor_shape *shape;
    const float *qkv;
    const float *dout;
};

/* Where a row of scores, numbered as lse is, finds its vectors: indices into qkv and out. */
struct place {
    size_t query; /* number in its sequence */
    size_t q;
    size_t k; /* of the sequence's first token */
    size_t v;
    size_t out;
};

static struct place place_of(const struct tensor_shape *shape, size_t row)
{
    size_t query = row % shape->seqlen;
    size_t head = row / shape->seqlen % shape->heads_q;
    size_t first = row / (shape->seqlen * shape->heads_q) * shape->seqlen;
    size_t width = tensor_qkv_width(shape);
    size_t head_kv = head / (shape->heads_q / shape->heads_kv);
    size_t k = first * width + (shape->heads_q + head_kv) * shape->head_dim;
    return (struct place){
        .query = query,
        .q = (first + query) * width + head * shape->head_dim,
        .k = k,
        .v = k + shape->heads_kv * shape->head_dim,
        .out = (first + query) * tensor_out_width(shape) + head * shape->head_dim,
    };
}

static float round_narrow(float number)
{
    return part_widen(part_narrow(number));
}

#define REAL float
#define EXP expf
#define LOG logf
#define SQRT sqrtf
#define ROUND(number) (number)
#define FORWARD forward32
#define BACKWARD backward32
#include "exact_formula.inc"
#undef ROUND
#undef FORWARD
#undef BACKWARD
#define ROUND(number) round_narrow(number)
#define FORWARD forward16
#define BACKWARD backward16
#include "exact_formula.inc"
#undef REAL
#undef EXP
#undef LOG
#undef SQRT
#undef ROUND
#undef FORWARD
#undef BACKWARD
#define ROUND(number) (number)
#define REAL double
#define EXP exp
#define LOG log
#define SQRT sqrt
#define FORWARD forward64
#define BACKWARD backward64
#include "exact_formula.inc"

/* What is compared: a tensor's numbers lie `width` of every `stride`, starting at `first`. */
struct comparison {
    const char *name;
    const float *got;
    const float *plain;
    const double *exact;
    size_t count; /* of the whole array */
    size_t first;
    size_t width;
    size_t stride;
    bool narrow;   /* they are bfloat16 */
    double factor; /* how many times the plain formula's error is allowed */
    double unit;   /* numbers are multiplied with it first: a power of two */
};

static double larger(double a, double b)
{
    return a > b || isnan(a) ? a : b;
}

static bool compare(struct exact *exact, const struct comparison *c)
{
    double error = 0.0;
    double plain_error = 0.0;
    double rounding = 0.0;
    double largest = 0.0;
    for (size_t i = 0; i < c->count; i++) {
        size_t column = i % c->stride;
        if (column < c->first || column >= c->first + c->width) {
            continue;
        }
        double truth = c->exact[i] * c->unit;
        float rounded = c->narrow ? round_narrow((float)truth) : (float)truth;
        float moved =
            c->narrow ? round_narrow(round_narrow(rounded + 0.3F) - 0.3F) : (rounded + 0.3F) - 0.3F;
        error = larger(fabs((double)c->got[i] * c->unit - truth), error);
        plain_error = larger(fabs((double)c->plain[i] * c->unit - truth), plain_error);
        rounding = larger(fabs((double)(moved - rounded)), rounding);
        largest = larger(fabs(truth), largest);
    }
    double relative = largest > 0.0 ? error / largest : error;
    exact->summary.max_rel_error = larger(relative, exact->summary.max_rel_error);
    double bar = c->factor * plain_error + 2.0 * rounding;
    if (error <= bar) {
        return true;
    }
    snprintf(exact->failure, sizeof(exact->failure), "%s is off by %.3g, the bar is %.3g", c->name,
        error, bar);
    return false;
}

/* Gradients are linear in dout, and dout is tiny: it holds a mean over all tokens. Brought to about 1
 * first, the bar's second part does not hide an error. */
static double unit_of(const float *dout, size_t count)
{
    float largest = 0.0F;
    for (size_t i = 0; i < count; i++) {
        largest = fmaxf(largest, fabsf(dout[i]));
    }
    return largest > 0.0F && isfinite(largest) ? ldexp(1.0, -ilogbf(largest)) : 1.0;
}

static void run_forward(struct exact *exact)
{
    const struct tensor_shape *shape = attention_get_shape(exact->attention);
    bool narrow = attention_is_narrow(exact->attention);
    (narrow ? forward16 : forward32)(shape, exact->qkv, exact->row32, exact->out32, exact->lse32);
    forward64(shape, exact->qkv, exact->row64, exact->out64, exact->lse64);
}

static bool unreadable(struct exact *exact)
{
    snprintf(exact->failure, sizeof(exact->failure), "tensors cannot be read: %.120s",
        attention_error(exact->attention));
    return false;
}

static bool check_forward(struct exact *exact, size_t layer)
{
    struct attention *attention = exact->attention;
    bool narrow = attention_is_narrow(attention);
    if (!attention_read(attention, ATTENTION_QKV, layer, exact->qkv) ||
        !attention_read(attention, ATTENTION_OUT, layer, exact->out) ||
        !attention_read(attention, ATTENTION_LSE, layer, exact->lse)) {
        return unreadable(exact);
    }
    run_forward(exact);
    struct comparison out = {
        "out", exact->out, exact->out32, exact->out64, exact->out_count, 0, 1, 1, narrow, 2.0, 1.0};
    struct comparison lse = {
        "lse", exact->lse, exact->lse32, exact->lse64, exact->lse_count, 0, 1, 1, false, 2.0, 1.0};
    bool out_good = compare(exact, &out);
    return compare(exact, &lse) && out_good;
}

static void run_backward(struct exact *exact)
{
    const struct tensor_shape *shape = attention_get_shape(exact->attention);
    struct exact_inputs inputs = {shape, exact->qkv, exact->dout};
    bool narrow = attention_is_narrow(exact->attention);
    run_forward(exact);
    memset(exact->dqkv32, 0, exact->qkv_count * sizeof(*exact->dqkv32));
    memset(exact->dqkv64, 0, exact->qkv_count * sizeof(*exact->dqkv64));
    (narrow ? backward16 : backward32)(&inputs, exact->out32, exact->lse32, exact->dqkv32);
    backward64(&inputs, exact->out64, exact->lse64, exact->dqkv64);
}

static bool check_backward(struct exact *exact, size_t layer)
{
    struct attention *attention = exact->attention;
    const struct tensor_shape *shape = attention_get_shape(attention);
    if (!attention_read(attention, ATTENTION_QKV, layer, exact->qkv) ||
        !attention_read(attention, ATTENTION_DOUT, layer, exact->dout) ||
        !attention_read(attention, ATTENTION_DQKV, layer, exact->dqkv)) {
        return unreadable(exact);
    }
    run_backward(exact);
    const char *const names[] = {"dq", "dk", "dv"};
    const size_t widths[] = {shape->heads_q * shape->head_dim, shape->heads_kv * shape->head_dim,
        shape->heads_kv * shape->head_dim};
    struct comparison part = {NULL, exact->dqkv, exact->dqkv32, exact->dqkv64, exact->qkv_count, 0,
        0, tensor_qkv_width(shape), attention_is_narrow(attention), 3.0,
        unit_of(exact->dout, exact->out_count)};
    bool good = true;
    for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
        part.name = names[i];
        part.width = widths[i];
        good = compare(exact, &part) && good;
        part.first += part.width;
    }
    return good;
}

static void on_request(void *context, bool backward, size_t layer)
{
    struct exact *exact = context;
    if (exact->seen == 0) {
        exact->drawn = rng_below(&exact->rng, exact->every);
    }
    bool check = exact->seen == exact->drawn;
    exact->seen = (exact->seen + 1) % exact->every;
    if (check) {
        exact_check(exact, backward, layer);
    }
}

static bool allocate(struct exact *exact, const struct tensor_shape *shape)
{
    size_t tokens = shape->batch * shape->seqlen;
    exact->out_count = tokens * tensor_out_width(shape);
    exact->lse_count = tokens * shape->heads_q;
    exact->qkv_count = tokens * tensor_qkv_width(shape);
    size_t results = exact->out_count + exact->lse_count + exact->qkv_count;
    size_t inputs = exact->qkv_count + exact->out_count;
    exact->single = calloc(2 * results + inputs + shape->seqlen, sizeof(*exact->single));
    exact->twice = calloc(results + shape->seqlen, sizeof(*exact->twice));
    if (exact->single == NULL || exact->twice == NULL) {
        return false;
    }
    exact->qkv = exact->single;
    exact->dout = exact->qkv + exact->qkv_count;
    exact->out = exact->dout + exact->out_count;
    exact->lse = exact->out + exact->out_count;
    exact->dqkv = exact->lse + exact->lse_count;
    exact->out32 = exact->dqkv + exact->qkv_count;
    exact->lse32 = exact->out32 + exact->out_count;
    exact->dqkv32 = exact->lse32 + exact->lse_count;
    exact->row32 = exact->dqkv32 + exact->qkv_count;
    exact->out64 = exact->twice;
    exact->lse64 = exact->out64 + exact->out_count;
    exact->dqkv64 = exact->lse64 + exact->lse_count;
    exact->row64 = exact->dqkv64 + exact->qkv_count;
    return true;
}

struct exact *exact_create(struct attention *attention, uint64_t every, uint64_t seed)
{
    assert(every > 0);
    struct exact *exact = calloc(1, sizeof(*exact));
    if (exact == NULL) {
        return NULL;
    }
    exact->attention = attention;
    exact->every = every;
    rng_init(&exact->rng, seed);
    if (!allocate(exact, attention_get_shape(attention))) {
        exact_destroy(exact);
        return NULL;
    }
    attention_watch(attention, on_request, exact);
    return exact;
}

void exact_destroy(struct exact *exact)
{
    if (exact == NULL) {
        return;
    }
    free(exact->single);
    free(exact->twice);
    free(exact);
}

bool exact_check(struct exact *exact, bool backward, size_t layer)
{
    bool good = backward ? check_backward(exact, layer) : check_forward(exact, layer);
    exact->summary.checked++;
    exact->summary.failed += good ? 0 : 1;
    return good;
}

struct exact_summary exact_summarize(const struct exact *exact)
{
    return exact->summary;
}

const char *exact_failure(const struct exact *exact)
{
    return exact->failure;
}

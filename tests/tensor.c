#include "tensor.h"

#include <math.h>
#include <string.h>

struct format {
    int digits;       /* of the significand, with the hidden one */
    int min_exponent; /* of the smallest normal number */
    double max;
};

static struct format format_of(enum attn_dtype dtype)
{
    switch (dtype) {
    case ATTN_FP16:
        return (struct format){11, -14, 65504.0};
    case ATTN_BF16:
        return (struct format){8, -126, 0x1.fep127};
    case ATTN_FP32:
        break;
    }
    return (struct format){24, -126, 0x1.fffffep127};
}

/* The exponent of the last bit of a finite value. */
static int last_bit(struct format format, double value)
{
    int exponent = value == 0 ? format.min_exponent : ilogb(value);
    return (exponent > format.min_exponent ? exponent : format.min_exponent) - format.digits + 1;
}

static struct tensor query_tensor(
    const struct attn_problem *p, struct attn_view view, int64_t columns)
{
    bool packed = p->lengths.cu_seqlens_q != NULL;
    return (struct tensor){view, p->dtype, packed ? 1 : p->batch,
        packed ? p->lengths.total_q : p->seqlen_q, p->heads_q, columns};
}

static struct tensor key_tensor(
    const struct attn_problem *p, struct attn_view view, int64_t columns)
{
    bool packed = p->lengths.cu_seqlens_k != NULL;
    return (struct tensor){view, p->dtype, packed ? 1 : p->batch,
        packed ? p->lengths.total_k : p->seqlen_k, p->heads_kv, columns};
}

static struct tensor as_fp32(struct tensor tensor)
{
    tensor.dtype = ATTN_FP32;
    return tensor;
}

static struct tensor bias_tensor(const struct attn_problem *p, struct attn_view view)
{
    const bool *one = p->bias_broadcast;
    return (struct tensor){view, p->bias_dtype, one[0] ? 1 : p->batch, one[2] ? 1 : p->seqlen_q,
        one[1] ? 1 : p->heads_q, one[3] ? 1 : p->seqlen_k};
}

/* shape: the view that says for how many batches. */
static struct tensor slopes_tensor(
    const struct attn_problem *p, struct attn_view view, struct attn_view shape)
{
    int64_t batch = shape.batch_stride == 0 ? 1 : p->batch;
    return (struct tensor){view, ATTN_FP32, batch, 1, p->heads_q, 1};
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static void find_packed(
    const int32_t *starts, int32_t b, int64_t total, int64_t *first, int64_t *length)
{
    int64_t end = 0;
    for (int32_t i = 0; i <= b; i++) {
        *first = clamp(starts[i], end, total);
        end = clamp(starts[i + 1], *first, total);
    }
    *length = end - *first < *length ? end - *first : *length;
}

static double fp16_value(uint16_t bits)
{
    int exponent = (bits >> 10) & 31;
    double mantissa = bits & 1023;
    double value = ldexp(mantissa, -24);
    if (exponent == 31) {
        value = mantissa == 0 ? INFINITY : NAN;
    } else if (exponent > 0) {
        value = ldexp(1024.0 + mantissa, exponent - 25);
    }
    return (bits & 0x8000) != 0 ? -value : value;
}

/* value is one that fp16 has. */
static uint16_t fp16_bits(double value)
{
    int sign = signbit(value) != 0 ? 0x8000 : 0;
    double size = fabs(value);
    if (isnan(value)) {
        return 0x7e00;
    }
    if (isinf(value)) {
        return (uint16_t)(sign | 0x7c00);
    }
    if (size < 0x1p-14) {
        return (uint16_t)(sign | (int)(size * 0x1p24));
    }
    int exponent = ilogb(size);
    int mantissa = (int)(ldexp(size, 10 - exponent)) - 1024;
    return (uint16_t)(sign | (exponent + 15) << 10 | mantissa);
}

static double bf16_value(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value = 0;
    memcpy(&value, &wide, sizeof value);
    return (double)value;
}

static uint16_t bf16_bits(double value)
{
    float narrow = (float)value;
    uint32_t bits = 0;
    memcpy(&bits, &narrow, sizeof bits);
    return isnan(value) ? 0x7fc0 : (uint16_t)(bits >> 16);
}

struct attn_view *tensor_view(struct attn_problem *problem, enum tensor_id id)
{
    struct attn_view *const views[TENSOR_COUNT] = {
        [TENSOR_Q] = &problem->q,
        [TENSOR_K] = &problem->k,
        [TENSOR_V] = &problem->v,
        [TENSOR_BIAS] = &problem->bias,
        [TENSOR_SLOPES] = &problem->slopes,
        [TENSOR_SINKS] = &problem->sinks,
        [TENSOR_DOUT] = &problem->dout,
        [TENSOR_DLSE] = &problem->dlse,
        [TENSOR_OUT] = &problem->out,
        [TENSOR_LSE] = &problem->lse,
        [TENSOR_DQ] = &problem->dq,
        [TENSOR_DK] = &problem->dk,
        [TENSOR_DV] = &problem->dv,
        [TENSOR_DBIAS] = &problem->dbias,
        [TENSOR_DSLOPES] = &problem->dslopes,
        [TENSOR_DSINKS] = &problem->dsinks,
    };
    return views[id];
}

struct tensor tensor_of(const struct attn_problem *problem, enum tensor_id id)
{
    struct attn_problem copy = *problem;
    struct attn_view view = *tensor_view(&copy, id);
    switch (id) {
    case TENSOR_Q:
    case TENSOR_DQ:
        return query_tensor(problem, view, problem->head_dim_qk);
    case TENSOR_K:
    case TENSOR_DK:
        return key_tensor(problem, view, problem->head_dim_qk);
    case TENSOR_V:
    case TENSOR_DV:
        return key_tensor(problem, view, problem->head_dim_v);
    case TENSOR_OUT:
    case TENSOR_DOUT:
        return query_tensor(problem, view, problem->head_dim_v);
    case TENSOR_LSE:
    case TENSOR_DLSE:
        return as_fp32(query_tensor(problem, view, 1));
    case TENSOR_BIAS:
    case TENSOR_DBIAS:
        return bias_tensor(problem, view);
    case TENSOR_SLOPES:
        return slopes_tensor(problem, view, view);
    case TENSOR_DSLOPES: /* for as many as slopes, unless it is there and says otherwise */
        return slopes_tensor(problem, view, view.data == NULL ? problem->slopes : view);
    case TENSOR_SINKS:
    case TENSOR_DSINKS:
    case TENSOR_COUNT:
        break;
    }
    return (struct tensor){view, ATTN_FP32, 1, 1, problem->heads_q, 1};
}

const char *tensor_name(enum tensor_id id)
{
    static const char *const names[TENSOR_COUNT] = {"q", "k", "v", "bias", "slopes", "sinks",
        "dout", "dlse", "out", "lse", "dq", "dk", "dv", "dbias", "dslopes", "dsinks"};
    return names[id];
}

int64_t tensor_elements(const struct tensor *tensor)
{
    return tensor->batch * tensor->rows * tensor->heads * tensor->columns;
}

void *tensor_at(const struct tensor *tensor, int64_t index)
{
    int64_t column = index % tensor->columns;
    int64_t head = index / tensor->columns % tensor->heads;
    int64_t row = index / (tensor->columns * tensor->heads) % tensor->rows;
    int64_t batch = index / (tensor->columns * tensor->heads * tensor->rows);
    int64_t offset = batch * tensor->view.batch_stride + row * tensor->view.row_stride +
                     head * tensor->view.head_stride + column * tensor->view.column_stride;
    return (char *)tensor->view.data + offset * (int64_t)dtype_bytes(tensor->dtype);
}

double tensor_get(const struct tensor *tensor, int64_t index)
{
    return dtype_load(tensor->dtype, tensor_at(tensor, index));
}

void tensor_set(const struct tensor *tensor, int64_t index, double value)
{
    dtype_store(tensor->dtype, tensor_at(tensor, index), value);
}

size_t dtype_bytes(enum attn_dtype dtype)
{
    return dtype == ATTN_FP32 ? 4 : 2;
}

double dtype_load(enum attn_dtype dtype, const void *element)
{
    uint16_t bits = 0;
    float value = 0;
    if (dtype == ATTN_FP32) {
        memcpy(&value, element, sizeof value);
        return (double)value;
    }
    memcpy(&bits, element, sizeof bits);
    return dtype == ATTN_FP16 ? fp16_value(bits) : bf16_value(bits);
}

void dtype_store(enum attn_dtype dtype, void *element, double value)
{
    double rounded = dtype_round(dtype, value);
    if (dtype == ATTN_FP32) {
        float narrow = (float)rounded;
        memcpy(element, &narrow, sizeof narrow);
        return;
    }
    uint16_t bits = dtype == ATTN_FP16 ? fp16_bits(rounded) : bf16_bits(rounded);
    memcpy(element, &bits, sizeof bits);
}

double dtype_round(enum attn_dtype dtype, double value)
{
    struct format format = format_of(dtype);
    if (value == 0 || !isfinite(value)) {
        return value;
    }
    int last = last_bit(format, value);
    double rounded = ldexp(nearbyint(ldexp(value, -last)), last);
    return fabs(rounded) > format.max ? copysign(INFINITY, value) : rounded;
}

struct sequence sequence_of(const struct attn_problem *problem, int32_t b)
{
    const struct attn_lengths *lengths = &problem->lengths;
    struct sequence s = {
        b * problem->seqlen_q, problem->seqlen_q, b * problem->seqlen_k, problem->seqlen_k};
    if (lengths->cu_seqlens_q != NULL) {
        find_packed(lengths->cu_seqlens_q, b, lengths->total_q, &s.first_q, &s.seqlen_q);
    }
    if (lengths->cu_seqlens_k != NULL) {
        find_packed(lengths->cu_seqlens_k, b, lengths->total_k, &s.first_k, &s.seqlen_k);
    }
    if (lengths->seqlens_k != NULL) {
        s.seqlen_k = clamp(lengths->seqlens_k[b], 0, s.seqlen_k);
    }
    return s;
}

double dtype_half_step(enum attn_dtype dtype, double value)
{
    return ldexp(0.5, last_bit(format_of(dtype), value));
}

#include "trial_request.h"

static DLDataType type_of(enum attn_dtype dtype)
{
    switch (dtype) {
    case ATTN_FP16:
        return (DLDataType){kDLFloat, 16, 1};
    case ATTN_BF16:
        return (DLDataType){kDLBfloat, 16, 1};
    case ATTN_FP32:
        break;
    }
    return (DLDataType){kDLFloat, 32, 1};
}

/* Dimensions are given from the last on, so that leading ones can be left out. */
static void describe(struct trial_request *request, int slot, void *data, DLDataType type,
    int dimensions, const int64_t *shape, const int64_t *strides)
{
    for (int i = 0; i < dimensions; i++) {
        request->shape[slot][i] = shape[i];
        request->strides[slot][i] = strides[i];
    }
    request->tensor[slot] = (DLTensor){.data = data,
        .device = {kDLCPU, 0},
        .ndim = dimensions,
        .dtype = type,
        .shape = request->shape[slot],
        .strides = request->strides[slot]};
}

static void describe_slopes(struct trial_request *request, enum tensor_id id,
    const struct tensor *tensor, const struct trial_spec *spec)
{
    const struct attn_view *view = &tensor->view;
    describe(request, (int)id, view->data, type_of(ATTN_FP32), 2,
        (const int64_t[]){spec->slopes_shared ? 1 : spec->batch, tensor->heads},
        (const int64_t[]){view->batch_stride, view->head_stride});
}

static void describe_tensor(struct trial_request *request, const struct attn_problem *problem,
    const struct trial_spec *spec, enum tensor_id id)
{
    const struct tensor t = tensor_of(problem, id);
    const struct attn_view *v = &t.view;
    DLDataType type = type_of(t.dtype);
    bool of_keys = id == TENSOR_K || id == TENSOR_V || id == TENSOR_DK || id == TENSOR_DV;
    int skipped = (of_keys ? spec->varlen_k : spec->varlen_q) ? 1 : 0;
    if (id == TENSOR_SLOPES || id == TENSOR_DSLOPES) {
        describe_slopes(request, id, &t, spec);
    } else if (id == TENSOR_SINKS || id == TENSOR_DSINKS) {
        describe(request, (int)id, v->data, type, 1, &t.heads, &v->head_stride);
    } else if (id == TENSOR_BIAS || id == TENSOR_DBIAS) {
        describe(request, (int)id, v->data, type, 4,
            (const int64_t[]){t.batch, t.heads, t.rows, t.columns},
            (const int64_t[]){v->batch_stride, v->head_stride, v->row_stride, v->column_stride});
    } else if (id == TENSOR_LSE || id == TENSOR_DLSE) {
        describe(request, (int)id, v->data, type, 3 - skipped,
            (const int64_t[]){t.batch, t.heads, t.rows} + skipped,
            (const int64_t[]){v->batch_stride, v->head_stride, v->row_stride} + skipped);
    } else {
        describe(request, (int)id, v->data, type, 4 - skipped,
            (const int64_t[]){t.batch, t.rows, t.heads, t.columns} + skipped,
            (const int64_t[]){v->batch_stride, v->row_stride, v->head_stride, v->column_stride} +
                skipped);
    }
}

static const DLTensor *present(const struct trial_request *request, int slot)
{
    return request->tensor[slot].data != NULL ? &request->tensor[slot] : NULL;
}

/* Clients may say less than a problem: no more than what is wider than anything. */
static int64_t window_of(int64_t window)
{
    const int64_t widest = INT64_C(1) << 62;
    return window < widest ? window : widest;
}

static struct attnd_options options_of(
    const struct trial_request *request, const struct trial_spec *spec)
{
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.scale = spec->scale;
    options.softcap = spec->softcap;
    options.deterministic = spec->deterministic;
    options.alignment = spec->alignment == ATTN_TOP_LEFT ? ATTND_TOP_LEFT : ATTND_BOTTOM_RIGHT;
    options.window_left = window_of(spec->window_left);
    options.window_right = window_of(spec->window_right);
    options.dropout_p = (float)spec->dropout_threshold / 65536;
    options.dropout_offset = spec->dropout_offset;
    options.dropout_seed = spec->dropout_seed;
    options.max_seqlen_q = spec->varlen_q ? spec->seqlen_q : 0;
    options.max_seqlen_k = spec->varlen_k ? spec->seqlen_k : 0;
    options.bias = present(request, TENSOR_BIAS);
    options.slopes = present(request, TENSOR_SLOPES);
    options.sinks = present(request, TENSOR_SINKS);
    options.cu_seqlens_q = present(request, TENSOR_COUNT + TRIAL_CU_SEQLENS_Q);
    options.cu_seqlens_k = present(request, TENSOR_COUNT + TRIAL_CU_SEQLENS_K);
    options.seqlens_k = present(request, TENSOR_COUNT + TRIAL_SEQLENS_K);
    return options;
}

static void fill_requests(struct trial_request *request, bool lse)
{
    request->forward = (struct attnd_request){
        .size = sizeof request->forward,
        .direction = ATTND_FORWARD,
        .options = &request->options,
        .q = &request->tensor[TENSOR_Q],
        .k = &request->tensor[TENSOR_K],
        .v = &request->tensor[TENSOR_V],
        .out = &request->tensor[TENSOR_OUT],
        .lse = lse ? &request->tensor[TENSOR_LSE] : NULL,
    };
    struct attnd_request *backward = &request->backward;
    *backward = request->forward;
    backward->direction = ATTND_BACKWARD;
    backward->lse = &request->tensor[TENSOR_LSE];
    backward->dout = &request->tensor[TENSOR_DOUT];
    backward->dlse = present(request, TENSOR_DLSE);
    backward->dq = &request->tensor[TENSOR_DQ];
    backward->dk = &request->tensor[TENSOR_DK];
    backward->dv = &request->tensor[TENSOR_DV];
    backward->dbias = present(request, TENSOR_DBIAS);
    backward->dslopes = present(request, TENSOR_DSLOPES);
    backward->dsinks = present(request, TENSOR_DSINKS);
}

static const char *cannot_say(const struct attn_problem *problem, const struct trial_spec *spec)
{
    bool heads_apart = spec->heads_q > 1 && ((spec->sinks && problem->sinks.head_stride != 1) ||
                                                (spec->dsinks && problem->dsinks.head_stride != 1));
    if (heads_apart) {
        return "sinks or dsinks have a stride";
    }
    if (spec->bias && !spec->bias_one[3] && spec->seqlen_k > 1 &&
        problem->bias.column_stride != 1) {
        return "the last stride of bias is 0";
    }
    if ((spec->varlen_q && spec->seqlen_q == 0) || (spec->varlen_k && spec->seqlen_k == 0)) {
        return "the longest sequence has length 0";
    }
    if (spec->packed && spec->head_dim_qk != spec->head_dim_v) {
        return "the parts of a packed gradient have different strides";
    }
    return NULL;
}

const char *trial_request_init(struct trial_request *request, const struct trial *trial,
    const struct trial_spec *spec, bool lse)
{
    const int64_t one = 1;
    *request = (struct trial_request){0};
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        if (tensor_of(&trial->problem, id).view.data != NULL) {
            describe_tensor(request, &trial->problem, spec, id);
        }
    }
    for (int i = 0; i < TRIAL_LENGTHS; i++) {
        int64_t count = (int64_t)(trial->lengths[i].size / sizeof(int32_t));
        if (trial->lengths[i].bytes != NULL) {
            describe(request, TENSOR_COUNT + i, trial->lengths[i].bytes,
                (DLDataType){kDLInt, 32, 1}, 1, &count, &one);
        }
    }
    request->options = options_of(request, spec);
    fill_requests(request, lse);
    return cannot_say(&trial->problem, spec);
}

static bool starts_fit(const int32_t *starts, int32_t batch, int64_t longest, int64_t total)
{
    for (int32_t b = 0; starts != NULL && b <= batch; b++) {
        int64_t length = b < batch ? (int64_t)starts[b + 1] - starts[b] : 0;
        if (starts[b] < 0 || starts[b] > total || length < 0 || length > longest) {
            return false;
        }
    }
    return true;
}

bool trial_request_lengths_fit(const struct trial *trial)
{
    const struct attn_problem *p = &trial->problem;
    const struct attn_lengths *lengths = &p->lengths;
    struct attn_problem whole = *p;
    whole.lengths.seqlens_k = NULL;
    for (int32_t b = 0; lengths->seqlens_k != NULL && b < p->batch; b++) {
        int32_t keys = lengths->seqlens_k[b];
        if (keys < 0 || keys > sequence_of(&whole, b).seqlen_k) {
            return false;
        }
    }
    return starts_fit(lengths->cu_seqlens_q, p->batch, p->seqlen_q, lengths->total_q) &&
           starts_fit(lengths->cu_seqlens_k, p->batch, p->seqlen_k, lengths->total_k);
}

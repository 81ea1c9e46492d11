#include "attn.h"

#include "family.h"

#include <string.h>

/* Fastest first among those of one device. */
static const struct attn_family *const families[] = {
#if defined(ATTN_SM80)
    &sm80_family,
#endif
    &cpu_family,
};

static const char *malformed_heads(const struct attn_problem *problem)
{
    if (problem->batch < 0) {
        return "batch is negative";
    }
    if (problem->heads_q < 0 || problem->heads_kv < 0) {
        return "heads_q or heads_kv is negative";
    }
    if (problem->heads_kv == 0 ? problem->heads_q != 0
                               : problem->heads_q % problem->heads_kv != 0) {
        return "heads_q is not a multiple of heads_kv";
    }
    if (problem->head_dim_qk < 1 || problem->head_dim_qk > ATTN_MAX_HEAD_DIM) {
        return "head_dim_qk is not within 1 .. 256";
    }
    if (problem->head_dim_v < 1 || problem->head_dim_v > ATTN_MAX_HEAD_DIM) {
        return "head_dim_v is not within 1 .. 256";
    }
    return NULL;
}

/* What has elements side by side along the keys: nothing else has a fast way to be read. */
static bool lies_apart(const struct attn_problem *problem, const struct attn_view *view)
{
    return !problem->bias_broadcast[3] && problem->seqlen_k > 1 && view->column_stride != 1;
}

static const char *malformed_bias(const struct attn_problem *problem)
{
    if (problem->bias.data == NULL) {
        return problem->dbias.data != NULL ? "dbias is given without bias" : NULL;
    }
    if (problem->bias_dtype != problem->dtype && problem->bias_dtype != ATTN_FP32) {
        return "bias_dtype is neither dtype nor fp32";
    }
    if (problem->bias.column_stride != 0 && lies_apart(problem, &problem->bias)) {
        return "the keys of bias lie apart: their stride is neither 0 nor 1";
    }
    if (problem->dbias.data != NULL && lies_apart(problem, &problem->dbias)) {
        return "the keys of dbias lie apart: their stride is not 1";
    }
    return NULL;
}

static const char *malformed_options(const struct attn_problem *problem)
{
    const struct attn_lengths *lengths = &problem->lengths;

    if (!(problem->softcap >= 0 && problem->softcap <= ATTN_MAX_SOFTCAP)) {
        return "softcap is not within 0 .. 1e30";
    }
    if (problem->dropout_threshold >= 65536) {
        return "dropout_threshold is not within 0 .. 65535";
    }
    if (problem->dslopes.data != NULL && problem->slopes.data == NULL) {
        return "dslopes is given without slopes";
    }
    if (problem->dsinks.data != NULL && problem->sinks.data == NULL) {
        return "dsinks is given without sinks";
    }
    if ((lengths->cu_seqlens_q != NULL && lengths->total_q < 0) ||
        (lengths->cu_seqlens_k != NULL && lengths->total_k < 0)) {
        return "total_q or total_k is negative";
    }
    return malformed_bias(problem);
}

static const char *malformed(enum attn_direction direction, const struct attn_problem *problem)
{
    const char *why = malformed_heads(problem);

    if (why != NULL) {
        return why;
    }
    if (direction != ATTN_FORWARD && direction != ATTN_BACKWARD) {
        return "direction is neither forward nor backward";
    }
    if (problem->dtype != ATTN_FP16 && problem->dtype != ATTN_BF16 && problem->dtype != ATTN_FP32) {
        return "dtype is none of fp16, bf16 and fp32";
    }
    if (problem->alignment != ATTN_TOP_LEFT && problem->alignment != ATTN_BOTTOM_RIGHT) {
        return "alignment is neither top-left nor bottom-right";
    }
    if (problem->seqlen_q < 0 || problem->seqlen_k < 0) {
        return "seqlen_q or seqlen_k is negative";
    }
    if (problem->window_left < ATTN_UNBOUNDED || problem->window_right < ATTN_UNBOUNDED) {
        return "window_left or window_right is negative and not unbounded";
    }
    return malformed_options(problem);
}

/* Sum over i in [0, n) of i + shift clamped to [0, top]. */
static double clamped_sum(int64_t n, int64_t shift, int64_t top)
{
    int64_t begin = shift >= 0 ? 0 : shift <= -n ? n : -shift;
    int64_t end = top - shift <= begin ? begin : top - shift >= n ? n : top - shift;
    double length = (double)(end - begin);
    double ramp = length * ((double)shift + 0.5 * (double)(begin + end - 1));

    return (end > begin ? ramp : 0) + (double)(n - end) * (double)top;
}

/* Scores of one head and sequence that are visible, as if that were the longest: numbers of lengths
 * may lie in a device's memory. */
static double visible_scores(const struct attn_problem *problem)
{
    int64_t rows = problem->seqlen_q;
    int64_t keys = problem->seqlen_k;
    int64_t widest = rows + keys;
    int64_t left = problem->window_left < widest ? problem->window_left : widest;
    int64_t right = problem->window_right < widest ? problem->window_right : widest;
    int64_t offset = problem->alignment == ATTN_BOTTOM_RIGHT ? keys - rows : 0;
    double ends = (double)rows * (double)keys;
    double begins = 0;

    if (right != ATTN_UNBOUNDED) {
        ends = clamped_sum(rows, offset + right + 1, keys);
    }
    if (left != ATTN_UNBOUNDED) {
        begins = clamped_sum(rows, offset - left, keys);
    }
    return ends - begins;
}

/* Sequences of the longest length, as many as the rows of packed tensors are enough for. */
static double sequences(const struct attn_problem *problem)
{
    const struct attn_lengths *lengths = &problem->lengths;
    double count = problem->batch;

    if (lengths->cu_seqlens_q != NULL && problem->seqlen_q > 0) {
        double most = (double)lengths->total_q / (double)problem->seqlen_q;
        count = most < count ? most : count;
    }
    if (lengths->cu_seqlens_k != NULL && problem->seqlen_k > 0) {
        double most = (double)lengths->total_k / (double)problem->seqlen_k;
        count = most < count ? most : count;
    }
    return count;
}

size_t attn_family_count(void)
{
    return sizeof(families) / sizeof(families[0]);
}

const struct attn_family *attn_family_at(size_t index)
{
    return index < attn_family_count() ? families[index] : NULL;
}

const struct attn_family *attn_family_find(const char *name)
{
    for (size_t i = 0; i < attn_family_count(); i++) {
        if (strcmp(families[i]->name, name) == 0) {
            return families[i];
        }
    }
    return NULL;
}

const char *attn_family_name(const struct attn_family *family)
{
    return family->name;
}

enum attn_device attn_family_device(const struct attn_family *family)
{
    return family->device;
}

int attn_family_capability(const struct attn_family *family)
{
    return family->min_capability;
}

int attn_prepare(const struct attn_family *family)
{
    return family->prepare != NULL ? family->prepare() : 0;
}

const char *attn_unsupported(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    const char *why = malformed(direction, problem);

    return why != NULL ? why : family->unsupported(direction, problem);
}

size_t attn_workspace_bytes(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    return family->workspace_bytes(direction, problem);
}

uint64_t attn_tile_count(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    return family->tile_count(direction, problem);
}

double attn_flops(enum attn_direction direction, const struct attn_problem *problem)
{
    double per_score = direction == ATTN_FORWARD ? 4 : 10;
    double head_dim = 0.5 * ((double)problem->head_dim_qk + (double)problem->head_dim_v);
    double heads = sequences(problem) * (double)problem->heads_q;

    return per_score * head_dim * heads * visible_scores(problem);
}

uint32_t attn_group_key(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem)
{
    return family->group_key(direction, problem);
}

size_t attn_scratch_bytes(const struct attn_family *family)
{
    return family->scratch_bytes != NULL ? family->scratch_bytes() : 0;
}

int attn_launch(const struct attn_family *family, enum attn_direction direction,
    const struct attn_slice *slices, size_t count, const struct attn_target *target)
{
    return family->launch(direction, slices, count, target);
}

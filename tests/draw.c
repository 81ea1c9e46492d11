#include "draw.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define PICK(rng, array) ((array)[trial_range(rng, 0, (int64_t)COUNT_OF(array) - 1)])

/* -- drawing -------------------------------------------------------------------------------- */

static int64_t draw_length(struct trial_rng *rng)
{
    static const int64_t edges[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64,
        65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257};
    switch (trial_range(rng, 0, 9)) {
    case 0:
        return trial_range(rng, 0, 3);
    case 1:
    case 2:
    case 3:
    case 4:
        return PICK(rng, edges);
    default:
        return trial_range(rng, 1, trial_chance(rng, 4) ? 300 : 100);
    }
}

static int32_t draw_head_dim(struct trial_rng *rng)
{
    static const int32_t edges[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 48, 59, 63, 64,
        65, 80, 96, 111, 127, 128, 129, 160, 192, 224, 255, 256};
    return trial_chance(rng, 3) ? (int32_t)trial_range(rng, 1, ATTN_MAX_HEAD_DIM)
                                : PICK(rng, edges);
}

static void draw_shape(struct trial_rng *rng, struct trial_spec *spec)
{
    static const int32_t ratios[] = {1, 1, 2, 3, 4, 8};
    spec->batch = trial_chance(rng, 50) ? 0 : (int32_t)trial_range(rng, 1, 4);
    spec->heads_kv = (int32_t)trial_range(rng, 1, 3);
    spec->heads_q = spec->heads_kv * PICK(rng, ratios);
    spec->head_dim_qk = draw_head_dim(rng);
    spec->head_dim_v = trial_chance(rng, 2) ? spec->head_dim_qk : draw_head_dim(rng);
    spec->seqlen_q = draw_length(rng);
    spec->seqlen_k = trial_chance(rng, 3) ? spec->seqlen_q : draw_length(rng);
}

/* The reference is slow: most cases are small, few are large. */
static void draw_small_shape(struct trial_rng *rng, struct trial_spec *spec)
{
    const int64_t budget = trial_chance(rng, 40) ? 8000000 : 1000000;
    const int64_t per_score = 60; /* what a score costs beside its products */
    const int64_t most_elements = 500000;
    int64_t work = 0;
    int64_t elements = 0;
    do {
        draw_shape(rng, spec);
        int64_t dims = spec->head_dim_qk + spec->head_dim_v;
        int64_t heads = spec->batch * spec->heads_q;
        work = heads * spec->seqlen_q * spec->seqlen_k * (dims + per_score);
        elements = heads * (spec->seqlen_q + spec->seqlen_k) * (dims + 6);
    } while (work > budget || elements > most_elements);
}

/* Every length with every head dim, in turn; as many heads as a patient reference allows. */
static void draw_flash_shape(struct trial_rng *rng, struct trial_spec *spec, uint64_t number)
{
    static const int16_t lengths[][2] = {{1, 1}, {64, 128}, {128, 192}, {256, 256}, {239, 1},
        {799, 3}, {113, 203}, {113, 128}, {128, 217}, {113, 211}, {108, 256}, {256, 512},
        {384, 256}, {640, 128}, {512, 256}, {1024, 1024}, {1023, 1024}, {1024, 1023}, {2048, 2048}};
    static const int16_t dims[] = {32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256};
    static const int16_t ratios[] = {1, 1, 2, 3, 8};
    const int16_t *length = lengths[number % COUNT_OF(lengths)];
    const int64_t budget = 1500000; /* scores */
    int64_t scores = 0;
    int64_t least = (int64_t)length[0] * length[1];
    spec->seqlen_q = length[0];
    spec->seqlen_k = length[1];
    spec->head_dim_qk = dims[number / COUNT_OF(lengths) % COUNT_OF(dims)];
    spec->head_dim_v = trial_chance(rng, 4) ? PICK(rng, dims) : spec->head_dim_qk;
    do {
        spec->batch = (int32_t)trial_range(rng, 1, 4);
        spec->heads_kv = (int32_t)trial_range(rng, 1, 3);
        spec->heads_q = spec->heads_kv * PICK(rng, ratios);
        scores = spec->batch * spec->heads_q * least;
    } while (scores > budget && scores > least);
}

static int64_t draw_window(struct trial_rng *rng)
{
    static const int64_t edges[] = {ATTN_UNBOUNDED, 0, 1, 15, 16, 17, 63, 64, 300, INT64_MAX};
    return trial_chance(rng, 2) ? PICK(rng, edges) : trial_range(rng, 0, 100);
}

static void draw_mask(struct trial_rng *rng, struct trial_spec *spec)
{
    spec->alignment = trial_chance(rng, 2) ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT;
    switch (trial_range(rng, 0, 3)) {
    case 0:
        break;
    case 1:
        spec->window_right = 0;
        break;
    default:
        spec->window_left = draw_window(rng);
        spec->window_right = draw_window(rng);
    }
}

static void draw_lengths(struct trial_rng *rng, struct trial_spec *spec)
{
    spec->varlen_q = trial_chance(rng, 3);
    spec->varlen_k = trial_chance(rng, 2) ? spec->varlen_q : trial_chance(rng, 3);
    spec->key_lengths = trial_chance(rng, 4);
    spec->hostile = (spec->varlen_q || spec->varlen_k || spec->key_lengths) && trial_chance(rng, 3);
}

static void draw_bias(struct trial_rng *rng, struct trial_spec *spec)
{
    static const double sizes[] = {1, 1, 4, 50};
    for (int dim = 0; dim < 4; dim++) {
        spec->bias_one[dim] = trial_chance(rng, 2);
    }
    spec->bias = trial_chance(rng, 2);
    spec->bias_fp32 = trial_chance(rng, 2);
    spec->bias_size = PICK(rng, sizes);
    spec->bias_infinities = trial_chance(rng, 2)
                                ? TRIAL_FINITE
                                : (enum trial_infinities)trial_range(rng, 1, TRIAL_INFINITIES - 1);
    spec->dbias = spec->bias && !trial_chance(rng, 3);
}

static void draw_additions(struct trial_rng *rng, struct trial_spec *spec)
{
    static const float caps[] = {0.5F, 1, 5, 30, 50, 1000};
    static const uint32_t thresholds[] = {1, 6554, 32768, 60000};
    spec->softcap = trial_chance(rng, 3) ? PICK(rng, caps) : 0;
    spec->slopes = trial_chance(rng, 2);
    spec->slopes_shared = trial_chance(rng, 2);
    spec->dslopes = spec->slopes && !trial_chance(rng, 3);
    spec->sinks = trial_chance(rng, 2);
    spec->sinks_infinite = trial_chance(rng, 4);
    spec->dsinks = spec->sinks && !trial_chance(rng, 3);
    if (trial_chance(rng, 3)) {
        spec->dropout_threshold = PICK(rng, thresholds);
    }
    spec->dropout_seed = trial_next(rng);
    spec->dropout_offset = (uint32_t)trial_next(rng);
    spec->dlse = trial_chance(rng, 2);
    spec->deterministic = trial_chance(rng, 2);
}

static void draw_layouts(struct trial_rng *rng, struct trial_spec *spec)
{
    spec->packed = spec->seqlen_q == spec->seqlen_k && spec->varlen_q == spec->varlen_k &&
                   !trial_chance(rng, 3);
    if (trial_chance(rng, 3)) {
        return;
    }
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        int64_t layouts = id < TENSOR_OUT ? TRIAL_INPUT_LAYOUTS : TRIAL_OUTPUT_LAYOUTS;
        spec->layout[id] = (enum trial_layout)trial_range(rng, 0, layouts - 1);
    }
    if (trial_chance(rng, 10)) {
        spec->layout[TENSOR_BIAS] = TRIAL_SHARED_COLUMNS;
    }
    if (!trial_chance(rng, 8)) { /* clients cannot say anything else of these */
        spec->layout[TENSOR_SINKS] = TRIAL_COMPACT;
        spec->layout[TENSOR_DSINKS] = TRIAL_COMPACT;
    }
}

static void draw_values(struct trial_rng *rng, struct trial_spec *spec)
{
    static const double query_sizes[] = {1, 1, 1, 0.1, 10, 100};
    static const double value_sizes[] = {1, 8, 0.1, 30};
    spec->query_size = PICK(rng, query_sizes);
    spec->value_size = PICK(rng, value_sizes);
    spec->values = trial_chance(rng, 8) ? (enum trial_values)trial_range(rng, 0, TRIAL_VALUES - 1)
                                        : TRIAL_NORMAL;
    float usual = 1.0F / sqrtf((float)spec->head_dim_qk);
    spec->scale = trial_chance(rng, 8) ? -0.7F * usual : usual;
}

/* Half of what begins at whole copies has rows of whole copies as well. */
static void draw_alignment(struct trial_rng *rng, struct trial_spec *spec)
{
    spec->aligned = trial_chance(rng, 2);
    if (!spec->aligned || trial_chance(rng, 2)) {
        return;
    }
    spec->head_dim_qk = (spec->head_dim_qk + 7) / 8 * 8;
    spec->head_dim_v = (spec->head_dim_v + 7) / 8 * 8;
}

static struct draw draw_one(bool flash, uint64_t seed, uint64_t number)
{
    struct trial_rng rng = {seed * UINT64_C(0xD1342543DE82EF95) + number};
    struct draw draw = {.spec = trial_spec_default()};
    struct trial_spec *spec = &draw.spec;
    if (flash) {
        draw_flash_shape(&rng, spec, number);
    } else {
        draw_small_shape(&rng, spec);
    }
    draw_mask(&rng, spec);
    draw_lengths(&rng, spec);
    draw_bias(&rng, spec);
    draw_additions(&rng, spec);
    draw_layouts(&rng, spec);
    draw_values(&rng, spec);
    spec->dtype = (enum attn_dtype)trial_range(&rng, ATTN_FP16, flash ? ATTN_BF16 : ATTN_FP32);
    spec->seed = trial_next(&rng);
    draw.direction = trial_chance(&rng, 3) ? ATTN_FORWARD : ATTN_BACKWARD;
    draw.lse = draw.direction == ATTN_BACKWARD || trial_chance(&rng, 2);
    draw.workers = (unsigned)trial_range(&rng, 1, 4);
    draw.tiles_per_launch = trial_chance(&rng, 3) ? (uint64_t)trial_range(&rng, 1, 5) : 0;
    draw_alignment(&rng, spec);
    return draw;
}

struct draw draw_case(uint64_t seed, uint64_t number)
{
    return draw_one(false, seed, number);
}

struct draw draw_flash_case(uint64_t seed, uint64_t number)
{
    return draw_one(true, seed, number);
}

bool draw_may_be_refused(const struct draw *draw)
{
    return draw->spec.dtype == ATTN_FP32;
}

/* -- description ---------------------------------------------------------------------------- */

static void describe_features(const struct trial_spec *s)
{
    printf(" softcap=%g dropout=%" PRIu32 " slopes=%d%s sinks=%d%s dlse=%d", (double)s->softcap,
        s->dropout_threshold, s->slopes, s->slopes && s->slopes_shared ? " shared" : "", s->sinks,
        s->sinks && s->sinks_infinite ? " some -inf" : "", s->dlse);
    if (s->bias) {
        printf(" bias=%s extents=%c%c%c%c infinities=%d size=%g", s->bias_fp32 ? "fp32" : "dtype",
            s->bias_one[0] ? '1' : 'b', s->bias_one[1] ? '1' : 'h', s->bias_one[2] ? '1' : 'q',
            s->bias_one[3] ? '1' : 'k', (int)s->bias_infinities, s->bias_size);
    }
    printf("%s%s%s%s%s%s%s", s->dbias ? " dbias" : "", s->dslopes ? " dslopes" : "",
        s->dsinks ? " dsinks" : "", s->varlen_q ? " cu_seqlens_q" : "",
        s->varlen_k ? " cu_seqlens_k" : "", s->key_lengths ? " seqlens_k" : "",
        s->hostile ? " hostile" : "");
}

void draw_describe(const struct draw *draw)
{
    static const char *const dtypes[] = {"", "fp16", "bf16", "fp32"};
    const struct trial_spec *s = &draw->spec;
    printf("  %s %s batch=%d heads=%d/%d dims=%d/%d lengths=%" PRId64 "/%" PRId64 " window=%" PRId64
           "/%" PRId64 " %s scale=%g q=%g v=%g values=%d packed=%d lse=%d workers=%u"
           " tiles_per_launch=%" PRIu64,
        dtypes[s->dtype], draw->direction == ATTN_FORWARD ? "forward" : "backward", s->batch,
        s->heads_q, s->heads_kv, s->head_dim_qk, s->head_dim_v, s->seqlen_q, s->seqlen_k,
        s->window_left, s->window_right,
        s->alignment == ATTN_TOP_LEFT ? "top-left" : "bottom-right", (double)s->scale,
        s->query_size, s->value_size, (int)s->values, s->packed, draw->lse, draw->workers,
        draw->tiles_per_launch);
    describe_features(s);
    printf(" aligned=%d layouts=", s->aligned);
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        printf("%d", (int)s->layout[id]);
    }
    printf("\n");
}

/* -- pairs ---------------------------------------------------------------------------------- */

static const char *const feature_names[DRAW_FEATURES] = {"fp16", "bf16", "fp32", "forward",
    "backward", "grouped heads", "two head dims", "strides", "packed", "window_left",
    "window_right", "top-left", "bottom-right", "softcap", "dropout", "bias", "-inf in bias",
    "one batch of bias", "one head of bias", "one query of bias", "one key of bias", "dbias",
    "slopes", "slopes per batch", "dslopes", "sinks", "dsinks", "dlse", "cu_seqlens_q",
    "cu_seqlens_k", "seqlens_k", "hostile lengths"};

static bool has_strides(const struct trial_spec *spec)
{
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        if (spec->layout[id] != TRIAL_COMPACT) {
            return true;
        }
    }
    return false;
}

static bool has(const struct draw *draw, enum draw_feature feature)
{
    const struct trial_spec *s = &draw->spec;
    bool backward = draw->direction == ATTN_BACKWARD;
    bool diagonal =
        s->window_left != ATTN_UNBOUNDED || s->window_right != ATTN_UNBOUNDED || s->slopes;
    const bool list[DRAW_FEATURES] = {
        [DRAW_FP16] = s->dtype == ATTN_FP16,
        [DRAW_BF16] = s->dtype == ATTN_BF16,
        [DRAW_FP32] = s->dtype == ATTN_FP32,
        [DRAW_FORWARD] = !backward,
        [DRAW_BACKWARD] = backward,
        [DRAW_GROUPED_HEADS] = s->heads_q > s->heads_kv,
        [DRAW_TWO_HEAD_DIMS] = s->head_dim_qk != s->head_dim_v,
        [DRAW_STRIDES] = has_strides(s),
        [DRAW_PACKED] = s->packed,
        [DRAW_WINDOW_LEFT] = s->window_left != ATTN_UNBOUNDED,
        [DRAW_WINDOW_RIGHT] = s->window_right != ATTN_UNBOUNDED,
        [DRAW_TOP_LEFT] = diagonal && s->alignment == ATTN_TOP_LEFT,
        [DRAW_BOTTOM_RIGHT] = diagonal && s->alignment == ATTN_BOTTOM_RIGHT,
        [DRAW_SOFTCAP] = s->softcap > 0,
        [DRAW_DROPOUT] = s->dropout_threshold > 0,
        [DRAW_BIAS] = s->bias,
        [DRAW_BIAS_INFINITIES] = s->bias && s->bias_infinities != TRIAL_FINITE,
        [DRAW_BIAS_ONE_BATCH] = s->bias && s->bias_one[0],
        [DRAW_BIAS_ONE_HEAD] = s->bias && s->bias_one[1],
        [DRAW_BIAS_ONE_QUERY] = s->bias && s->bias_one[2],
        [DRAW_BIAS_ONE_KEY] = s->bias && s->bias_one[3],
        [DRAW_DBIAS] = backward && s->dbias,
        [DRAW_SLOPES] = s->slopes,
        [DRAW_SLOPES_PER_BATCH] = s->slopes && !s->slopes_shared,
        [DRAW_DSLOPES] = backward && s->dslopes,
        [DRAW_SINKS] = s->sinks,
        [DRAW_DSINKS] = backward && s->dsinks,
        [DRAW_DLSE] = backward && s->dlse,
        [DRAW_VARLEN_Q] = s->varlen_q,
        [DRAW_VARLEN_K] = s->varlen_k,
        [DRAW_KEY_LENGTHS] = s->key_lengths,
        [DRAW_HOSTILE] = s->hostile,
    };
    return list[feature];
}

static bool can_meet(enum draw_feature a, enum draw_feature b)
{
    static const enum draw_feature gradients[] = {
        DRAW_BACKWARD, DRAW_DBIAS, DRAW_DSLOPES, DRAW_DSINKS, DRAW_DLSE};

    for (size_t i = 0; i < COUNT_OF(gradients); i++) {
        if (a == DRAW_FORWARD && b == gradients[i]) {
            return false;
        }
    }
    return !(a < DRAW_FORWARD && b < DRAW_FORWARD) &&
           !(a == DRAW_TOP_LEFT && b == DRAW_BOTTOM_RIGHT);
}

void draw_count(struct draw_pairs *pairs, const struct draw *draw)
{
    uint64_t features = 0;
    for (enum draw_feature i = 0; i < DRAW_FEATURES; i++) {
        features |= has(draw, i) ? UINT64_C(1) << i : 0;
    }
    for (enum draw_feature i = 0; i < DRAW_FEATURES; i++) {
        pairs->seen[i] |= (features >> i & 1) != 0 ? features : 0;
    }
    if (draw->spec.bias) {
        const bool *one = draw->spec.bias_one;
        pairs->bias_shapes[one[0] + 2 * one[1] + 4 * one[2] + 8 * one[3]] = true;
    }
}

bool draw_report(const struct draw_pairs *pairs, bool names)
{
    int seen = 0;
    int all = 0;
    int shapes = 0;
    for (enum draw_feature a = 0; a < DRAW_FEATURES; a++) {
        for (enum draw_feature b = a + 1; b < DRAW_FEATURES; b++) {
            bool met = (pairs->seen[a] >> b & 1) != 0;
            all += can_meet(a, b) ? 1 : 0;
            seen += met ? 1 : 0;
            if (names && can_meet(a, b) && !met) {
                printf("never together: %s, %s\n", feature_names[a], feature_names[b]);
            }
        }
    }
    for (int i = 0; i < 16; i++) {
        shapes += pairs->bias_shapes[i] ? 1 : 0;
    }
    printf("pairs of features: %d of %d, shapes of bias: %d of 16\n", seen, all, shapes);
    return seen == all && shapes == 16;
}

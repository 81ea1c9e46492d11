#include "shape.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

#define PROTOCOL_HIDDEN 2048
#define PROTOCOL_MAX_TEXT 64 /* of one key and its value's items */

typedef bool set_fn(struct shape *shape, const char *value, size_t place);

/* One word of a shape. place is where set() puts the value. */
struct key {
    const char *name;
    set_fn *set;
    size_t place;
    const char *values; /* NULL: the key stands alone */
    const char *help;
};

/* -- values --------------------------------------------------------------------------------- */

static void *place_in(struct shape *shape, size_t place)
{
    return (char *)shape + place;
}

static bool whole_number(const char *text, int64_t low, int64_t high, int64_t *number)
{
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*text == '\0' || *end != '\0' || errno != 0 || value < low || value > high) {
        return false;
    }
    *number = value;
    return true;
}

/* Copies the part of text up to the separator; returns what follows it, NULL at the end. */
static const char *next_item(const char *text, char separator, char item[PROTOCOL_MAX_TEXT])
{
    const char *end = strchr(text, separator);
    size_t length = end != NULL ? (size_t)(end - text) : strlen(text);
    length = length < PROTOCOL_MAX_TEXT ? length : PROTOCOL_MAX_TEXT - 1;
    memcpy(item, text, length);
    item[length] = '\0';
    return end != NULL ? end + 1 : NULL;
}

static bool set_extent(struct shape *shape, const char *value, size_t place)
{
    return whole_number(value, 1, INT32_MAX, place_in(shape, place));
}

static bool set_flag(struct shape *shape, const char *value, size_t place)
{
    (void)value;
    *(bool *)place_in(shape, place) = true;
    return true;
}

static bool set_causal(struct shape *shape, const char *value, size_t place)
{
    (void)value;
    *(int64_t *)place_in(shape, place) = 0;
    return true;
}

static bool set_real(struct shape *shape, const char *value, size_t place)
{
    char *end = NULL;
    double number = strtod(value, &end);
    *(double *)place_in(shape, place) = number;
    return *value != '\0' && *end == '\0' && number >= 0 && isfinite(number);
}

static bool set_dropout(struct shape *shape, const char *value, size_t place)
{
    return set_real(shape, value, place) && round(shape->dropout * 65536) < 65536;
}

static bool set_dtype(struct shape *shape, const char *value, size_t place)
{
    enum attn_dtype dtype = shape_dtype(value);
    *(enum attn_dtype *)place_in(shape, place) = dtype;
    return dtype != 0;
}

static bool set_window(struct shape *shape, const char *value, size_t place)
{
    int64_t *const sides[2] = {&shape->window_left, &shape->window_right};
    char item[PROTOCOL_MAX_TEXT];
    (void)place;
    for (int i = 0; i < 2; i++) {
        if (value == NULL) {
            return false;
        }
        value = next_item(value, ':', item);
        *sides[i] = ATTN_UNBOUNDED;
        if (strcmp(item, "-") != 0 && !whole_number(item, 0, INT64_MAX, sides[i])) {
            return false;
        }
    }
    return value == NULL;
}

static bool set_alignment(struct shape *shape, const char *value, size_t place)
{
    (void)place;
    shape->alignment = strcmp(value, "tl") == 0 ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT;
    return strcmp(value, "tl") == 0 || strcmp(value, "br") == 0;
}

static bool set_bias(struct shape *shape, const char *value, size_t place)
{
    static const char *const names[4] = {"b", "h", "q", "k"};
    char item[PROTOCOL_MAX_TEXT];
    (void)place;
    shape->bias = true;
    for (int i = 0; i < 4; i++) {
        if (value == NULL) {
            return false;
        }
        value = next_item(value, 'x', item);
        shape->bias_broadcast[i] = strcmp(item, "1") == 0;
        if (!shape->bias_broadcast[i] && strcmp(item, names[i]) != 0) {
            return false;
        }
    }
    return value == NULL;
}

static bool set_lengths(struct shape *shape, const char *value, size_t place)
{
    struct shape_lengths *lengths = place_in(shape, place);
    lengths->count = 0;
    while (value != NULL) {
        char item[PROTOCOL_MAX_TEXT];
        int64_t rows = 0;
        value = next_item(value, ':', item);
        if (lengths->count == SHAPE_MAX_SEQUENCES || !whole_number(item, 0, 1 << 28, &rows)) {
            return false;
        }
        lengths->rows[lengths->count++] = (int32_t)rows;
    }
    return true;
}

/* -- the grammar ---------------------------------------------------------------------------- */

#define PLACE(member) offsetof(struct shape, member)

static const struct key keys[] = {
    {"b", set_extent, PLACE(batch), "N", "batch (1)"},
    {"hq", set_extent, PLACE(heads_q), "N", "query heads (1)"},
    {"hkv", set_extent, PLACE(heads_kv), "N", "key and value heads (hq)"},
    {"sq", set_extent, PLACE(seqlen_q), "N", "query rows (needed, unless varlen)"},
    {"sk", set_extent, PLACE(seqlen_k), "N", "key rows (sq)"},
    {"d", set_extent, PLACE(head_dim_qk), "N", "head dim of q and k (64)"},
    {"dv", set_extent, PLACE(head_dim_v), "N", "head dim of v and out (d)"},
    {"dtype", set_dtype, PLACE(dtype), "T", "fp32, fp16 or bf16 (what --dtype says)"},
    {"causal", set_causal, PLACE(window_right), NULL, "the same as window=-:0"},
    {"window", set_window, 0, "L:R", "keys left and right of the diagonal, - for all (-:-)"},
    {"align", set_alignment, 0, "A", "tl or br: where the diagonal starts or ends (br)"},
    {"softcap", set_real, PLACE(softcap), "X", "bound of the scores (0: none)"},
    {"bias", set_bias, 0, "BxHxQxK", "each its letter (b, h, q, k), or 1 to broadcast"},
    {"bias_dtype", set_dtype, PLACE(bias_dtype), "T", "fp32, or the shape's dtype (the latter)"},
    {"alibi", set_flag, PLACE(alibi), NULL, "a slope for each head"},
    {"sinks", set_flag, PLACE(sinks), NULL, "a sink for each head"},
    {"constant", set_flag, PLACE(constant), NULL, "no gradients of bias, slopes and sinks"},
    {"dlse", set_flag, PLACE(dlse), NULL, "a gradient of lse comes in"},
    {"dropout", set_dropout, PLACE(dropout), "P", "probability of being dropped (0)"},
    {"varlen", set_lengths, PLACE(varlen_q), "N:N:...",
        "packed sequences of these lengths, instead of b, sq, sk"},
    {"varlen_k", set_lengths, PLACE(varlen_k), "N:N:...", "their key lengths (those of varlen)"},
    {"short_k", set_lengths, PLACE(short_k), "N:N:...", "key lengths that shorten the others"},
    {"deterministic", set_flag, PLACE(deterministic), NULL, "the same bits every time"},
};

#define KEY_COUNT (sizeof keys / sizeof keys[0])

__attribute__((format(printf, 2, 3))) static bool wrong(
    char message[SHAPE_TEXT_BYTES], const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(message, SHAPE_TEXT_BYTES, format, arguments);
    va_end(arguments);
    return false;
}

static const struct key *find_key(const char *name, size_t length)
{
    for (size_t i = 0; i < KEY_COUNT; i++) {
        if (strlen(keys[i].name) == length && strncmp(keys[i].name, name, length) == 0) {
            return &keys[i];
        }
    }
    return NULL;
}

/* One word: a key alone, or key=value. */
static bool parse_word(struct shape *shape, const char *word, char message[SHAPE_TEXT_BYTES])
{
    size_t length = strcspn(word, "=");
    const struct key *key = find_key(word, length);
    bool valued = word[length] == '=';
    if (key == NULL) {
        return wrong(message, "a shape has no key '%.*s'", (int)length, word);
    }
    if (valued != (key->values != NULL)) {
        return wrong(message, "%s %s", key->name, valued ? "takes no value" : "needs a value");
    }
    if (!key->set(shape, valued ? word + length + 1 : "", key->place)) {
        return wrong(message, "%s cannot be '%s'; it is %s=%s, %s", key->name, word + length + 1,
            key->name, key->values, key->help);
    }
    return true;
}

static int64_t longest(const struct shape_lengths *lengths)
{
    int64_t rows = 0;
    for (int i = 0; i < lengths->count; i++) {
        rows = lengths->rows[i] > rows ? lengths->rows[i] : rows;
    }
    return rows;
}

static bool complete_lengths(struct shape *shape, char message[SHAPE_TEXT_BYTES])
{
    const struct shape_lengths *q = &shape->varlen_q;
    if (q->count == 0 && shape->varlen_k.count > 0) {
        return wrong(message, "varlen_k needs varlen");
    }
    if (q->count > 0) {
        if (shape->batch != 0 || shape->seqlen_q != 0 || shape->seqlen_k != 0) {
            return wrong(message, "varlen stands instead of b, sq and sk");
        }
        if (shape->varlen_k.count == 0) {
            shape->varlen_k = *q;
        }
        if (shape->varlen_k.count != q->count) {
            return wrong(
                message, "varlen_k has %d lengths, varlen %d", shape->varlen_k.count, q->count);
        }
        shape->batch = q->count;
        shape->seqlen_q = longest(q);
        shape->seqlen_k = longest(&shape->varlen_k);
    } else if (shape->seqlen_q == 0) {
        return wrong(message, "a shape needs sq or varlen");
    }
    return true;
}

static int64_t or_default(int64_t number, int64_t standard)
{
    return number != 0 ? number : standard;
}

static bool complete(struct shape *shape, char message[SHAPE_TEXT_BYTES])
{
    if (!complete_lengths(shape, message)) {
        return false;
    }
    shape->batch = or_default(shape->batch, 1);
    shape->heads_q = or_default(shape->heads_q, 1);
    shape->heads_kv = or_default(shape->heads_kv, shape->heads_q);
    shape->head_dim_qk = or_default(shape->head_dim_qk, 64);
    shape->head_dim_v = or_default(shape->head_dim_v, shape->head_dim_qk);
    if (shape->varlen_q.count == 0) {
        shape->seqlen_k = or_default(shape->seqlen_k, shape->seqlen_q);
    }
    if (shape->short_k.count > 0 && shape->short_k.count != shape->batch) {
        return wrong(message, "short_k has %d lengths, the batch is %" PRId64, shape->short_k.count,
            shape->batch);
    }
    if (!shape->bias && shape->bias_dtype != 0) {
        return wrong(message, "bias_dtype needs bias");
    }
    return true;
}

/* -- describing ----------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void append(
    char text[SHAPE_TEXT_BYTES], const char *format, ...)
{
    size_t length = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text + length, SHAPE_TEXT_BYTES - length, format, arguments);
    va_end(arguments);
}

static void append_lengths(
    char text[SHAPE_TEXT_BYTES], const char *key, const struct shape_lengths *lengths)
{
    for (int i = 0; i < lengths->count; i++) {
        append(text, i == 0 ? "%s%" PRId32 : "%s%" PRId32, i == 0 ? key : ":", lengths->rows[i]);
    }
}

static void append_side(char text[SHAPE_TEXT_BYTES], int64_t keys_seen)
{
    if (keys_seen == ATTN_UNBOUNDED) {
        append(text, "-");
    } else {
        append(text, "%" PRId64, keys_seen);
    }
}

static void append_mask(char text[SHAPE_TEXT_BYTES], const struct shape *shape)
{
    bool bounded = shape->window_left != ATTN_UNBOUNDED || shape->window_right != ATTN_UNBOUNDED;
    if (shape->window_left == ATTN_UNBOUNDED && shape->window_right == 0) {
        append(text, ",causal");
    } else if (bounded) {
        append(text, ",window=");
        append_side(text, shape->window_left);
        append(text, ":");
        append_side(text, shape->window_right);
    }
    append(text, shape->alignment == ATTN_TOP_LEFT ? ",align=tl" : "");
}

static void append_features(char text[SHAPE_TEXT_BYTES], const struct shape *shape)
{
    static const char letters[] = "bhqk";
    if (shape->softcap > 0) {
        append(text, ",softcap=%g", shape->softcap);
    }
    for (int i = 0; i < 4 && shape->bias; i++) {
        append(text, "%s%c", i == 0 ? ",bias=" : "x", shape->bias_broadcast[i] ? '1' : letters[i]);
    }
    if (shape->bias_dtype != 0) {
        append(text, ",bias_dtype=%s", shape_dtype_name(shape->bias_dtype));
    }
    append(text, "%s%s%s%s", shape->alibi ? ",alibi" : "", shape->sinks ? ",sinks" : "",
        shape->constant ? ",constant" : "", shape->dlse ? ",dlse" : "");
    if (shape->dropout > 0) {
        append(text, ",dropout=%g", shape->dropout);
    }
    append_lengths(text, ",short_k=", &shape->short_k);
    append(text, "%s", shape->deterministic ? ",deterministic" : "");
}

/* -- public --------------------------------------------------------------------------------- */

const char *shape_help(void)
{
    static char help[KEY_COUNT * 100];
    size_t used = 0;
    for (size_t i = 0; i < KEY_COUNT && used < sizeof help; i++) {
        char word[PROTOCOL_MAX_TEXT];
        (void)snprintf(word, sizeof word, "%s%s%s", keys[i].name, keys[i].values != NULL ? "=" : "",
            keys[i].values != NULL ? keys[i].values : "");
        int length = snprintf(help + used, sizeof help - used, "  %-18s %s\n", word, keys[i].help);
        used += length > 0 ? (size_t)length : 0;
    }
    return help;
}

bool shape_parse(struct shape *shape, const char *text, char message[SHAPE_TEXT_BYTES])
{
    char words[SHAPE_TEXT_BYTES];
    char *rest = NULL;
    *shape = (struct shape){.window_left = ATTN_UNBOUNDED,
        .window_right = ATTN_UNBOUNDED,
        .alignment = ATTN_BOTTOM_RIGHT};
    if (strlen(text) >= sizeof words) {
        return wrong(message, "the shape is longer than %zu bytes", sizeof words - 1);
    }
    (void)strcpy(words, text);
    for (char *word = strtok_r(words, ",", &rest); word != NULL;
         word = strtok_r(NULL, ",", &rest)) {
        if (!parse_word(shape, word, message)) {
            return false;
        }
    }
    return complete(shape, message);
}

void shape_describe(const struct shape *shape, char text[SHAPE_TEXT_BYTES])
{
    text[0] = '\0';
    if (shape->varlen_q.count > 0) {
        append_lengths(text, "varlen=", &shape->varlen_q);
        append_lengths(text, ",varlen_k=", &shape->varlen_k);
    } else {
        append(text, "b=%" PRId64 ",sq=%" PRId64, shape->batch, shape->seqlen_q);
        if (shape->seqlen_k != shape->seqlen_q) {
            append(text, ",sk=%" PRId64, shape->seqlen_k);
        }
    }
    append(text, ",hq=%" PRId64, shape->heads_q);
    if (shape->heads_kv != shape->heads_q) {
        append(text, ",hkv=%" PRId64, shape->heads_kv);
    }
    append(text, ",d=%" PRId64, shape->head_dim_qk);
    if (shape->head_dim_v != shape->head_dim_qk) {
        append(text, ",dv=%" PRId64, shape->head_dim_v);
    }
    append_mask(text, shape);
    append_features(text, shape);
}

bool shape_protocol(struct shape *shape, int64_t tokens, int index)
{
    static const int64_t head_dims[] = {64, 128, 256};
    const int64_t shortest = 512;
    const int64_t longest_of_all = 16384;
    int number = 0;
    for (int causal = 0; causal < 2; causal++) {
        for (size_t d = 0; d < sizeof head_dims / sizeof head_dims[0]; d++) {
            for (int64_t s = shortest; s <= longest_of_all && s <= tokens; s *= 2, number++) {
                if (number == index) {
                    *shape = (struct shape){.batch = tokens / s,
                        .heads_q = PROTOCOL_HIDDEN / head_dims[d],
                        .heads_kv = PROTOCOL_HIDDEN / head_dims[d],
                        .seqlen_q = s,
                        .seqlen_k = s,
                        .head_dim_qk = head_dims[d],
                        .head_dim_v = head_dims[d],
                        .window_left = ATTN_UNBOUNDED,
                        .window_right = causal != 0 ? 0 : ATTN_UNBOUNDED,
                        .alignment = ATTN_BOTTOM_RIGHT,
                        .protocol = true};
                    return true;
                }
            }
        }
    }
    return false;
}

static const char *const dtype_names[] = {
    [ATTN_FP16] = "fp16", [ATTN_BF16] = "bf16", [ATTN_FP32] = "fp32"};

enum attn_dtype shape_dtype(const char *text)
{
    for (enum attn_dtype dtype = ATTN_FP16; dtype <= ATTN_FP32; dtype++) {
        if (strcmp(dtype_names[dtype], text) == 0) {
            return dtype;
        }
    }
    return (enum attn_dtype)0;
}

const char *shape_dtype_name(enum attn_dtype dtype)
{
    return dtype_names[dtype];
}

int64_t shape_rows_q(const struct shape *shape, int64_t b)
{
    return shape->varlen_q.count > 0 ? shape->varlen_q.rows[b] : shape->seqlen_q;
}

int64_t shape_rows_k(const struct shape *shape, int64_t b)
{
    int64_t rows = shape->varlen_k.count > 0 ? shape->varlen_k.rows[b] : shape->seqlen_k;
    bool shorter = shape->short_k.count > 0 && shape->short_k.rows[b] < rows;
    return shorter ? shape->short_k.rows[b] : rows;
}

static int64_t start_of(const struct shape_lengths *lengths, int64_t b)
{
    int64_t start = 0;
    for (int64_t i = 0; i < b && lengths->count > 0; i++) {
        start += lengths->rows[i];
    }
    return start;
}

int64_t shape_start_q(const struct shape *shape, int64_t b)
{
    return start_of(&shape->varlen_q, b);
}

int64_t shape_start_k(const struct shape *shape, int64_t b)
{
    return start_of(&shape->varlen_k, b);
}

struct attn_problem shape_problem(const struct shape *shape)
{
    return (struct attn_problem){
        .dtype = shape->dtype,
        .batch = (int32_t)shape->batch,
        .heads_q = (int32_t)shape->heads_q,
        .heads_kv = (int32_t)shape->heads_kv,
        .head_dim_qk = (int32_t)shape->head_dim_qk,
        .head_dim_v = (int32_t)shape->head_dim_v,
        .seqlen_q = shape->seqlen_q,
        .seqlen_k = shape->seqlen_k,
        .scale = 1.0F / sqrtf((float)shape->head_dim_qk),
        .softcap = (float)shape->softcap,
        .window_left = shape->window_left,
        .window_right = shape->window_right,
        .alignment = shape->alignment,
        .deterministic = shape->deterministic,
        .dropout_threshold = (uint32_t)lround(shape->dropout * 65536),
        .dropout_seed = 1,
        .bias_dtype = shape->bias_dtype != 0 ? shape->bias_dtype : shape->dtype,
        .bias_broadcast = {shape->bias_broadcast[0], shape->bias_broadcast[1],
            shape->bias_broadcast[2], shape->bias_broadcast[3]},
    };
}

double shape_flops(const struct shape *shape, enum attn_direction direction)
{
    struct attn_problem problem = shape_problem(shape);
    if (shape->protocol) {
        double full = 4.0 * (double)(shape->batch * shape->heads_q * shape->head_dim_qk) *
                      (double)shape->seqlen_q * (double)shape->seqlen_k;
        full *= shape->window_right == 0 ? 0.5 : 1;
        return direction == ATTN_FORWARD ? full : 2.5 * full;
    }
    double flops = 0;
    problem.batch = 1;
    for (int64_t b = 0; b < shape->batch; b++) {
        problem.seqlen_q = shape_rows_q(shape, b);
        problem.seqlen_k = shape_rows_k(shape, b);
        flops += attn_flops(direction, &problem);
    }
    return flops;
}

double shape_score_bytes(const struct shape *shape)
{
    double scores = 0;
    for (int64_t b = 0; b < shape->batch; b++) {
        scores += (double)shape_rows_q(shape, b) * (double)shape_rows_k(shape, b);
    }
    return scores * (double)shape->heads_q * (double)dtype_bytes(shape->dtype);
}

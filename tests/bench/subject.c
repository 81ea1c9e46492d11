#include "subject.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dice.h"
#include "workers.h"

#define NORMALS 65536

static const enum tensor_id backward_only[] = {TENSOR_DOUT, TENSOR_DLSE, TENSOR_DQ, TENSOR_DK,
    TENSOR_DV, TENSOR_DBIAS, TENSOR_DSLOPES, TENSOR_DSINKS};

static bool present(const struct shape *shape, enum tensor_id id)
{
    switch (id) {
    case TENSOR_BIAS:
        return shape->bias;
    case TENSOR_SLOPES:
        return shape->alibi;
    case TENSOR_SINKS:
        return shape->sinks;
    case TENSOR_DLSE:
        return shape->dlse;
    case TENSOR_DBIAS:
        return shape->bias && !shape->constant;
    case TENSOR_DSLOPES:
        return shape->alibi && !shape->constant;
    case TENSOR_DSINKS:
        return shape->sinks && !shape->constant;
    default:
        return true;
    }
}

/* q, k, v and theirs lie (batch, row, head, column), lse and bias (batch, head, row, column), as
 * trainers have them. */
static struct attn_view compact(const struct tensor *t, enum tensor_id id)
{
    bool by_head = id == TENSOR_LSE || id == TENSOR_DLSE || id == TENSOR_BIAS || id == TENSOR_DBIAS;
    struct attn_view view = {.batch_stride = t->rows * t->heads * t->columns,
        .row_stride = by_head ? t->columns : t->heads * t->columns,
        .head_stride = by_head ? t->rows * t->columns : t->columns,
        .column_stride = 1};
    if (id == TENSOR_BIAS || id == TENSOR_DBIAS) {
        view.batch_stride = t->batch > 1 ? view.batch_stride : 0;
        view.head_stride = t->heads > 1 ? view.head_stride : 0;
        view.row_stride = t->rows > 1 ? view.row_stride : 0;
        view.column_stride = t->columns > 1 ? 1 : 0;
    }
    if (id == TENSOR_SLOPES || id == TENSOR_DSLOPES) {
        view.batch_stride = 0;
    }
    return view;
}

static int32_t *offsets_of(const struct shape_lengths *lengths)
{
    int32_t *offsets = workers_memory((size_t)(lengths->count + 1) * sizeof *offsets);
    for (int i = 0; i < lengths->count; i++) {
        offsets[i + 1] = offsets[i] + lengths->rows[i];
    }
    return offsets;
}

static void place_lengths(struct subject *subject)
{
    const struct shape *shape = subject->shape;
    struct attn_lengths *lengths = &subject->backward.lengths;
    if (shape->varlen_q.count > 0) {
        subject->cu_seqlens_q = offsets_of(&shape->varlen_q);
        subject->cu_seqlens_k = offsets_of(&shape->varlen_k);
        lengths->total_q = subject->cu_seqlens_q[shape->batch];
        lengths->total_k = subject->cu_seqlens_k[shape->batch];
    }
    if (shape->short_k.count > 0) {
        size_t bytes = (size_t)shape->batch * sizeof(int32_t);
        subject->seqlens_k = workers_memory(bytes);
        memcpy(subject->seqlens_k, shape->short_k.rows, bytes);
    }
    lengths->cu_seqlens_q = subject->cu_seqlens_q;
    lengths->cu_seqlens_k = subject->cu_seqlens_k;
    lengths->seqlens_k = subject->seqlens_k;
}

static void split_directions(struct subject *subject)
{
    subject->forward = subject->backward;
    for (size_t i = 0; i < sizeof backward_only / sizeof backward_only[0]; i++) {
        *tensor_view(&subject->forward, backward_only[i]) = (struct attn_view){0};
    }
}

/* All normal numbers that are drawn from, rounded to the dtype. */
static unsigned char *normals_of(enum attn_dtype dtype)
{
    struct dice dice = {(uint64_t)dtype};
    size_t size = dtype_bytes(dtype);
    unsigned char *normals = workers_memory(NORMALS * size);
    for (size_t i = 0; i < NORMALS; i++) {
        double u = (double)((dice_next(&dice) >> 11) + 1) * 0x1p-53;
        double v = (double)(dice_next(&dice) >> 11) * 0x1p-53;
        double normal = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
        dtype_store(dtype, normals + i * size, normal);
    }
    return normals;
}

static void fill_slopes(const struct subject *subject)
{
    struct tensor slopes = tensor_of(&subject->backward, TENSOR_SLOPES);
    for (int64_t h = 0; h < slopes.heads; h++) {
        tensor_set(&slopes, h, exp2(-8.0 * (double)(h + 1) / (double)slopes.heads));
    }
}

static void place(struct subject *subject, enum tensor_id id, bool with_memory)
{
    static char somewhere; /* an address that only says: there is such a tensor */
    struct tensor tensor = tensor_of(&subject->backward, id);
    struct attn_view view = compact(&tensor, id);
    view.data = &somewhere;
    if (with_memory) {
        subject->bytes[id] = (size_t)tensor_elements(&tensor) * dtype_bytes(tensor.dtype);
        subject->memory[id] = workers_memory(subject->bytes[id]);
        view.data = subject->memory[id];
    }
    *tensor_view(&subject->backward, id) = view;
}

static void make(struct subject *subject, const struct shape *shape, bool with_memory)
{
    *subject = (struct subject){.shape = shape, .backward = shape_problem(shape)};
    place_lengths(subject);
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        if (present(shape, id)) {
            place(subject, id, with_memory);
        }
    }
    split_directions(subject);
}

void subject_sketch(struct subject *subject, const struct shape *shape)
{
    make(subject, shape, false);
}

void subject_init(struct subject *subject, const struct shape *shape)
{
    make(subject, shape, true);
    for (enum tensor_id id = 0; id < TENSOR_OUT; id++) {
        subject_fill(subject, id);
    }
}

void subject_finish(struct subject *subject)
{
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        free(subject->memory[id]);
    }
    free(subject->cu_seqlens_q);
    free(subject->cu_seqlens_k);
    free(subject->seqlens_k);
}

void subject_fill(struct subject *subject, enum tensor_id id)
{
    struct tensor tensor = tensor_of(&subject->backward, id);
    size_t size = dtype_bytes(tensor.dtype);
    struct dice dice = {(uint64_t)id + 1};
    if (subject->memory[id] == NULL) {
        return;
    }
    if (id == TENSOR_SLOPES) {
        fill_slopes(subject);
        return;
    }
    unsigned char *normals = normals_of(tensor.dtype);
    unsigned char *bytes = subject->memory[id];
    uint64_t random = 0;
    for (size_t i = 0; i < subject->bytes[id] / size; i++) {
        random = i % 4 == 0 ? dice_next(&dice) : random >> 16;
        memcpy(bytes + i * size, normals + (random % NORMALS) * size, size);
    }
    free(normals);
}

void subject_set_bytes(struct subject *subject, enum tensor_id id, int value)
{
    if (subject->memory[id] != NULL) {
        memset(subject->memory[id], value, subject->bytes[id]);
    }
}

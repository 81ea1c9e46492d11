#include "client_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attn.h"
#include "check.h"

#define ALIGNMENT 64
#define POISON 0xA5

static const DLDataType dtypes[] = {{kDLFloat, 16, 1}, {kDLBfloat, 16, 1}, {kDLFloat, 32, 1}};
static const DLDataType float_ = {kDLFloat, 32, 1};
static const DLDataType length_ = {kDLInt, 32, 1};

/* ---- Drawing ------------------------------------------------------------------------------------ */

static int64_t draw_window(struct rng *rng)
{
    return rng_one_in(rng, 2) ? ATTND_UNBOUNDED : rng_between(rng, 0, 30);
}

static void draw_options(struct attnd_options *options, struct rng *rng)
{
    *options = (struct attnd_options)ATTND_OPTIONS_INIT;
    options->scale = rng_one_in(rng, 2) ? 0.0F : 0.25F;
    options->softcap = rng_one_in(rng, 3) ? 1.5F : 0.0F;
    options->causal = rng_one_in(rng, 3);
    options->deterministic = rng_one_in(rng, 2);
    options->alignment = rng_one_in(rng, 2) ? ATTND_TOP_LEFT : ATTND_BOTTOM_RIGHT;
    options->window_left = draw_window(rng);
    options->window_right = draw_window(rng);
    options->dropout_p = rng_one_in(rng, 3) ? 0.2F : 0.0F;
    options->dropout_offset = (uint32_t)rng_next(rng);
    options->dropout_seed = rng_next(rng);
}

void client_case_draw(struct client_case *drawn, struct rng *rng)
{
    struct case_shape *shape = &drawn->shape;
    *drawn = (struct client_case){0};
    draw_options(&drawn->options, rng);
    shape->direction = rng_one_in(rng, 2) ? ATTND_FORWARD : ATTND_BACKWARD;
    shape->dtype = dtypes[rng_between(rng, 0, 2)];
    shape->batch = rng_between(rng, 1, 4);
    shape->heads_kv = rng_between(rng, 1, 2);
    shape->heads_q = shape->heads_kv * rng_between(rng, 1, 3);
    shape->dim = rng_between(rng, 1, 40);
    shape->dim_v = rng_one_in(rng, 2) ? shape->dim : rng_between(rng, 1, 40);
    shape->packed_q = rng_one_in(rng, 2);
    shape->packed_k = rng_one_in(rng, 2);
    shape->rows_q = rng_between(rng, 0, shape->packed_q ? 150 : 60);
    shape->rows_k = rng_between(rng, 0, shape->packed_k ? 150 : 60);
    shape->key_lengths = rng_one_in(rng, 3);
    shape->rows = rng_one_in(rng, 2);
    shape->bias = rng_one_in(rng, 2);
    shape->slopes = rng_one_in(rng, 2);
    shape->sinks = rng_one_in(rng, 2);
    shape->gradients = (unsigned)rng_between(rng, 0, 7);
    shape->bias_broadcast = (unsigned)rng_between(rng, 0, 15);
    shape->bias_float = rng_one_in(rng, 2);
    shape->slopes_broadcast = rng_one_in(rng, 2);
    if (shape->packed_q && rng_one_in(rng, 2)) {
        drawn->options.max_seqlen_q = rng_between(rng, 1, 150);
    }
    if (shape->packed_k && rng_one_in(rng, 2)) {
        drawn->options.max_seqlen_k = rng_between(rng, 1, 150);
    }
}

/* ---- Layout ------------------------------------------------------------------------------------- */

static int64_t longest_q(const struct client_case *made)
{
    return made->options.max_seqlen_q ? made->options.max_seqlen_q : made->shape.rows_q;
}

static int64_t longest_k(const struct client_case *made)
{
    return made->options.max_seqlen_k ? made->options.max_seqlen_k : made->shape.rows_k;
}

static void add(struct client_case *made, enum wire_role role, DLDataType dtype, int dims,
    const int64_t *extents)
{
    DLTensor *tensor = &made->tensor[role];
    int64_t count = dtype.bits / 8;
    for (int dim = 0; dim < dims; dim++) {
        made->extents[role][dim] = extents[dim];
        count *= extents[dim];
    }
    *tensor = (DLTensor){
        .device = {kDLCPU, 0}, .ndim = dims, .dtype = dtype, .shape = made->extents[role]};
    made->offset[role] = made->bytes;
    made->bytes += ((size_t)count / ALIGNMENT + 1) * ALIGNMENT;
}

/* Rows of one side: without their first extent if it is packed. */
static void add_rows(struct client_case *made, enum wire_role role, DLDataType dtype, bool packed,
    const int64_t *extents, int dims)
{
    add(made, role, dtype, dims - packed, extents + packed);
}

static void add_main(struct client_case *made)
{
    const struct case_shape *s = &made->shape;
    const int64_t q[] = {s->batch, s->rows_q, s->heads_q, s->dim};
    const int64_t k[] = {s->batch, s->rows_k, s->heads_kv, s->dim};
    const int64_t v[] = {s->batch, s->rows_k, s->heads_kv, s->dim_v};
    const int64_t out[] = {s->batch, s->rows_q, s->heads_q, s->dim_v};
    const int64_t lse[] = {s->batch, s->heads_q, s->rows_q};
    bool backward = s->direction == ATTND_BACKWARD;
    add_rows(made, WIRE_Q, s->dtype, s->packed_q, q, 4);
    add_rows(made, WIRE_K, s->dtype, s->packed_k, k, 4);
    add_rows(made, WIRE_V, s->dtype, s->packed_k, v, 4);
    add_rows(made, WIRE_OUT, s->dtype, s->packed_q, out, 4);
    if (backward || s->rows) {
        add_rows(made, WIRE_LSE, float_, s->packed_q, lse, 3);
    }
    if (!backward) {
        return;
    }
    add_rows(made, WIRE_DOUT, s->dtype, s->packed_q, out, 4);
    add_rows(made, WIRE_DQ, s->dtype, s->packed_q, q, 4);
    add_rows(made, WIRE_DK, s->dtype, s->packed_k, k, 4);
    add_rows(made, WIRE_DV, s->dtype, s->packed_k, v, 4);
    if (s->rows) {
        add_rows(made, WIRE_DLSE, float_, s->packed_q, lse, 3);
    }
}

/* A term of the scores and perhaps its gradient, bit number `bit`. */
static void add_term(struct client_case *made, enum wire_role role, DLDataType dtype, int dims,
    const int64_t *extents, unsigned bit)
{
    add(made, role, dtype, dims, extents);
    if (made->shape.direction == ATTND_BACKWARD && made->shape.gradients >> bit & 1) {
        add(made, (enum wire_role)(role + 1), dtype, dims, extents);
    }
}

static void add_terms(struct client_case *made)
{
    const struct case_shape *s = &made->shape;
    int64_t bias[] = {s->batch, s->heads_q, longest_q(made), longest_k(made)};
    for (unsigned dim = 0; dim < 4; dim++) {
        bias[dim] = s->bias_broadcast >> dim & 1 ? 1 : bias[dim];
    }
    const int64_t slopes[] = {s->slopes_broadcast ? 1 : s->batch, s->heads_q};
    if (s->bias) {
        add_term(made, WIRE_BIAS, s->bias_float ? float_ : s->dtype, 4, bias, 0);
    }
    if (s->slopes) {
        add_term(made, WIRE_SLOPES, float_, 2, slopes, 1);
    }
    if (s->sinks) {
        add_term(made, WIRE_SINKS, float_, 1, &s->heads_q, 2);
    }
}

static void add_lengths(struct client_case *made)
{
    const int64_t offsets = made->shape.batch + 1;
    if (made->shape.packed_q) {
        add(made, WIRE_CU_SEQLENS_Q, length_, 1, &offsets);
    }
    if (made->shape.packed_k) {
        add(made, WIRE_CU_SEQLENS_K, length_, 1, &offsets);
    }
    if (made->shape.key_lengths) {
        add(made, WIRE_SEQLENS_K, length_, 1, &made->shape.batch);
    }
}

/* ---- Filling ------------------------------------------------------------------------------------ */

static size_t tensor_bytes(const struct client_case *made, enum wire_role role)
{
    size_t bytes = made->tensor[role].dtype.bits / 8;
    for (int dim = 0; dim < made->tensor[role].ndim; dim++) {
        bytes *= (size_t)made->extents[role][dim];
    }
    return bytes;
}

/* Numbers of size 2^-5 to 2, of either sign; bits, as not every compiler has the 16-bit types. */
static void fill(const struct client_case *made, enum wire_role role, struct rng *rng)
{
    DLDataType dtype = made->tensor[role].dtype;
    unsigned char *at = client_case_twin(made, role);
    for (size_t left = tensor_bytes(made, role); left > 0; left -= dtype.bits / 8) {
        uint32_t random = (uint32_t)rng_next(rng);
        uint32_t bits = 0;
        if (dtype.bits == 32) {
            bits = (random & 0x807FFFFF) | (122 + (random >> 24 & 7) % 6) << 23;
        } else if (dtype.code == kDLBfloat) {
            bits = (random & 0x807F) | (122 + (random >> 24 & 7) % 6) << 7;
        } else {
            bits = (random & 0x83FF) | (10 + (random >> 24 & 7) % 6) << 10;
        }
        memcpy(at, &bits, dtype.bits / 8);
        at += dtype.bits / 8;
    }
}

/* Sequences one behind the other, some empty, with padding in front and behind. */
static void fill_offsets(const struct client_case *made, enum wire_role role, int64_t rows,
    int64_t longest, struct rng *rng)
{
    int32_t *offsets = client_case_twin(made, role);
    int64_t at = rng_between(rng, 0, rows < 3 ? rows : 3);
    offsets[0] = (int32_t)at;
    for (int64_t b = 1; b <= made->shape.batch; b++) {
        int64_t most = rows - at < longest ? rows - at : longest;
        at += rng_one_in(rng, 4) ? 0 : rng_between(rng, 0, most);
        offsets[b] = (int32_t)at;
    }
}

static void fill_lengths(const struct client_case *made, struct rng *rng)
{
    const struct case_shape *s = &made->shape;
    const int32_t *keys = client_case_twin(made, WIRE_CU_SEQLENS_K);
    if (s->packed_q) {
        fill_offsets(made, WIRE_CU_SEQLENS_Q, s->rows_q, longest_q(made), rng);
    }
    if (s->packed_k) {
        fill_offsets(made, WIRE_CU_SEQLENS_K, s->rows_k, longest_k(made), rng);
    }
    for (int64_t b = 0; s->key_lengths && b < s->batch; b++) {
        int64_t most = s->packed_k ? keys[b + 1] - keys[b] : s->rows_k;
        ((int32_t *)client_case_twin(made, WIRE_SEQLENS_K))[b] = (int32_t)rng_between(rng, 0, most);
    }
}

void client_case_init(struct client_case *made, struct rng *rng)
{
    add_main(made);
    add_terms(made);
    add_lengths(made);
    made->twin = aligned_alloc(ALIGNMENT, made->bytes);
    CHECK(made->twin);
    memset(made->twin, POISON, made->bytes);
    for (enum wire_role role = WIRE_Q; role <= WIRE_SINKS; role++) {
        bool forwards = role == WIRE_OUT || role == WIRE_LSE;
        bool gradient =
            (role >= WIRE_DQ && role <= WIRE_DV) || role == WIRE_DBIAS || role == WIRE_DSLOPES;
        if (made->tensor[role].ndim > 0 && !forwards && !gradient) {
            fill(made, role, rng);
        }
    }
    fill_lengths(made, rng);
}

void client_case_finish(struct client_case *made)
{
    free(made->twin);
    *made = (struct client_case){0};
}

void *client_case_twin(const struct client_case *made, enum wire_role role)
{
    return made->twin + made->offset[role];
}

/* ---- The kernels -------------------------------------------------------------------------------- */

/* What the dimensions of a tensor are: b batch, r row, h head, c column. */
static struct attn_view view(const struct client_case *made, enum wire_role role, const char *dims)
{
    const DLTensor *tensor = &made->tensor[role];
    struct attn_view view = {0};
    int64_t stride = 1;
    if (tensor->ndim == 0) {
        return view;
    }
    view.data = client_case_twin(made, role);
    dims += strlen(dims) - (size_t)tensor->ndim;
    for (int dim = tensor->ndim - 1; dim >= 0; dim--) {
        int64_t extent = made->extents[role][dim];
        int64_t own = extent > 1 || dims[dim] == 'd' ? stride : 0;
        view.batch_stride = dims[dim] == 'b' ? own : view.batch_stride;
        view.row_stride = dims[dim] == 'r' ? own : view.row_stride;
        view.head_stride = dims[dim] == 'h' ? own : view.head_stride;
        view.column_stride = dims[dim] == 'c' || dims[dim] == 'd' ? own : view.column_stride;
        stride *= extent;
    }
    return view;
}

static enum attn_dtype kernel_dtype(DLDataType dtype)
{
    if (dtype.bits == 32) {
        return ATTN_FP32;
    }
    return dtype.code == kDLBfloat ? ATTN_BF16 : ATTN_FP16;
}

static const int32_t *lengths_of(const struct client_case *made, enum wire_role role)
{
    return made->tensor[role].ndim > 0 ? client_case_twin(made, role) : NULL;
}

static void set_numbers(const struct client_case *made, struct attn_problem *problem)
{
    const struct case_shape *s = &made->shape;
    const struct attnd_options *options = &made->options;
    *problem = (struct attn_problem){.dtype = kernel_dtype(s->dtype),
        .batch = (int32_t)s->batch,
        .heads_q = (int32_t)s->heads_q,
        .heads_kv = (int32_t)s->heads_kv,
        .head_dim_qk = (int32_t)s->dim,
        .head_dim_v = (int32_t)s->dim_v,
        .seqlen_q = longest_q(made),
        .seqlen_k = longest_k(made),
        .scale = options->scale != 0.0F ? options->scale : (float)(1.0 / sqrt((double)s->dim)),
        .softcap = options->softcap,
        .window_left = options->window_left,
        .window_right = options->causal ? 0 : options->window_right,
        .alignment = options->alignment == ATTND_TOP_LEFT ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT,
        .deterministic = options->deterministic,
        .dropout_threshold = (uint32_t)lroundf(65536.0F * options->dropout_p),
        .dropout_offset = options->dropout_offset,
        .dropout_seed = options->dropout_seed,
        .lengths = {.cu_seqlens_q = lengths_of(made, WIRE_CU_SEQLENS_Q),
            .cu_seqlens_k = lengths_of(made, WIRE_CU_SEQLENS_K),
            .seqlens_k = lengths_of(made, WIRE_SEQLENS_K),
            .total_q = s->packed_q ? s->rows_q : 0,
            .total_k = s->packed_k ? s->rows_k : 0}};
}

static void set_tensors(
    const struct client_case *made, enum attn_direction direction, struct attn_problem *problem)
{
    problem->q = view(made, WIRE_Q, "brhd");
    problem->k = view(made, WIRE_K, "brhd");
    problem->v = view(made, WIRE_V, "brhd");
    problem->out = view(made, WIRE_OUT, "brhd");
    problem->lse = view(made, WIRE_LSE, "bhr");
    problem->bias = view(made, WIRE_BIAS, "bhrc");
    problem->slopes = view(made, WIRE_SLOPES, "bh");
    problem->sinks = view(made, WIRE_SINKS, "h");
    if (made->shape.bias) {
        problem->bias_dtype = kernel_dtype(made->tensor[WIRE_BIAS].dtype);
        for (unsigned dim = 0; dim < 4; dim++) {
            problem->bias_broadcast[dim] = made->extents[WIRE_BIAS][dim] == 1;
        }
    }
    if (direction == ATTN_BACKWARD) {
        problem->dout = view(made, WIRE_DOUT, "brhd");
        problem->dlse = view(made, WIRE_DLSE, "bhr");
        problem->dq = view(made, WIRE_DQ, "brhd");
        problem->dk = view(made, WIRE_DK, "brhd");
        problem->dv = view(made, WIRE_DV, "brhd");
        problem->dbias = view(made, WIRE_DBIAS, "bhrc");
        problem->dslopes = view(made, WIRE_DSLOPES, "bh");
        problem->dsinks = view(made, WIRE_DSINKS, "h");
    }
}

static void run_serially(
    const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context)
{
    (void)executor;
    for (uint64_t item = 0; item < items; item++) {
        work(context, item, 0);
    }
}

static void *allocate(size_t bytes)
{
    void *memory = aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT);
    CHECK(memory);
    return memory;
}

static void run(struct client_case *made, enum attn_direction direction)
{
    struct attn_problem problem;
    const struct attn_family *family = attn_family_find("cpu");
    set_numbers(made, &problem);
    set_tensors(made, direction, &problem);
    CHECK(family && !attn_unsupported(family, direction, &problem));
    void *scratch = allocate(attn_scratch_bytes(family));
    struct attn_executor executor = {.workers = 1, .scratch = &scratch, .run = run_serially};
    struct attn_target target = {.executor = &executor};
    struct attn_slice slice = {.problem = &problem,
        .workspace = allocate(attn_workspace_bytes(family, direction, &problem)),
        .end = attn_tile_count(family, direction, &problem)};
    CHECK(attn_launch(family, direction, &slice, 1, &target) == 0);
    free(slice.workspace);
    free(scratch);
}

void client_case_place(struct client_case *made, void *memory)
{
    if (made->shape.direction == ATTND_BACKWARD) {
        run(made, ATTN_FORWARD);
    }
    made->memory = memory;
    memcpy(made->memory, made->twin, made->bytes);
    const DLTensor *given[WIRE_ROLE_END] = {NULL};
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        if (made->tensor[role].ndim > 0) {
            made->tensor[role].data = made->memory + made->offset[role];
            given[role] = &made->tensor[role];
        }
    }
    made->request = (struct attnd_request){sizeof made->request, made->shape.direction,
        &made->options, given[WIRE_Q], given[WIRE_K], given[WIRE_V], given[WIRE_OUT],
        given[WIRE_LSE], given[WIRE_DOUT], given[WIRE_DLSE], given[WIRE_DQ], given[WIRE_DK],
        given[WIRE_DV], given[WIRE_DBIAS], given[WIRE_DSLOPES], given[WIRE_DSINKS]};
    made->options.bias = given[WIRE_BIAS];
    made->options.slopes = given[WIRE_SLOPES];
    made->options.sinks = given[WIRE_SINKS];
    made->options.cu_seqlens_q = given[WIRE_CU_SEQLENS_Q];
    made->options.cu_seqlens_k = given[WIRE_CU_SEQLENS_K];
    made->options.seqlens_k = given[WIRE_SEQLENS_K];
}

void client_case_run(struct client_case *made)
{
    run(made, made->shape.direction == ATTND_FORWARD ? ATTN_FORWARD : ATTN_BACKWARD);
}

bool client_case_equal(struct client_case *made)
{
    bool equal = true;
    client_case_run(made);
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        if (memcmp(client_case_twin(made, role), made->memory + made->offset[role],
                tensor_bytes(made, role)) != 0) {
            fprintf(stderr, "client_case: %s differs\n", wire_role_name(role));
            equal = false;
        }
    }
    return equal && memcmp(made->twin, made->memory, made->bytes) == 0;
}

#include "service_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attn.h"

#define ALIGNMENT 64
#define POISON 0xA5

uint64_t rng_next(struct rng *rng)
{
    rng->state += UINT64_C(0x9E3779B97F4A7C15); /* splitmix64 */
    uint64_t z = rng->state;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

int64_t rng_between(struct rng *rng, int64_t low, int64_t high)
{
    return low + (int64_t)(rng_next(rng) % (uint64_t)(high - low + 1));
}

bool rng_one_in(struct rng *rng, int64_t n)
{
    return rng_between(rng, 1, n) == 1;
}

static size_t round_up(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void *allocate(size_t bytes)
{
    void *memory = aligned_alloc(ALIGNMENT, round_up(bytes + 1));
    if (memory == NULL) {
        perror("service_case: aligned_alloc");
        exit(2);
    }
    return memory;
}

/* ---- Drawing ------------------------------------------------------------------------------- */

struct extents {
    int64_t batch, seqlen_q, seqlen_k, heads_q, heads_kv, head_dim, head_dim_v;
    DLDataType dtype;
};

static struct extents draw_extents(struct rng *rng, int64_t largest)
{
    static const int64_t head_dims[] = {1, 2, 7, 8, 16, 24, 32, 33, 64, 80, 128};
    static const DLDataType dtypes[] = {{kDLFloat, 16, 1}, {kDLBfloat, 16, 1}, {kDLFloat, 32, 1}};
    int64_t last = (int64_t)(sizeof head_dims / sizeof *head_dims) - 1;
    struct extents e = {
        .batch = rng_between(rng, 1, 3),
        .seqlen_q = rng_between(rng, 1, largest),
        .seqlen_k = rng_between(rng, 1, largest),
        .heads_kv = rng_between(rng, 1, 3),
        .head_dim = head_dims[rng_between(rng, 0, last)],
        .head_dim_v = head_dims[rng_between(rng, 0, last)],
        .dtype = dtypes[rng_between(rng, 0, 2)],
    };
    e.heads_q = e.heads_kv * rng_between(rng, 1, 3);
    if (rng_one_in(rng, 2)) { /* self attention */
        e.seqlen_k = e.seqlen_q;
        e.head_dim_v = e.head_dim;
    }
    int64_t *empty[] = {&e.batch, &e.seqlen_q, &e.seqlen_k};
    if (rng_one_in(rng, 24)) {
        *empty[rng_between(rng, 0, 2)] = 0;
    }
    return e;
}

static struct attnd_options draw_options(struct rng *rng)
{
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.causal = rng_one_in(rng, 2);
    options.alignment = rng_one_in(rng, 2) ? ATTND_TOP_LEFT : ATTND_BOTTOM_RIGHT;
    if (rng_one_in(rng, 4)) {
        options.window_left = rng_between(rng, 0, 20);
    }
    if (rng_one_in(rng, 4)) {
        options.window_right = rng_between(rng, 0, 20);
    }
    /* A power of two less often than the default, whose value depends on the head dim. */
    options.scale = rng_one_in(rng, 3) ? 0.25F : 0.0F;
    return options;
}

static void set_shape(struct case_tensor *tensor, const struct extents *e, enum case_role role)
{
    bool of_keys = role == CASE_K || role == CASE_V || role == CASE_DK || role == CASE_DV;
    bool of_values = role == CASE_V || role == CASE_OUT || role == CASE_DOUT || role == CASE_DV;
    tensor->dl.device = (DLDevice){kDLCPU, 0};
    tensor->dl.shape = tensor->shape;
    tensor->shape[0] = e->batch;
    if (role == CASE_LSE || role == CASE_DLSE) {
        tensor->dl.dtype = (DLDataType){kDLFloat, 32, 1};
        tensor->dl.ndim = 3;
        tensor->shape[1] = e->heads_q;
        tensor->shape[2] = e->seqlen_q;
        return;
    }
    tensor->dl.dtype = e->dtype;
    tensor->dl.ndim = 4;
    tensor->shape[1] = of_keys ? e->seqlen_k : e->seqlen_q;
    tensor->shape[2] = of_keys ? e->heads_kv : e->heads_q;
    tensor->shape[3] = of_values ? e->head_dim_v : e->head_dim;
}

static void set_compact_strides(struct case_tensor *tensor)
{
    int64_t pitch = 1;
    for (int dim = tensor->dl.ndim - 1; dim >= 0; dim--) {
        tensor->strides[dim] = pitch;
        pitch *= tensor->shape[dim];
    }
}

/* The dimensions before the last in any order of nesting, with gaps. */
static void draw_strides(struct case_tensor *tensor, struct rng *rng)
{
    int order[] = {0, 1, 2};
    int outer = tensor->dl.ndim - 1;
    for (int i = outer - 1; i > 0; i--) {
        int j = (int)rng_between(rng, 0, i);
        int swapped = order[i];
        order[i] = order[j];
        order[j] = swapped;
    }
    tensor->strides[outer] = 1;
    int64_t pitch = tensor->shape[outer] + rng_between(rng, 0, 3);
    for (int i = 0; i < outer; i++) {
        tensor->strides[order[i]] = pitch;
        pitch = pitch * tensor->shape[order[i]] + rng_between(rng, 0, 1) * 5;
    }
    int odd = (int)rng_between(rng, 0, outer - 1);
    if (!tensor->written && rng_one_in(rng, 4)) {
        tensor->strides[odd] = rng_one_in(rng, 2) ? 0 : -tensor->strides[odd];
    }
}

static size_t element_bytes(const struct case_tensor *tensor)
{
    return tensor->dl.dtype.bits / 8U;
}

/* A buffer of its own, just as large as the tensor reaches, begun `shift` elements late. */
static void set_buffer(struct service_case *drawn, struct case_tensor *tensor, size_t shift)
{
    int64_t low = 0;
    int64_t high = 1;
    for (int dim = 0; dim < tensor->dl.ndim; dim++) {
        int64_t reach = (tensor->shape[dim] - 1) * tensor->strides[dim];
        if (tensor->shape[dim] == 0) {
            low = 0;
            high = 0;
            break;
        }
        low += reach < 0 ? reach : 0;
        high += reach > 0 ? reach : 0;
    }
    tensor->buffer = drawn->buffers++;
    tensor->dl.byte_offset = ((uint64_t)-low + shift) * element_bytes(tensor);
    drawn->buffer[tensor->buffer].bytes = ((size_t)(high - low) + shift) * element_bytes(tensor);
}

static void draw_layout(struct service_case *drawn, struct case_tensor *tensor, struct rng *rng)
{
    set_compact_strides(tensor);
    tensor->dl.strides = tensor->strides;
    if (rng_one_in(rng, 3)) {
        tensor->dl.strides = NULL;
    } else {
        draw_strides(tensor, rng);
    }
    set_buffer(drawn, tensor, (size_t)rng_between(rng, 0, 3));
}

/* Three tensors beside each other along the heads of one packed tensor. */
static void set_packed(struct service_case *drawn, enum case_role first)
{
    struct case_tensor *part = &drawn->tensor[first];
    int64_t heads = part[0].shape[2] + part[1].shape[2] + part[2].shape[2];
    int64_t head = 0;
    size_t buffer = drawn->buffers++;
    for (int i = 0; i < 3; i++) {
        const int64_t *shape = part[i].shape;
        part[i].buffer = buffer;
        part[i].strides[3] = 1;
        part[i].strides[2] = shape[3];
        part[i].strides[1] = heads * shape[3];
        part[i].strides[0] = heads * shape[3] * shape[1];
        part[i].dl.strides = part[i].strides;
        part[i].dl.byte_offset = (uint64_t)(head * shape[3]) * element_bytes(&part[i]);
        head += shape[2];
    }
    const struct case_tensor *q = &part[0];
    drawn->buffer[buffer].bytes =
        (size_t)(q->shape[0] * q->shape[1] * heads * q->shape[3]) * element_bytes(q);
}

static bool is_present(enum attnd_direction direction, enum case_role role, struct rng *rng)
{
    if (direction == ATTND_FORWARD) {
        return role <= CASE_OUT || (role == CASE_LSE && rng_one_in(rng, 2));
    }
    return role != CASE_DLSE || rng_one_in(rng, 2);
}

static bool is_output(enum attnd_direction direction, enum case_role role)
{
    return direction == ATTND_FORWARD ? role == CASE_OUT || role == CASE_LSE : role >= CASE_DQ;
}

void case_draw(struct service_case *drawn, struct rng *rng, int64_t largest)
{
    *drawn = (struct service_case){.options = draw_options(rng)};
    struct extents e = draw_extents(rng, largest);
    enum attnd_direction direction = rng_one_in(rng, 2) ? ATTND_FORWARD : ATTND_BACKWARD;
    drawn->request = (struct attnd_request){
        .size = sizeof drawn->request, .direction = direction, .options = &drawn->options};
    bool can_pack = e.seqlen_q == e.seqlen_k && e.head_dim == e.head_dim_v;
    for (int role = 0; role < CASE_ROLES; role++) {
        struct case_tensor *tensor = &drawn->tensor[role];
        tensor->present = is_present(direction, (enum case_role)role, rng);
        tensor->output = is_output(direction, (enum case_role)role);
        tensor->written = tensor->output || role == CASE_OUT || role == CASE_LSE;
        if (tensor->present) {
            set_shape(tensor, &e, (enum case_role)role);
        }
    }
    for (int role = 0; role < CASE_ROLES; role++) {
        struct case_tensor *tensor = &drawn->tensor[role];
        if (tensor->present && can_pack && (role == CASE_Q || role == CASE_DQ) &&
            rng_one_in(rng, 2)) {
            set_packed(drawn, (enum case_role)role);
            role += 2;
        } else if (tensor->present) {
            draw_layout(drawn, tensor, rng);
        }
    }
    for (size_t i = 0; i < drawn->buffers; i++) {
        struct case_buffer *buffer = &drawn->buffer[i];
        buffer->offset = drawn->bytes;
        buffer->twin = allocate(buffer->bytes);
        drawn->bytes += round_up(buffer->bytes + 1);
    }
}

void case_finish(struct service_case *drawn)
{
    for (size_t i = 0; i < drawn->buffers; i++) {
        free(drawn->buffer[i].twin);
    }
    *drawn = (struct service_case){0};
}

/* ---- Filling ------------------------------------------------------------------------------- */

/* Numbers of size 2^-5 to 2, of either sign, with random mantissas; bits made by hand because not
 * every compiler has the 16-bit types. */
static uint32_t draw_bits(DLDataType dtype, struct rng *rng)
{
    uint32_t random = (uint32_t)rng_next(rng);
    uint32_t sign = random >> 31;
    uint32_t step = (random >> 24) % 6;
    if (dtype.bits == 32) {
        return sign << 31 | (122 + step) << 23 | (random & 0x7FFFFF);
    }
    if (dtype.code == kDLBfloat) {
        return sign << 15 | (122 + step) << 7 | (random & 0x7F);
    }
    return sign << 15 | (10 + step) << 10 | (random & 0x3FF);
}

static void fill(const struct case_tensor *tensor, struct case_buffer *buffer, struct rng *rng)
{
    size_t element = element_bytes(tensor);
    if (tensor->output) {
        memset(buffer->twin, POISON, buffer->bytes);
        return;
    }
    for (size_t at = 0; at < buffer->bytes; at += element) {
        uint32_t bits = draw_bits(tensor->dl.dtype, rng);
        memcpy(buffer->twin + at, &bits, element); /* little-endian */
    }
}

static const DLTensor *described(const struct service_case *drawn, enum case_role role)
{
    return drawn->tensor[role].present ? &drawn->tensor[role].dl : NULL;
}

static void describe_request(struct service_case *drawn)
{
    struct attnd_request *request = &drawn->request;
    request->q = described(drawn, CASE_Q);
    request->k = described(drawn, CASE_K);
    request->v = described(drawn, CASE_V);
    request->out = described(drawn, CASE_OUT);
    request->lse = described(drawn, CASE_LSE);
    request->dout = described(drawn, CASE_DOUT);
    request->dlse = described(drawn, CASE_DLSE);
    request->dq = described(drawn, CASE_DQ);
    request->dk = described(drawn, CASE_DK);
    request->dv = described(drawn, CASE_DV);
}

static void run(struct service_case *drawn, enum attn_direction direction);

void case_place(struct service_case *drawn, struct rng *rng, uint8_t *memory)
{
    drawn->memory = memory;
    for (int role = 0; role < CASE_ROLES; role++) {
        struct case_tensor *tensor = &drawn->tensor[role];
        if (tensor->present) {
            struct case_buffer *buffer = &drawn->buffer[tensor->buffer];
            tensor->dl.data = memory + buffer->offset;
            fill(tensor, buffer, rng);
        }
    }
    if (drawn->request.direction == ATTND_BACKWARD) {
        run(drawn, ATTN_FORWARD);
    }
    for (size_t i = 0; i < drawn->buffers; i++) {
        const struct case_buffer *buffer = &drawn->buffer[i];
        memcpy(memory + buffer->offset, buffer->twin, buffer->bytes);
    }
    describe_request(drawn);
}

/* ---- Running directly ---------------------------------------------------------------------- */

static struct attn_view view_twin(const struct service_case *drawn, enum case_role role)
{
    const struct case_tensor *tensor = &drawn->tensor[role];
    if (!tensor->present) {
        return (struct attn_view){0};
    }
    const int64_t *strides = tensor->strides;
    bool has_columns = tensor->dl.ndim == 4;
    return (struct attn_view){
        .data = drawn->buffer[tensor->buffer].twin + tensor->dl.byte_offset,
        .batch_stride = strides[0],
        .row_stride = strides[has_columns ? 1 : 2],
        .head_stride = strides[has_columns ? 2 : 1],
        .column_stride = has_columns ? 1 : 0,
    };
}

static enum attn_dtype kernel_dtype(DLDataType dtype)
{
    if (dtype.bits == 32) {
        return ATTN_FP32;
    }
    return dtype.code == kDLBfloat ? ATTN_BF16 : ATTN_FP16;
}

static struct attn_problem problem_of(const struct service_case *drawn)
{
    const struct attnd_options *options = &drawn->options;
    const int64_t *q = drawn->tensor[CASE_Q].shape;
    const int64_t *k = drawn->tensor[CASE_K].shape;
    const int64_t *v = drawn->tensor[CASE_V].shape;
    return (struct attn_problem){
        .dtype = kernel_dtype(drawn->tensor[CASE_Q].dl.dtype),
        .batch = (int32_t)q[0],
        .heads_q = (int32_t)q[2],
        .heads_kv = (int32_t)k[2],
        .head_dim_qk = (int32_t)q[3],
        .head_dim_v = (int32_t)v[3],
        .seqlen_q = q[1],
        .seqlen_k = k[1],
        .scale = options->scale != 0.0F ? options->scale : (float)(1.0 / sqrt((double)q[3])),
        .window_left = options->window_left,
        .window_right = options->causal ? 0 : options->window_right,
        .alignment = options->alignment == ATTND_TOP_LEFT ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT,
        .q = view_twin(drawn, CASE_Q),
        .k = view_twin(drawn, CASE_K),
        .v = view_twin(drawn, CASE_V),
        .out = view_twin(drawn, CASE_OUT),
        .lse = view_twin(drawn, CASE_LSE),
    };
}

static void run_serially(
    const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context)
{
    (void)executor;
    for (uint64_t item = 0; item < items; item++) {
        work(context, item, 0);
    }
}

static const struct attn_family *family_for(
    enum attn_direction direction, const struct attn_problem *problem)
{
    for (size_t i = 0; i < attn_family_count(); i++) {
        const struct attn_family *family = attn_family_at(i);
        if (attn_family_device(family) == ATTN_DEVICE_CPU &&
            attn_unsupported(family, direction, problem) == NULL) {
            return family;
        }
    }
    (void)fprintf(stderr, "service_case: no family computes the problem\n");
    exit(2);
}

static void run(struct service_case *drawn, enum attn_direction direction)
{
    struct attn_problem problem = problem_of(drawn);
    if (direction == ATTN_BACKWARD) {
        problem.dout = view_twin(drawn, CASE_DOUT);
        problem.dlse = view_twin(drawn, CASE_DLSE);
        problem.dq = view_twin(drawn, CASE_DQ);
        problem.dk = view_twin(drawn, CASE_DK);
        problem.dv = view_twin(drawn, CASE_DV);
    }
    const struct attn_family *family = family_for(direction, &problem);
    void *scratch = allocate(attn_scratch_bytes(family));
    struct attn_executor executor = {.workers = 1, .scratch = &scratch, .run = run_serially};
    struct attn_target target = {.executor = &executor};
    struct attn_slice slice = {
        .problem = &problem,
        .workspace = allocate(attn_workspace_bytes(family, direction, &problem)),
        .end = attn_tile_count(family, direction, &problem),
    };
    if (attn_launch(family, direction, &slice, 1, &target) != 0) {
        (void)fprintf(stderr, "service_case: attn_launch failed\n");
        exit(2);
    }
    free(slice.workspace);
    free(scratch);
}

void case_run_directly(struct service_case *drawn)
{
    run(drawn, drawn->request.direction == ATTND_FORWARD ? ATTN_FORWARD : ATTN_BACKWARD);
}

/* ---- Comparing ----------------------------------------------------------------------------- */

static void describe(const struct service_case *drawn)
{
    static const char *const names[CASE_ROLES] = {
        "q", "k", "v", "out", "lse", "dout", "dlse", "dq", "dk", "dv"};
    const struct attnd_options *options = &drawn->options;
    (void)fprintf(stderr, "%s scale=%g causal=%d alignment=%d window=%lld..%lld\n",
        drawn->request.direction == ATTND_FORWARD ? "forward" : "backward", (double)options->scale,
        options->causal, options->alignment, (long long)options->window_left,
        (long long)options->window_right);
    for (int role = 0; role < CASE_ROLES; role++) {
        const struct case_tensor *tensor = &drawn->tensor[role];
        if (!tensor->present) {
            continue;
        }
        const struct case_buffer *buffer = &drawn->buffer[tensor->buffer];
        const uint8_t *memory = drawn->memory + buffer->offset;
        size_t at = 0;
        while (at < buffer->bytes && memory[at] == buffer->twin[at]) {
            at++;
        }
        (void)fprintf(stderr, "  %-4s type %d:%d offset %llu shape", names[role],
            tensor->dl.dtype.code, tensor->dl.dtype.bits,
            (unsigned long long)tensor->dl.byte_offset);
        for (int dim = 0; dim < tensor->dl.ndim; dim++) {
            (void)fprintf(stderr, " %lld:%lld", (long long)tensor->shape[dim],
                (long long)tensor->strides[dim]);
        }
        if (at < buffer->bytes) {
            (void)fprintf(stderr, ", differs at byte %zu of %zu", at, buffer->bytes);
        }
        (void)fprintf(stderr, "\n");
    }
}

bool case_equal(const struct service_case *drawn)
{
    for (size_t i = 0; i < drawn->buffers; i++) {
        const struct case_buffer *buffer = &drawn->buffer[i];
        if (memcmp(drawn->memory + buffer->offset, buffer->twin, buffer->bytes) != 0) {
            describe(drawn);
            return false;
        }
    }
    return true;
}

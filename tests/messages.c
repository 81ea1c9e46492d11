#include "messages.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct dice messages_seeded(const char *test)
{
    const char *given = getenv("ATTND_SEED");
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0)
                                  : (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
    fprintf(stderr, "%s: ATTND_SEED=%" PRIu64 "\n", test, seed);
    return (struct dice){seed};
}

uint64_t messages_below(struct dice *random, uint64_t end)
{
    return dice_next(random) % end;
}

uint64_t messages_wide(struct dice *random)
{
    return dice_next(random) >> messages_below(random, 64);
}

static uint32_t wide32(struct dice *random)
{
    return (uint32_t)dice_next(random) >> messages_below(random, 32);
}

static bool coin(struct dice *random)
{
    return messages_below(random, 2) != 0;
}

static void any_text(struct dice *random, char *text, size_t capacity)
{
    static const char *const characters[] = {
        "a", "Z", " ", "~", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    size_t length = messages_below(random, capacity);
    size_t used = 0;

    for (;;) {
        const char *next = characters[messages_below(random, 7)];
        if (used + strlen(next) > length) {
            return;
        }
        memcpy(text + used, next, strlen(next));
        used += strlen(next);
    }
}

static void any_bytes(struct dice *random, uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (uint8_t)dice_next(random);
    }
}

static void any_error(struct dice *random, struct wire_error *error)
{
    error->status = (enum wire_status)messages_below(random, WIRE_STATUS_END);
    any_text(random, error->detail, sizeof(error->detail));
}

static float any_float(struct dice *random)
{
    uint32_t bits = (uint32_t)dice_next(random);
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void any_features(struct dice *random, struct wire_plan *plan)
{
    plan->softcap = coin(random) ? 0 : any_float(random);
    plan->dropout_threshold = wide32(random);
    plan->deterministic = coin(random);
    plan->has_max_seqlen_q = coin(random);
    plan->max_seqlen_q = plan->has_max_seqlen_q ? messages_wide(random) : 0;
    plan->has_max_seqlen_k = coin(random);
    plan->max_seqlen_k = plan->has_max_seqlen_k ? messages_wide(random) : 0;
}

static void any_plan(struct dice *random, struct wire_plan *plan)
{
    plan->direction = (enum wire_direction)(1 + messages_below(random, WIRE_BACKWARD));
    plan->alignment = (enum wire_alignment)(1 + messages_below(random, WIRE_BOTTOM_RIGHT));
    if (coin(random)) {
        plan->has_scale = true;
        plan->scale = any_float(random);
    }
    if (coin(random)) {
        plan->has_window_left = true;
        plan->window_left = messages_wide(random);
    }
    if (coin(random)) {
        plan->has_window_right = true;
        plan->window_right = messages_wide(random);
    }
    any_features(random, plan);
    plan->tensors = (uint32_t)messages_below(random, WIRE_MAX_TENSORS + 1);
    for (uint32_t i = 0; i < plan->tensors; i++) {
        struct wire_tensor *tensor = &plan->tensor[i];
        tensor->role = (enum wire_role)(1 + messages_below(random, WIRE_ROLE_END - 1));
        tensor->dtype = (enum wire_dtype)(1 + messages_below(random, WIRE_INT32));
        tensor->dims = (uint32_t)messages_below(random, WIRE_MAX_DIMS + 1);
        for (uint32_t dim = 0; dim < tensor->dims; dim++) {
            tensor->shape[dim] = messages_wide(random);
            tensor->strides[dim] = (int64_t)messages_wide(random);
            tensor->strides[dim] *= coin(random) && tensor->strides[dim] > 0 ? -1 : 1;
        }
    }
}

static void any_submit(struct dice *random, struct wire_submit *submit)
{
    submit->lane = wide32(random);
    submit->first_sequence = wide32(random);
    submit->epoch = coin(random) ? 0 : wide32(random);
    submit->calls = (uint32_t)messages_below(random, WIRE_MAX_CALLS + 1);
    for (uint32_t i = 0; i < submit->calls; i++) {
        struct wire_call *call = &submit->call[i];
        call->plan = wide32(random);
        call->tensors = (uint32_t)messages_below(random, WIRE_MAX_TENSORS + 1);
        call->dropout_seed = messages_wide(random);
        call->dropout_offset = wide32(random);
        for (uint32_t t = 0; t < call->tensors; t++) {
            call->region[t] = wide32(random);
            call->offset[t] = messages_wide(random);
        }
    }
}

static void any_counters(struct dice *random, struct wire_counters *counters)
{
    counters->requests = messages_wide(random);
    counters->failed = messages_wide(random);
    counters->groups = messages_wide(random);
    counters->group_members = messages_wide(random);
    counters->regions = messages_wide(random);
    counters->region_bytes = messages_wide(random);
    counters->plans = messages_wide(random);
    counters->in_flight = messages_wide(random);
}

static void any_limits(struct dice *random, struct wire_limits *limits)
{
    limits->in_flight = wide32(random);
    limits->regions = wide32(random);
    limits->region_bytes = messages_wide(random);
    limits->plans = wide32(random);
    limits->workspace_bytes = messages_wide(random);
}

static void any_device(struct dice *random, struct wire_device *device)
{
    device->kind = coin(random) ? WIRE_DEVICE_CPU : WIRE_DEVICE_CUDA;
    device->has_uuid = coin(random);
    if (device->has_uuid) {
        any_bytes(random, device->uuid, sizeof(device->uuid));
    }
    any_text(random, device->name, sizeof(device->name));
}

static void any_info(struct dice *random, struct wire_info *info)
{
    any_device(random, &info->device);
    any_text(random, info->driver, sizeof(info->driver));
    info->mps = (enum wire_mps)messages_below(random, WIRE_MPS_ON + 1);
    info->checks_exporter = coin(random);
    info->one_ipc_user = coin(random);
    info->families = (uint32_t)messages_below(random, WIRE_MAX_FAMILIES + 1);
    for (uint32_t i = 0; i < info->families; i++) {
        any_text(random, info->family[i], sizeof(info->family[i]));
    }
    any_limits(random, &info->limits);
    info->max_sessions = wide32(random);
    info->max_sessions_per_uid = wide32(random);
    info->region_bytes_per_uid = messages_wide(random);
    info->pid = wide32(random);
    any_text(random, info->version, sizeof(info->version));
    info->major = wide32(random);
    info->minor = wide32(random);
}

static void any_add_region(struct dice *random, struct wire_gate_request *message)
{
    message->bytes = messages_wide(random);
    message->memory = (enum wire_memory_kind)messages_below(random, WIRE_MEMORY_CUDA_VMM + 1);
    message->reserve = coin(random) ? 0 : messages_wide(random);
    if (message->memory == WIRE_MEMORY_CUDA_IPC) {
        any_bytes(random, message->handle, sizeof(message->handle));
    }
}

static void any_session(struct dice *random, struct wire_session *session)
{
    session->id = wide32(random);
    any_bytes(random, session->token, sizeof(session->token));
    session->major = wide32(random);
    session->minor = wide32(random);
    session->features = messages_wide(random);
    any_limits(random, &session->limits);
    any_device(random, &session->device);
}

void messages_gate_request(struct dice *random, struct wire_gate_request *message)
{
    memset(message, 0, sizeof(*message));
    message->id = wide32(random);
    message->kind = (enum wire_gate_kind)(1 + messages_below(random, WIRE_GATE_TRIM));
    if (message->kind == WIRE_GATE_OPEN) {
        message->major = wide32(random);
        message->minor = wide32(random);
        message->features = messages_wide(random);
        any_text(random, message->name, sizeof(message->name));
    } else if (message->kind == WIRE_GATE_ADD_REGION) {
        any_add_region(random, message);
    } else if (message->kind != WIRE_GATE_TRIM) {
        message->region = wide32(random);
    }
    if (message->kind == WIRE_GATE_EXTEND_REGION) {
        message->offset = messages_wide(random);
        message->bytes = messages_wide(random);
    }
}

void messages_gate_reply(struct dice *random, struct wire_gate_reply *message)
{
    memset(message, 0, sizeof(*message));
    message->id = wide32(random);
    any_error(random, &message->error);
    message->has_session = coin(random);
    if (message->has_session) {
        any_session(random, &message->session);
    } else if (coin(random)) {
        message->region = wide32(random);
    }
}

void messages_request(struct dice *random, struct wire_request *message)
{
    memset(message, 0, sizeof(*message));
    message->id = wide32(random);
    message->kind = (enum wire_request_kind)(1 + messages_below(random, WIRE_GET_INFO));
    if (message->kind == WIRE_HELLO) {
        message->hello.session = wide32(random);
        any_bytes(random, message->hello.token, sizeof(message->hello.token));
    } else if (message->kind == WIRE_ADD_PLAN) {
        if (coin(random)) {
            messages_plan(random, &message->plan);
        } else {
            any_plan(random, &message->plan);
        }
    } else if (message->kind == WIRE_DROP_PLAN) {
        message->drop_plan = wide32(random);
    } else if (message->kind == WIRE_SUBMIT) {
        any_submit(random, &message->submit);
    }
}

void messages_reply(struct dice *random, struct wire_reply *message)
{
    memset(message, 0, sizeof(*message));
    message->id = wide32(random);
    any_error(random, &message->error);
    message->kind = (enum wire_reply_kind)messages_below(random, WIRE_REPLY_INFO + 1);
    if (message->kind == WIRE_REPLY_PLAN) {
        message->plan.plan = wide32(random);
        message->plan.workspace_bytes = messages_wide(random);
        any_text(random, message->plan.family, sizeof(message->plan.family));
    } else if (message->kind == WIRE_REPLY_FAILED) {
        message->failed.lane = wide32(random);
        message->failed.sequence = wide32(random);
    } else if (message->kind == WIRE_REPLY_STATS) {
        any_counters(random, &message->stats.session);
        any_counters(random, &message->stats.daemon);
        message->stats.sessions = messages_wide(random);
        message->stats.uptime_ns = messages_wide(random);
        any_text(random, message->stats.version, sizeof(message->stats.version));
    } else if (message->kind == WIRE_REPLY_INFO) {
        any_info(random, &message->info);
    }
}

static void add_tensor(struct wire_plan *plan, enum wire_role role, enum wire_dtype dtype,
    const uint64_t *shape, uint32_t dims)
{
    struct wire_tensor *tensor = &plan->tensor[plan->tensors++];
    uint64_t stride = 1;

    tensor->role = role;
    tensor->dtype = dtype;
    tensor->dims = dims;
    for (uint32_t dim = dims; dim-- > 0;) {
        tensor->shape[dim] = shape[dim];
        tensor->strides[dim] = (int64_t)stride;
        stride *= shape[dim];
    }
}

/* q, k, v and what has their shapes. */
static void add_rows(struct wire_plan *plan, enum wire_dtype dtype,
    const struct messages_extents *e, const struct messages_features *f)
{
    bool p = f->packed_q; /* without the first dimension */
    bool pk = f->packed_k;
    uint64_t rows_q = p ? f->total_q : e->seqlen_q;
    uint64_t rows_k = pk ? f->total_k : e->seqlen_k;
    const uint64_t q[] = {e->batch, rows_q, e->heads_q, e->head_dim_qk};
    const uint64_t k[] = {e->batch, rows_k, e->heads_kv, e->head_dim_qk};
    const uint64_t v[] = {e->batch, rows_k, e->heads_kv, e->head_dim_v};
    const uint64_t out[] = {e->batch, rows_q, e->heads_q, e->head_dim_v};
    const uint64_t rows[] = {e->batch, e->heads_q, rows_q};

    add_tensor(plan, WIRE_Q, dtype, q + p, 4 - p);
    add_tensor(plan, WIRE_K, dtype, k + pk, 4 - pk);
    add_tensor(plan, WIRE_V, dtype, v + pk, 4 - pk);
    add_tensor(plan, WIRE_OUT, dtype, out + p, 4 - p);
    add_tensor(plan, WIRE_LSE, WIRE_FP32, rows + p, 3 - p);
    if (plan->direction == WIRE_BACKWARD) {
        add_tensor(plan, WIRE_DOUT, dtype, out + p, 4 - p);
        add_tensor(plan, WIRE_DLSE, WIRE_FP32, rows + p, 3 - p);
        add_tensor(plan, WIRE_DQ, dtype, q + p, 4 - p);
        add_tensor(plan, WIRE_DK, dtype, k + pk, 4 - pk);
        add_tensor(plan, WIRE_DV, dtype, v + pk, 4 - pk);
    }
}

static void add_lengths(
    struct wire_plan *plan, const struct messages_extents *e, const struct messages_features *f)
{
    const uint64_t entries = e->batch + 1;

    if (f->packed_q) {
        add_tensor(plan, WIRE_CU_SEQLENS_Q, WIRE_INT32, &entries, 1);
        plan->has_max_seqlen_q = true;
        plan->max_seqlen_q = e->seqlen_q;
    }
    if (f->packed_k) {
        add_tensor(plan, WIRE_CU_SEQLENS_K, WIRE_INT32, &entries, 1);
        plan->has_max_seqlen_k = true;
        plan->max_seqlen_k = e->seqlen_k;
    }
    if (f->seqlens_k) {
        add_tensor(plan, WIRE_SEQLENS_K, WIRE_INT32, &e->batch, 1);
    }
}

void messages_featured_plan(struct wire_plan *plan, enum wire_direction direction,
    enum wire_dtype dtype, const struct messages_extents *e, const struct messages_features *f)
{
    uint64_t bias[] = {e->batch, e->heads_q, e->seqlen_q, e->seqlen_k};
    const uint64_t slopes[] = {f->slopes_one ? 1 : e->batch, e->heads_q};
    bool gradients = direction == WIRE_BACKWARD && f->gradients;

    memset(plan, 0, sizeof(*plan));
    plan->direction = direction;
    plan->alignment = WIRE_BOTTOM_RIGHT;
    add_rows(plan, dtype, e, f);
    for (unsigned dim = 0; dim < 4; dim++) {
        bias[dim] = f->bias_ones & 1U << dim ? 1 : bias[dim];
    }
    for (int gradient = 0; f->bias != 0 && gradient <= gradients; gradient++) {
        add_tensor(plan, gradient ? WIRE_DBIAS : WIRE_BIAS, f->bias, bias, 4);
    }
    for (int gradient = 0; f->slopes && gradient <= gradients; gradient++) {
        add_tensor(plan, gradient ? WIRE_DSLOPES : WIRE_SLOPES, WIRE_FP32, slopes, 2);
    }
    for (int gradient = 0; f->sinks && gradient <= gradients; gradient++) {
        add_tensor(plan, gradient ? WIRE_DSINKS : WIRE_SINKS, WIRE_FP32, &e->heads_q, 1);
    }
    add_lengths(plan, e, f);
}

void messages_fixed_plan(struct wire_plan *plan, enum wire_direction direction,
    enum wire_dtype dtype, const struct messages_extents *extents)
{
    const struct messages_features none = {0};

    messages_featured_plan(plan, direction, dtype, extents, &none);
}

void messages_features(struct dice *random, enum wire_dtype dtype,
    const struct messages_extents *extents, struct messages_features *features)
{
    *features = (struct messages_features){
        .packed_q = coin(random),
        .packed_k = coin(random),
        .total_q = messages_below(random, 2 * extents->seqlen_q + 3),
        .total_k = messages_below(random, 2 * extents->seqlen_k + 3),
        .seqlens_k = coin(random),
        .bias = coin(random)   ? 0
                : coin(random) ? WIRE_FP32
                               : dtype,
        .bias_ones = (unsigned)messages_below(random, 16),
        .slopes = coin(random),
        .slopes_one = coin(random),
        .sinks = coin(random),
        .gradients = coin(random),
    };
}

static void random_options(struct dice *random, struct wire_plan *plan)
{
    static const float softcaps[] = {0, 0.5F, 50, 1e-30F, 1e30F};

    if (coin(random)) {
        plan->has_window_right = true;
        plan->window_right = messages_below(random, 4);
    }
    plan->softcap = softcaps[messages_below(random, 5)];
    plan->dropout_threshold = coin(random) ? 0 : (uint32_t)messages_below(random, WIRE_DROPOUT_ONE);
    plan->deterministic = coin(random);
}

void messages_plan(struct dice *random, struct wire_plan *plan)
{
    enum wire_dtype dtype = (enum wire_dtype)(1 + messages_below(random, WIRE_FP32));
    struct messages_features features = {0};
    struct messages_extents extents = {
        .batch = messages_below(random, 4),
        .seqlen_q = messages_below(random, 9),
        .seqlen_k = messages_below(random, 9),
        .heads_kv = 1 + messages_below(random, 3),
        .head_dim_qk = 1 + messages_below(random, WIRE_MAX_HEAD_DIM),
        .head_dim_v = 1 + messages_below(random, WIRE_MAX_HEAD_DIM),
    };

    extents.heads_q = extents.heads_kv * messages_below(random, 4);
    if (messages_below(random, 4) != 0) {
        messages_features(random, dtype, &extents, &features);
    }
    messages_featured_plan(
        plan, coin(random) ? WIRE_FORWARD : WIRE_BACKWARD, dtype, &extents, &features);
    random_options(random, plan);
    if (plan->has_max_seqlen_q && features.total_q == extents.seqlen_q) {
        plan->has_max_seqlen_q = false;
        plan->max_seqlen_q = 0;
    }
}

uint32_t messages_place(const struct wire_plan *plan, enum wire_role role)
{
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (plan->tensor[i].role == role) {
            return i;
        }
    }
    fprintf(stderr, "the plan has no %s\n", wire_role_name(role));
    abort();
}

uint64_t messages_call(
    const struct wire_plan *plan, const struct wire_extent *extents, struct wire_call *call)
{
    uint64_t end = 0;

    memset(call, 0, sizeof(*call));
    call->plan = 1;
    call->tensors = plan->tensors;
    for (uint32_t i = 0; i < plan->tensors; i++) {
        call->region[i] = 1;
        call->offset[i] = end + (uint64_t)-extents[i].low;
        end += (uint64_t)(extents[i].high - extents[i].low + 15) / 16 * 16;
    }
    return end;
}

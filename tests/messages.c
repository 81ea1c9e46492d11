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

static void any_plan(struct dice *random, struct wire_plan *plan)
{
    plan->direction = (enum wire_direction)(1 + messages_below(random, WIRE_BACKWARD));
    plan->alignment = (enum wire_alignment)(1 + messages_below(random, WIRE_BOTTOM_RIGHT));
    if (coin(random)) {
        uint32_t bits = (uint32_t)dice_next(random);
        plan->has_scale = true;
        memcpy(&plan->scale, &bits, sizeof(bits));
    }
    if (coin(random)) {
        plan->has_window_left = true;
        plan->window_left = messages_wide(random);
    }
    if (coin(random)) {
        plan->has_window_right = true;
        plan->window_right = messages_wide(random);
    }
    plan->tensors = (uint32_t)messages_below(random, WIRE_MAX_TENSORS + 1);
    for (uint32_t i = 0; i < plan->tensors; i++) {
        struct wire_tensor *tensor = &plan->tensor[i];
        tensor->role = (enum wire_role)(1 + messages_below(random, WIRE_ROLE_END - 1));
        tensor->dtype = (enum wire_dtype)(1 + messages_below(random, WIRE_FP32));
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
    submit->calls = (uint32_t)messages_below(random, WIRE_MAX_CALLS + 1);
    for (uint32_t i = 0; i < submit->calls; i++) {
        struct wire_call *call = &submit->call[i];
        call->plan = wide32(random);
        call->tensors = (uint32_t)messages_below(random, WIRE_MAX_TENSORS + 1);
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

static void any_session(struct dice *random, struct wire_session *session)
{
    session->id = wide32(random);
    any_bytes(random, session->token, sizeof(session->token));
    session->major = wide32(random);
    session->minor = wide32(random);
    session->features = messages_wide(random);
    session->limits.in_flight = wide32(random);
    session->limits.regions = wide32(random);
    session->limits.region_bytes = messages_wide(random);
    session->limits.plans = wide32(random);
    session->limits.workspace_bytes = messages_wide(random);
    session->device_kind = coin(random) ? WIRE_DEVICE_CPU : WIRE_DEVICE_CUDA;
    session->has_uuid = coin(random);
    if (session->has_uuid) {
        any_bytes(random, session->device_uuid, sizeof(session->device_uuid));
    }
    any_text(random, session->device_name, sizeof(session->device_name));
}

void messages_gate_request(struct dice *random, struct wire_gate_request *message)
{
    memset(message, 0, sizeof(*message));
    message->id = wide32(random);
    message->kind = (enum wire_gate_kind)(1 + messages_below(random, WIRE_GATE_DROP_REGION));
    if (message->kind == WIRE_GATE_OPEN) {
        message->major = wide32(random);
        message->minor = wide32(random);
        message->features = messages_wide(random);
        any_text(random, message->name, sizeof(message->name));
    } else if (message->kind == WIRE_GATE_ADD_REGION) {
        message->bytes = messages_wide(random);
    } else {
        message->region = wide32(random);
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
    message->kind = (enum wire_request_kind)(1 + messages_below(random, WIRE_GET_STATS));
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
    message->kind = (enum wire_reply_kind)messages_below(random, WIRE_REPLY_STATS + 1);
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

void messages_fixed_plan(struct wire_plan *plan, enum wire_direction direction,
    enum wire_dtype dtype, const struct messages_extents *e)
{
    const uint64_t q[] = {e->batch, e->seqlen_q, e->heads_q, e->head_dim_qk};
    const uint64_t k[] = {e->batch, e->seqlen_k, e->heads_kv, e->head_dim_qk};
    const uint64_t v[] = {e->batch, e->seqlen_k, e->heads_kv, e->head_dim_v};
    const uint64_t out[] = {e->batch, e->seqlen_q, e->heads_q, e->head_dim_v};
    const uint64_t rows[] = {e->batch, e->heads_q, e->seqlen_q};

    memset(plan, 0, sizeof(*plan));
    plan->direction = direction;
    plan->alignment = WIRE_BOTTOM_RIGHT;
    add_tensor(plan, WIRE_Q, dtype, q, 4);
    add_tensor(plan, WIRE_K, dtype, k, 4);
    add_tensor(plan, WIRE_V, dtype, v, 4);
    add_tensor(plan, WIRE_OUT, dtype, out, 4);
    add_tensor(plan, WIRE_LSE, WIRE_FP32, rows, 3);
    if (direction == WIRE_BACKWARD) {
        add_tensor(plan, WIRE_DOUT, dtype, out, 4);
        add_tensor(plan, WIRE_DLSE, WIRE_FP32, rows, 3);
        add_tensor(plan, WIRE_DQ, dtype, q, 4);
        add_tensor(plan, WIRE_DK, dtype, k, 4);
        add_tensor(plan, WIRE_DV, dtype, v, 4);
    }
}

void messages_plan(struct dice *random, struct wire_plan *plan)
{
    struct messages_extents extents = {
        .batch = messages_below(random, 4),
        .seqlen_q = messages_below(random, 9),
        .seqlen_k = messages_below(random, 9),
        .heads_kv = 1 + messages_below(random, 3),
        .head_dim_qk = 1 + messages_below(random, WIRE_MAX_HEAD_DIM),
        .head_dim_v = 1 + messages_below(random, WIRE_MAX_HEAD_DIM),
    };

    extents.heads_q = extents.heads_kv * messages_below(random, 4);
    messages_fixed_plan(plan, coin(random) ? WIRE_FORWARD : WIRE_BACKWARD,
        (enum wire_dtype)(1 + messages_below(random, WIRE_FP32)), &extents);
    if (coin(random)) {
        plan->has_window_right = true;
        plan->window_right = messages_below(random, 4);
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

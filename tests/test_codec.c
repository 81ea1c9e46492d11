#include "codec.h"

#include "bytes.h"
#include "messages.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 3000

/* ---- All four messages behind one interface ----------------------------------------------------- */

union any_message {
    struct wire_gate_request gate_request;
    struct wire_gate_reply gate_reply;
    struct wire_request request;
    struct wire_reply reply;
};

static void make_gate_request(struct dice *random, union any_message *message)
{
    messages_gate_request(random, &message->gate_request);
}

static void make_gate_reply(struct dice *random, union any_message *message)
{
    messages_gate_reply(random, &message->gate_reply);
}

static void make_request(struct dice *random, union any_message *message)
{
    messages_request(random, &message->request);
}

static void make_reply(struct dice *random, union any_message *message)
{
    messages_reply(random, &message->reply);
}

static size_t encode_gate_request(const union any_message *message, uint8_t *bytes, size_t capacity)
{
    return codec_encode_gate_request(&message->gate_request, bytes, capacity);
}

static size_t encode_gate_reply(const union any_message *message, uint8_t *bytes, size_t capacity)
{
    return codec_encode_gate_reply(&message->gate_reply, bytes, capacity);
}

static size_t encode_request(const union any_message *message, uint8_t *bytes, size_t capacity)
{
    return codec_encode_request(&message->request, bytes, capacity);
}

static size_t encode_reply(const union any_message *message, uint8_t *bytes, size_t capacity)
{
    return codec_encode_reply(&message->reply, bytes, capacity);
}

static bool decode_gate_request(
    const uint8_t *bytes, size_t size, union any_message *message, struct wire_error *error)
{
    return codec_decode_gate_request(bytes, size, &message->gate_request, error);
}

static bool decode_gate_reply(
    const uint8_t *bytes, size_t size, union any_message *message, struct wire_error *error)
{
    return codec_decode_gate_reply(bytes, size, &message->gate_reply, error);
}

static bool decode_request(
    const uint8_t *bytes, size_t size, union any_message *message, struct wire_error *error)
{
    return codec_decode_request(bytes, size, &message->request, error);
}

static bool decode_reply(
    const uint8_t *bytes, size_t size, union any_message *message, struct wire_error *error)
{
    return codec_decode_reply(bytes, size, &message->reply, error);
}

static const struct kind {
    const char *name;
    size_t size;
    void (*make)(struct dice *random, union any_message *message);
    size_t (*encode)(const union any_message *message, uint8_t *bytes, size_t capacity);
    bool (*decode)(
        const uint8_t *bytes, size_t size, union any_message *message, struct wire_error *error);
} kinds[] = {
    {"gate request", sizeof(struct wire_gate_request), make_gate_request, encode_gate_request,
        decode_gate_request},
    {"gate reply", sizeof(struct wire_gate_reply), make_gate_reply, encode_gate_reply,
        decode_gate_reply},
    {"request", sizeof(struct wire_request), make_request, encode_request, decode_request},
    {"reply", sizeof(struct wire_reply), make_reply, encode_reply, decode_reply},
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static uint8_t buffer[WIRE_MAX_MESSAGE_BYTES];
static uint8_t again[WIRE_MAX_MESSAGE_BYTES];

static bool is_text(const char *text, size_t capacity)
{
    size_t length = strnlen(text, capacity);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            return false;
        }
    }
    return length < capacity;
}

static void expect_info_in_range(const struct wire_info *info)
{
    cr_assert(info->device.kind == WIRE_DEVICE_CPU || info->device.kind == WIRE_DEVICE_CUDA);
    cr_assert((unsigned)info->mps <= WIRE_MPS_ON);
    cr_assert(info->families <= WIRE_MAX_FAMILIES);
    for (uint32_t i = 0; i < info->families; i++) {
        cr_assert(is_text(info->family[i], WIRE_NAME_BYTES));
    }
    cr_assert(is_text(info->device.name, WIRE_NAME_BYTES));
    cr_assert(is_text(info->driver, WIRE_NAME_BYTES));
    cr_assert(is_text(info->version, WIRE_NAME_BYTES));
}

/* Whatever was decoded is within bounds. */
static void expect_in_range(const struct kind *kind, const union any_message *message)
{
    if (kind->decode == decode_gate_request) {
        const struct wire_gate_request *m = &message->gate_request;
        cr_assert(m->kind > WIRE_GATE_NONE && m->kind <= WIRE_GATE_TRIM);
        cr_assert((unsigned)m->memory <= WIRE_MEMORY_CUDA_VMM);
        cr_assert(is_text(m->name, sizeof(m->name)));
    } else if (kind->decode == decode_gate_reply) {
        const struct wire_gate_reply *m = &message->gate_reply;
        cr_assert((unsigned)m->error.status < WIRE_STATUS_END);
        cr_assert(is_text(m->error.detail, sizeof(m->error.detail)));
        cr_assert(is_text(m->session.device.name, sizeof(m->session.device.name)));
        cr_assert(!m->has_session || m->session.device.kind == WIRE_DEVICE_CPU ||
                  m->session.device.kind == WIRE_DEVICE_CUDA);
    } else if (kind->decode == decode_reply) {
        const struct wire_reply *m = &message->reply;
        cr_assert((unsigned)m->error.status < WIRE_STATUS_END);
        cr_assert(is_text(m->error.detail, sizeof(m->error.detail)));
        cr_assert(m->kind <= WIRE_REPLY_INFO);
        cr_assert(m->kind != WIRE_REPLY_PLAN || is_text(m->plan.family, WIRE_NAME_BYTES));
        cr_assert(m->kind != WIRE_REPLY_STATS || is_text(m->stats.version, WIRE_NAME_BYTES));
        if (m->kind == WIRE_REPLY_INFO) {
            expect_info_in_range(&m->info);
        }
    } else if (message->request.kind == WIRE_ADD_PLAN) {
        const struct wire_plan *plan = &message->request.plan;
        cr_assert(plan->tensors <= WIRE_MAX_TENSORS);
        cr_assert(plan->direction == WIRE_FORWARD || plan->direction == WIRE_BACKWARD);
        cr_assert(plan->alignment == WIRE_TOP_LEFT || plan->alignment == WIRE_BOTTOM_RIGHT);
        for (uint32_t i = 0; i < plan->tensors; i++) {
            cr_assert(plan->tensor[i].dims <= WIRE_MAX_DIMS);
            cr_assert(plan->tensor[i].role >= WIRE_Q && plan->tensor[i].role < WIRE_ROLE_END);
            cr_assert(wire_dtype_bytes(plan->tensor[i].dtype) != 0);
        }
    } else if (message->request.kind == WIRE_SUBMIT) {
        cr_assert(message->request.submit.calls <= WIRE_MAX_CALLS);
        for (uint32_t i = 0; i < message->request.submit.calls; i++) {
            cr_assert(message->request.submit.call[i].tensors <= WIRE_MAX_TENSORS);
        }
    } else {
        cr_assert(
            message->request.kind > WIRE_REQUEST_NONE && message->request.kind <= WIRE_GET_INFO);
    }
}

/* ---- Round trips -------------------------------------------------------------------------------- */

Test(codec, what_is_encoded_is_decoded_again)
{
    struct dice random = messages_seeded("round trip");
    static union any_message sent;
    static union any_message received;
    struct wire_error error = {0};

    for (size_t round = 0; round < ROUNDS; round++) {
        const struct kind *kind = &kinds[round % KINDS];
        kind->make(&random, &sent);
        size_t size = kind->encode(&sent, buffer, sizeof(buffer));
        memset(&received, 0xff, sizeof(received));
        cr_assert(
            kind->decode(buffer, size, &received, &error), "%s: %s", kind->name, error.detail);
        cr_assert_eq(memcmp(&sent, &received, kind->size), 0, "%s, round %zu", kind->name, round);
        expect_in_range(kind, &received);
    }
}

Test(codec, the_largest_messages_fit)
{
    static struct wire_request request;

    request.id = UINT32_MAX;
    request.kind = WIRE_SUBMIT;
    request.submit = (struct wire_submit){.lane = UINT32_MAX,
        .first_sequence = UINT32_MAX,
        .epoch = UINT32_MAX,
        .calls = WIRE_MAX_CALLS};
    for (size_t i = 0; i < WIRE_MAX_CALLS; i++) {
        struct wire_call *call = &request.submit.call[i];
        call->plan = UINT32_MAX;
        call->tensors = WIRE_MAX_TENSORS;
        memset(call->region, 0xff, sizeof(call->region));
        memset(call->offset, 0xff, sizeof(call->offset));
        call->dropout_seed = UINT64_MAX;
        call->dropout_offset = UINT32_MAX;
    }
    size_t size = codec_encode_request(&request, buffer, sizeof(buffer));
    cr_assert(size > 32 * (24 * 15 + 15) && size <= WIRE_MAX_MESSAGE_BYTES);

    static struct wire_request decoded;
    struct wire_error error;
    cr_assert(codec_decode_request(buffer, size, &decoded, &error));
    cr_expect_eq(memcmp(&request, &decoded, sizeof(request)), 0);
}

Test(codec, encoding_says_when_there_is_no_room)
{
    struct dice random = messages_seeded("no room");
    static union any_message message;

    for (size_t round = 0; round < 40; round++) {
        const struct kind *kind = &kinds[round % KINDS];
        kind->make(&random, &message);
        size_t size = kind->encode(&message, buffer, sizeof(buffer));
        for (size_t capacity = 0; capacity < size; capacity += 1 + capacity / 16) {
            memset(again, 0x5a, sizeof(again));
            cr_expect_eq(kind->encode(&message, again, capacity), 0);
            cr_expect_eq(again[capacity], 0x5a, "written past the end");
        }
        cr_expect_eq(kind->encode(&message, again, size), size);
    }
}

Test(codec, encoding_refuses_counts_beyond_their_arrays)
{
    static struct wire_request request;

    request.kind = WIRE_ADD_PLAN;
    request.plan.tensors = WIRE_MAX_TENSORS + 1;
    cr_expect_eq(codec_encode_request(&request, buffer, sizeof(buffer)), 0);
    request.plan.tensors = 1;
    request.plan.tensor[0].dims = WIRE_MAX_DIMS + 1;
    cr_expect_eq(codec_encode_request(&request, buffer, sizeof(buffer)), 0);

    memset(&request, 0, sizeof(request));
    request.kind = WIRE_SUBMIT;
    request.submit.calls = WIRE_MAX_CALLS + 1;
    cr_expect_eq(codec_encode_request(&request, buffer, sizeof(buffer)), 0);
    request.submit.calls = 1;
    request.submit.call[0].tensors = WIRE_MAX_TENSORS + 1;
    cr_expect_eq(codec_encode_request(&request, buffer, sizeof(buffer)), 0);

    memset(&request, 0, sizeof(request));
    cr_expect_eq(codec_encode_request(&request, buffer, sizeof(buffer)), 0, "a request of no kind");
    struct wire_gate_request gate = {0};
    cr_expect_eq(codec_encode_gate_request(&gate, buffer, sizeof(buffer)), 0);
    static struct wire_reply reply = {.kind = WIRE_REPLY_INFO};
    cr_expect_neq(codec_encode_reply(&reply, buffer, sizeof(buffer)), 0);
    reply.info.families = WIRE_MAX_FAMILIES + 1;
    cr_expect_eq(codec_encode_reply(&reply, buffer, sizeof(buffer)), 0);
}

Test(codec, strings_without_an_end_are_cut)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN};
    struct wire_gate_request decoded;
    struct wire_error error;

    memset(request.name, 'x', sizeof(request.name));
    size_t size = codec_encode_gate_request(&request, buffer, sizeof(buffer));
    cr_assert(codec_decode_gate_request(buffer, size, &decoded, &error));
    cr_expect_eq(strlen(decoded.name), WIRE_NAME_BYTES - 1);
}

/* ---- Bytes from anybody ------------------------------------------------------------------------- */

/* Every message that decodes must be in range and mean the same when it is sent on. */
static bool check_bytes(const struct kind *kind, const uint8_t *bytes, size_t size)
{
    static union any_message message;
    static union any_message second;
    struct wire_error error = {WIRE_OK, ""};
    uint8_t *exact = malloc(size + (size == 0)); /* so that reading past its end is noticed */

    memcpy(exact, bytes, size);
    memset(&message, 0xff, sizeof(message));
    bool decoded = kind->decode(exact, size, &message, &error);
    free(exact);
    if (!decoded) {
        cr_assert_eq(error.status, WIRE_PROTOCOL_ERROR);
        cr_assert(error.detail[0] != 0 && is_text(error.detail, sizeof(error.detail)));
        return false;
    }
    expect_in_range(kind, &message);
    size_t sent = kind->encode(&message, again, sizeof(again));
    cr_assert(kind->decode(again, sent, &second, &error), "%s", error.detail);
    cr_assert_eq(memcmp(&message, &second, kind->size), 0);
    return true;
}

Test(codec, every_prefix_of_a_message_is_refused_or_in_range)
{
    struct dice random = messages_seeded("prefixes");
    static union any_message message;
    size_t refused = 0;

    for (size_t round = 0; round < 60; round++) {
        const struct kind *kind = &kinds[round % KINDS];
        kind->make(&random, &message);
        size_t size = kind->encode(&message, buffer, sizeof(buffer));
        for (size_t length = 0; length < size; length += 1 + size / 500) {
            refused += !check_bytes(kind, buffer, length);
        }
    }
    cr_expect(refused > 60);
}

Test(codec, changed_bytes_are_refused_or_in_range)
{
    struct dice random = messages_seeded("mutations");
    static union any_message message;
    size_t decoded = 0;
    size_t refused = 0;

    for (size_t round = 0; round < 4 * ROUNDS; round++) {
        const struct kind *kind = &kinds[round % KINDS];
        kind->make(&random, &message);
        size_t size = kind->encode(&message, buffer, sizeof(buffer));
        for (size_t change = 0; size > 0 && change <= messages_below(&random, 4); change++) {
            size_t at = messages_below(&random, size < 64 || round % 2 ? size : 64);
            buffer[at] = (uint8_t)dice_next(&random);
        }
        bool good = check_bytes(kind, buffer, size);
        decoded += good;
        refused += !good;
    }
    cr_expect(decoded > ROUNDS / 10 && refused > ROUNDS / 10, "%zu and %zu", decoded, refused);
}

Test(codec, random_bytes_are_refused_or_in_range)
{
    struct dice random = messages_seeded("random bytes");

    for (size_t round = 0; round < 4 * ROUNDS; round++) {
        size_t size = messages_below(&random, 300);
        for (size_t i = 0; i < size; i++) {
            buffer[i] = (uint8_t)dice_next(&random);
        }
        check_bytes(&kinds[round % KINDS], buffer, size);
    }
}

Test(codec, unknown_fields_are_ignored)
{
    struct bytes body = {0};
    struct bytes inner = {0};
    struct wire_request request;
    struct wire_error error;

    bytes_put_number(&inner, 1, 5);
    bytes_put_number(&inner, 900, 1);
    bytes_put_text(&inner, 901, "from a later version");
    bytes_put_number(&body, 70, 12345);
    bytes_put_number(&body, 1, 77);
    bytes_put_message(&body, 71, &inner);
    bytes_put_message(&body, 4, &inner);
    bytes_put_varint(&body, 72 << 3 | 1); /* a fixed64 */
    memset(body.data + body.size, 0xee, 8);
    body.size += 8;
    cr_assert(codec_decode_request(body.data, body.size, &request, &error), "%s", error.detail);
    cr_expect_eq(request.id, 77);
    cr_expect_eq(request.kind, WIRE_DROP_PLAN);
    cr_expect_eq(request.drop_plan, 5);
}

Test(codec, an_absent_scale_is_told_from_zero)
{
    struct wire_request request = {.kind = WIRE_ADD_PLAN};
    struct wire_request decoded;
    struct wire_error error;

    request.plan.direction = WIRE_FORWARD;
    request.plan.alignment = WIRE_TOP_LEFT;
    for (int given = 0; given < 2; given++) {
        request.plan.has_scale = given;
        request.plan.has_window_left = given;
        request.plan.has_window_right = !given;
        request.plan.has_max_seqlen_q = given;
        request.plan.has_max_seqlen_k = !given;
        size_t size = codec_encode_request(&request, buffer, sizeof(buffer));
        cr_assert(codec_decode_request(buffer, size, &decoded, &error));
        cr_expect_eq(decoded.plan.has_scale, given);
        cr_expect_eq(decoded.plan.has_window_left, given);
        cr_expect_eq(decoded.plan.has_window_right, !given);
        cr_expect_eq(decoded.plan.has_max_seqlen_q, given);
        cr_expect_eq(decoded.plan.has_max_seqlen_k, !given);
    }
}

/* A plan as a peer of the first version writes it, and its call. */
Test(codec, without_the_later_fields_every_feature_is_off)
{
    struct bytes plan = {0};
    struct bytes call = {0};
    struct bytes submit = {0};
    static struct wire_request request;
    static struct wire_request later;
    struct wire_error error;

    bytes_put_number(&plan, 1, WIRE_BACKWARD);
    bytes_put_number(&plan, 3, WIRE_TOP_LEFT);
    struct bytes message = bytes_around(3, &plan);
    cr_assert(codec_decode_request(message.data, message.size, &request, &error));
    cr_expect_eq(request.plan.softcap, 0);
    cr_expect_eq(request.plan.dropout_threshold, 0);
    cr_expect_not(request.plan.deterministic);
    cr_expect_not(request.plan.has_max_seqlen_q || request.plan.has_max_seqlen_k);

    bytes_put_number(&call, 1, 7);
    bytes_put_message(&submit, 3, &call);
    message = bytes_around(5, &submit);
    cr_assert(codec_decode_request(message.data, message.size, &request, &error));
    cr_expect_eq(request.submit.call[0].dropout_seed, 0);
    cr_expect_eq(request.submit.call[0].dropout_offset, 0);
    cr_expect_eq(request.submit.epoch, 0);

    /* and what is off takes no bytes */
    size_t size = codec_encode_request(&request, buffer, sizeof(buffer));
    later = request;
    later.submit.call[0].dropout_seed = UINT64_C(0x0123456789abcdef);
    later.submit.call[0].dropout_offset = 1;
    cr_expect_eq(codec_encode_request(&later, again, sizeof(again)), size + 9 + 2);
    cr_assert(codec_decode_request(again, size + 9 + 2, &request, &error));
    cr_expect_eq(request.submit.call[0].dropout_seed, UINT64_C(0x0123456789abcdef));
}

/* What a peer of minor 0 says of memory, and says the same way now. */
Test(codec, memory_of_no_kind_is_a_descriptor_of_shared_memory)
{
    struct bytes add = {0};
    struct wire_gate_request request;
    struct wire_error error;

    bytes_put_number(&add, 1, 4096);
    struct bytes message = bytes_around(3, &add);
    cr_assert(codec_decode_gate_request(message.data, message.size, &request, &error));
    cr_expect_eq(request.kind, WIRE_GATE_ADD_REGION);
    cr_expect_eq(request.memory, WIRE_MEMORY_SHM);
    cr_expect_eq(request.bytes, 4096);
    cr_expect_eq(request.reserve, 0);
    cr_expect_eq(codec_encode_gate_request(&request, buffer, sizeof(buffer)), message.size);
    cr_expect_eq(memcmp(buffer, message.data, message.size), 0);
}

Test(codec, control_characters_do_not_get_through)
{
    struct bytes open = {0};
    struct wire_gate_request request;
    struct wire_gate_reply reply;
    struct wire_error error;

    bytes_put_text(&open, 4, "a\nb\x1b[2Jc\x9b");
    struct bytes message = bytes_around(2, &open);
    cr_assert(codec_decode_gate_request(message.data, message.size, &request, &error));
    cr_expect_str_eq(request.name, "a?b?[2Jc?");

    struct bytes bare = {0};
    bytes_put_number(&bare, 2, WIRE_AGAIN);
    bytes_put_text(&bare, 3, "two\r\nlines");
    cr_assert(codec_decode_gate_reply(bare.data, bare.size, &reply, &error));
    cr_expect_str_eq(reply.error.detail, "two??lines");
}

Test(codec, a_reply_may_be_a_status_alone)
{
    struct wire_reply reply;
    struct wire_gate_reply gate;
    struct wire_error error;

    cr_assert(codec_decode_reply(buffer, 0, &reply, &error));
    cr_expect_eq(reply.error.status, WIRE_OK);
    cr_expect_eq(reply.kind, WIRE_REPLY_NONE);
    cr_assert(codec_decode_gate_reply(buffer, 0, &gate, &error));
    cr_expect_not(gate.has_session);
    cr_expect_eq(gate.region, 0);
}

/* What the codec refuses, and that each sentence names the field at fault. */
#include "fault.h"

#include "bytes.h"
#include "codec.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum kind {
    GATE_REQUEST,
    GATE_REPLY,
    REQUEST,
    REPLY,
};

static bool decode(enum kind kind, const struct bytes *message, struct wire_error *error)
{
    static struct wire_gate_request gate_request;
    static struct wire_gate_reply gate_reply;
    static struct wire_request request;
    static struct wire_reply reply;

    switch (kind) {
    case GATE_REQUEST:
        return codec_decode_gate_request(message->data, message->size, &gate_request, error);
    case GATE_REPLY:
        return codec_decode_gate_reply(message->data, message->size, &gate_reply, error);
    case REQUEST:
        return codec_decode_request(message->data, message->size, &request, error);
    case REPLY:
        return codec_decode_reply(message->data, message->size, &reply, error);
    }
    return false;
}

static void expect_refused(enum kind kind, struct bytes message, const char *sentence)
{
    struct wire_error error = {WIRE_OK, ""};

    cr_expect_not(decode(kind, &message, &error), "%s", sentence);
    cr_expect_eq(error.status, WIRE_PROTOCOL_ERROR);
    cr_expect(strstr(error.detail, sentence) != NULL, "\"%s\" does not say \"%s\"", error.detail,
        sentence);
}

Test(fault, a_refusal_still_tells_the_id)
{
    struct bytes message = {0};
    struct wire_request request;
    struct wire_error error;

    bytes_put_number(&message, 1, 4242);
    bytes_put_text(&message, 5, "\xff\xff\xff");
    cr_expect_not(codec_decode_request(message.data, message.size, &request, &error));
    cr_expect_eq(request.id, 4242);
}

Test(fault, a_missing_body_is_refused)
{
    struct bytes message = {0};

    expect_refused(REQUEST, message, "body is missing");
    expect_refused(GATE_REQUEST, message, "body is missing");
    bytes_put_number(&message, 1, 9);
    bytes_put_text(&message, 15, "a body of a later version");
    expect_refused(REQUEST, message, "body is missing");
    expect_refused(GATE_REQUEST, message, "body is missing");
}

Test(fault, long_strings_are_refused)
{
    struct bytes body = {0};
    char text[WIRE_DETAIL_BYTES + 1];

    bytes_put_text(&body, 4, bytes_filled(text, WIRE_NAME_BYTES));
    expect_refused(GATE_REQUEST, bytes_around(2, &body), "open.name");

    body.size = 0;
    bytes_put_text(&body, 3, bytes_filled(text, WIRE_DETAIL_BYTES));
    expect_refused(GATE_REPLY, body, "detail");
    expect_refused(REPLY, body, "detail");

    body.size = 0;
    bytes_put_text(&body, 3, bytes_filled(text, WIRE_NAME_BYTES));
    expect_refused(REPLY, bytes_around(4, &body), "plan.family");

    body.size = 0;
    bytes_put_text(&body, 5, text);
    expect_refused(REPLY, bytes_around(6, &body), "stats.version");
}

Test(fault, tokens_of_another_length_are_refused)
{
    static const size_t lengths[] = {0, 1, WIRE_TOKEN_BYTES - 1, WIRE_TOKEN_BYTES + 1, 100};
    char text[128];

    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct bytes hello = {0};
        bytes_put_number(&hello, 1, 3);
        bytes_put_text(&hello, 2, bytes_filled(text, lengths[i]));
        expect_refused(REQUEST, bytes_around(2, &hello), "hello.token");
    }
    struct bytes hello = {0};
    bytes_put_number(&hello, 1, 3);
    expect_refused(REQUEST, bytes_around(2, &hello), "hello.token has 0 bytes");
}

static struct bytes session_with(size_t token, bool limits, uint64_t device_kind, size_t uuid)
{
    static const struct bytes nothing;
    struct bytes session = {0};
    struct bytes device = {0};
    char text[64];

    bytes_put_text(&session, 2, bytes_filled(text, token));
    if (limits) {
        bytes_put_message(&session, 6, &nothing);
    }
    bytes_put_number(&device, 1, device_kind);
    bytes_put_text(&device, 2, bytes_filled(text, uuid));
    bytes_put_message(&session, 7, &device);
    return bytes_around(4, &session);
}

Test(fault, broken_sessions_are_refused)
{
    struct bytes good = session_with(16, true, WIRE_DEVICE_CUDA, 16);
    struct wire_gate_reply reply;
    struct wire_error error;

    cr_assert(codec_decode_gate_reply(good.data, good.size, &reply, &error), "%s", error.detail);
    expect_refused(GATE_REPLY, session_with(15, true, 1, 0), "session.token has 15 bytes");
    expect_refused(GATE_REPLY, session_with(17, true, 1, 0), "session.token");
    expect_refused(GATE_REPLY, session_with(16, false, 1, 0), "session.limits is missing");
    expect_refused(GATE_REPLY, session_with(16, true, 0, 0), "session.device.kind is 0");
    expect_refused(GATE_REPLY, session_with(16, true, 3, 0), "session.device.kind is 3");
    expect_refused(GATE_REPLY, session_with(16, true, 1, 3), "session.device.uuid has 3 bytes");
    expect_refused(GATE_REPLY, session_with(16, true, 1, 17), "session.device.uuid");

    struct bytes bare = {0};
    struct bytes limits = {0};
    bytes_put_text(&bare, 2, "0123456789abcdef");
    bytes_put_message(&bare, 6, &limits);
    expect_refused(GATE_REPLY, bytes_around(4, &bare), "session.device is missing");
}

static struct bytes region_with(uint64_t kind, size_t handle)
{
    struct bytes region = {0};
    char text[128];

    bytes_put_number(&region, 1, 4096);
    bytes_put_number(&region, 2, kind);
    bytes_put_text(&region, 3, bytes_filled(text, handle));
    return bytes_around(3, &region);
}

Test(fault, offers_of_memory_carry_what_their_kind_needs)
{
    static const char handle[] = "add_region.handle";
    struct bytes good = region_with(WIRE_MEMORY_CUDA_IPC, WIRE_HANDLE_BYTES);
    struct wire_gate_request request;
    struct wire_error error;

    cr_assert(
        codec_decode_gate_request(good.data, good.size, &request, &error), "%s", error.detail);
    cr_expect_eq(request.memory, WIRE_MEMORY_CUDA_IPC);
    expect_refused(GATE_REQUEST, region_with(WIRE_MEMORY_CUDA_IPC, 0), "handle has 0 bytes");
    expect_refused(GATE_REQUEST, region_with(WIRE_MEMORY_CUDA_IPC, 63), "handle has 63 bytes");
    expect_refused(GATE_REQUEST, region_with(WIRE_MEMORY_CUDA_IPC, 65), handle);
    expect_refused(GATE_REQUEST, region_with(WIRE_MEMORY_SHM, 64), handle);
    expect_refused(GATE_REQUEST, region_with(WIRE_MEMORY_CUDA_VMM, 1), handle);
    expect_refused(GATE_REQUEST, region_with(3, 0), "add_region.kind is 3");
}

static struct bytes info_with(uint64_t mps, size_t families, size_t name, bool limits)
{
    static const struct bytes nothing;
    struct bytes info = {0};
    struct bytes device = {0};
    char text[128];

    bytes_put_number(&device, 1, WIRE_DEVICE_CUDA);
    bytes_put_message(&info, 1, &device);
    bytes_put_number(&info, 3, mps);
    for (size_t i = 0; i < families; i++) {
        bytes_put_text(&info, 5, bytes_filled(text, name));
    }
    if (limits) {
        bytes_put_message(&info, 6, &nothing);
    }
    return bytes_around(7, &info);
}

Test(fault, broken_facts_about_a_daemon_are_refused)
{
    struct bytes good = info_with(WIRE_MPS_ON, WIRE_MAX_FAMILIES, WIRE_NAME_BYTES - 1, true);
    struct wire_reply reply;
    struct wire_error error;

    cr_assert(codec_decode_reply(good.data, good.size, &reply, &error), "%s", error.detail);
    cr_expect_eq(reply.info.families, WIRE_MAX_FAMILIES);
    expect_refused(REPLY, info_with(3, 1, 3, true), "info.mps is 3");
    expect_refused(REPLY, info_with(0, WIRE_MAX_FAMILIES + 1, 3, true), "info.families");
    expect_refused(REPLY, info_with(0, 1, WIRE_NAME_BYTES, true), "info.families");
    expect_refused(REPLY, info_with(0, 1, 3, false), "info.limits is missing");
}

static struct bytes plan_with(
    uint64_t direction, uint64_t alignment, const struct bytes *tensor, size_t tensors)
{
    struct bytes plan = {0};

    bytes_put_number(&plan, 1, direction);
    bytes_put_number(&plan, 3, alignment);
    for (size_t i = 0; i < tensors; i++) {
        bytes_put_message(&plan, 6, tensor);
    }
    return bytes_around(3, &plan);
}

static struct bytes tensor_with(uint64_t role, uint64_t dtype, size_t extents, size_t strides)
{
    struct bytes tensor = {0};

    bytes_put_number(&tensor, 1, role);
    bytes_put_number(&tensor, 2, dtype);
    for (size_t i = 0; i < extents; i++) { /* one by one: legal, though nobody packs them so */
        bytes_put_number(&tensor, 3, 2);
    }
    for (size_t i = 0; i < strides; i++) {
        bytes_put_number(&tensor, 4, 2);
    }
    return tensor;
}

Test(fault, broken_plans_are_refused)
{
    struct bytes tensor = tensor_with(1, 1, 4, 4);
    struct bytes good = plan_with(1, 1, &tensor, WIRE_MAX_TENSORS);
    struct wire_request request;
    struct wire_error error;

    cr_assert(codec_decode_request(good.data, good.size, &request, &error), "%s", error.detail);
    cr_expect_eq(request.plan.tensors, WIRE_MAX_TENSORS);
    expect_refused(REQUEST, plan_with(0, 1, &tensor, 1), "add_plan.direction is 0");
    expect_refused(REQUEST, plan_with(3, 1, &tensor, 1), "add_plan.direction is 3");
    expect_refused(REQUEST, plan_with(1, 0, &tensor, 1), "add_plan.alignment is 0");
    expect_refused(REQUEST, plan_with(1, 3, &tensor, 1), "add_plan.alignment is 3");
    expect_refused(REQUEST, plan_with(1, 0xffffffff, &tensor, 1), "add_plan.alignment");
    expect_refused(REQUEST, plan_with(1, 1, &tensor, WIRE_MAX_TENSORS + 1), "add_plan.tensors");

    tensor = tensor_with(0, 1, 4, 4);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors[0].role is 0");
    tensor = tensor_with(WIRE_ROLE_END, 1, 4, 4);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors[0].role is 20");
    tensor = tensor_with(1, 0, 4, 4);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors[0].dtype is 0");
    tensor = tensor_with(1, 5, 4, 4);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors[0].dtype is 5");
    tensor = tensor_with(1, 1, 4, 3);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors[0] has 4 extents");
    tensor = tensor_with(1, 1, 5, 4);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors.shape");
    tensor = tensor_with(1, 1, 4, 5);
    expect_refused(REQUEST, plan_with(1, 1, &tensor, 1), "add_plan.tensors.strides");
}

static struct bytes submit_with(size_t calls, size_t regions, size_t offsets)
{
    struct bytes submit = {0};
    struct bytes call = {0};
    uint8_t ones[64];

    memset(ones, 1, sizeof(ones)); /* packed varints of 1 */
    bytes_put_number(&call, 1, 5);
    bytes_put_data(&call, 2, ones, regions);
    bytes_put_data(&call, 3, ones, offsets);
    for (size_t i = 0; i < calls; i++) {
        bytes_put_message(&submit, 3, &call);
    }
    return bytes_around(5, &submit);
}

Test(fault, broken_submissions_are_refused)
{
    struct bytes good = submit_with(32, 24, 24);
    struct wire_request request;
    struct wire_error error;

    cr_assert(codec_decode_request(good.data, good.size, &request, &error), "%s", error.detail);
    cr_expect_eq(request.submit.calls, 32);
    cr_expect_eq(request.submit.call[31].tensors, 24);
    expect_refused(REQUEST, submit_with(33, 5, 5), "submit.calls");
    expect_refused(REQUEST, submit_with(2, 25, 5), "submit.calls.regions");
    expect_refused(REQUEST, submit_with(2, 5, 25), "submit.calls.offsets");
    expect_refused(REQUEST, submit_with(2, 5, 4), "submit.calls[0] has 5 regions, but 4 offsets");
}

Test(fault, unknown_statuses_are_refused)
{
    struct bytes message = {0};

    bytes_put_number(&message, 2, WIRE_STATUS_END);
    expect_refused(REPLY, message, "status is 18");
    expect_refused(GATE_REPLY, message, "status is 18");
}

Test(fault, wrong_types_and_lengths_name_their_field)
{
    struct bytes body = {0};

    bytes_put_text(&body, 1, "a string where a number belongs");
    expect_refused(REQUEST, bytes_around(4, &body), "drop_plan.plan");
    expect_refused(GATE_REQUEST, bytes_around(3, &body), "add_region.bytes");
    expect_refused(GATE_REQUEST, bytes_around(5, &body), "extend_region.region");
    expect_refused(REPLY, bytes_around(5, &body), "failed.lane");

    struct bytes cut = {0};
    bytes_put_varint(&cut, 5 << 3 | 2);
    bytes_put_varint(&cut, 1000);
    expect_refused(REQUEST, cut, "submit");
    cut.size = 1;
    expect_refused(REQUEST, cut, "submit");

    struct bytes endless = {0};
    bytes_put_varint(&endless, 1 << 3);
    memset(endless.data + endless.size, 0xff, 11);
    endless.size += 11;
    expect_refused(REQUEST, endless, "id");
}

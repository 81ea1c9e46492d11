/*
 * The codec and the validator on bytes from anybody: nothing that decodes is out of range, and it
 * means the same when it is sent on.
 *
 * Built for libFuzzer this is its entry point; otherwise main() runs mutations of valid messages, or
 * writes valid ones to a folder, for libFuzzer to start from:
 *
 *   test_fuzz_wire [ROUNDS]
 *   test_fuzz_wire --corpus FOLDER COUNT
 */
#include "codec.h"
#include "validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static uint8_t sent[WIRE_MAX_MESSAGE_BYTES];

/* A plan that is accepted has sane dimensions, and calls of it stay inside of their regions. */
static void check_plan(const struct wire_plan *plan)
{
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    struct wire_error error = {WIRE_OK, ""};
    struct wire_call call = {.tensors = plan->tensors};
    uint64_t region_bytes[WIRE_MAX_TENSORS];

    if (!validate_plan(plan, &shape, extents, &error)) {
        CHECK(error.status == WIRE_INVALID_ARGUMENT && error.detail[0] != 0);
        return;
    }
    CHECK(shape.heads_kv == 0 ? shape.heads_q == 0 : shape.heads_q % shape.heads_kv == 0);
    CHECK(shape.head_dim_qk >= 1 && shape.head_dim_qk <= WIRE_MAX_HEAD_DIM);
    CHECK(shape.head_dim_v >= 1 && shape.head_dim_v <= WIRE_MAX_HEAD_DIM);
    CHECK(shape.batch >= 0 && shape.batch <= WIRE_MAX_BATCH);
    CHECK(shape.seqlen_q >= 0 && shape.seqlen_q <= WIRE_MAX_SEQLEN);
    CHECK(shape.seqlen_k >= 0 && shape.seqlen_k <= WIRE_MAX_SEQLEN);
    CHECK(shape.total_q >= 0 && shape.total_q <= (shape.packed_q ? WIRE_MAX_SEQLEN : 0));
    CHECK(shape.total_k >= 0 && shape.total_k <= (shape.packed_k ? WIRE_MAX_SEQLEN : 0));
    CHECK(shape.softcap >= 0 && shape.softcap <= WIRE_MAX_SOFTCAP);
    CHECK(shape.dropout_threshold < WIRE_DROPOUT_ONE);
    for (uint32_t i = 0; i < plan->tensors; i++) {
        CHECK(extents[i].low <= 0 && extents[i].low <= extents[i].high);
        call.region[i] = i;
        call.offset[i] = (uint64_t)-extents[i].low;
        region_bytes[i] = (uint64_t)(extents[i].high - extents[i].low);
    }
    CHECK(validate_call(plan, extents, &call, region_bytes, &error));
    for (uint32_t i = 0; i < plan->tensors; i++) {
        if (region_bytes[i] > 0) {
            region_bytes[i]--;
            CHECK(!validate_call(plan, extents, &call, region_bytes, &error));
            region_bytes[i]++;
        }
    }
    memset(call.region, 0, sizeof(call.region));
    if (!validate_call(plan, extents, &call, region_bytes, &error)) {
        CHECK(error.status == WIRE_INVALID_ARGUMENT);
    }
}

static void check_gate_request(const uint8_t *bytes, size_t size)
{
    static struct wire_gate_request first;
    static struct wire_gate_request second;
    struct wire_error error;

    if (codec_decode_gate_request(bytes, size, &first, &error)) {
        size_t length = codec_encode_gate_request(&first, sent, sizeof(sent));
        CHECK(codec_decode_gate_request(sent, length, &second, &error));
        CHECK(memcmp(&first, &second, sizeof(first)) == 0);
    }
}

static void check_gate_reply(const uint8_t *bytes, size_t size)
{
    static struct wire_gate_reply first;
    static struct wire_gate_reply second;
    struct wire_error error;

    if (codec_decode_gate_reply(bytes, size, &first, &error)) {
        CHECK((unsigned)first.error.status < WIRE_STATUS_END);
        size_t length = codec_encode_gate_reply(&first, sent, sizeof(sent));
        CHECK(codec_decode_gate_reply(sent, length, &second, &error));
        CHECK(memcmp(&first, &second, sizeof(first)) == 0);
    }
}

static void check_request(const uint8_t *bytes, size_t size)
{
    static struct wire_request first;
    static struct wire_request second;
    struct wire_error error;

    if (codec_decode_request(bytes, size, &first, &error)) {
        size_t length = codec_encode_request(&first, sent, sizeof(sent));
        CHECK(codec_decode_request(sent, length, &second, &error));
        CHECK(memcmp(&first, &second, sizeof(first)) == 0);
        CHECK(first.kind != WIRE_SUBMIT || first.submit.calls <= WIRE_MAX_CALLS);
        if (first.kind == WIRE_ADD_PLAN) {
            check_plan(&first.plan);
        }
    }
}

static void check_reply(const uint8_t *bytes, size_t size)
{
    static struct wire_reply first;
    static struct wire_reply second;
    struct wire_error error;

    if (codec_decode_reply(bytes, size, &first, &error)) {
        CHECK((unsigned)first.error.status < WIRE_STATUS_END);
        size_t length = codec_encode_reply(&first, sent, sizeof(sent));
        CHECK(codec_decode_reply(sent, length, &second, &error));
        CHECK(memcmp(&first, &second, sizeof(first)) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    check_gate_request(bytes, size);
    check_gate_reply(bytes, size);
    check_request(bytes, size);
    check_reply(bytes, size);
    return 0;
}

#ifndef ATTND_LIBFUZZER

#include "messages.h"

static size_t any_message(struct dice *random, uint8_t *bytes, size_t capacity)
{
    static struct wire_gate_request gate_request;
    static struct wire_gate_reply gate_reply;
    static struct wire_request request;
    static struct wire_reply reply;

    switch (messages_below(random, 6)) {
    case 0:
        messages_gate_request(random, &gate_request);
        return codec_encode_gate_request(&gate_request, bytes, capacity);
    case 1:
        messages_gate_reply(random, &gate_reply);
        return codec_encode_gate_reply(&gate_reply, bytes, capacity);
    case 2:
        messages_reply(random, &reply);
        return codec_encode_reply(&reply, bytes, capacity);
    case 3: /* plans go on into the validator */
        memset(&request, 0, sizeof(request));
        request.kind = WIRE_ADD_PLAN;
        messages_plan(random, &request.plan);
        return codec_encode_request(&request, bytes, capacity);
    default:
        messages_request(random, &request);
        return codec_encode_request(&request, bytes, capacity);
    }
}

/* Changes, inserts, removes or repeats a few bytes. Returns the new size. */
static size_t mutate(struct dice *random, uint8_t *bytes, size_t size, size_t capacity)
{
    size_t at = messages_below(random, size + 1);
    size_t length = messages_below(random, 9);

    switch (messages_below(random, 4)) {
    case 0:
        if (at < size) {
            bytes[at] = (uint8_t)(bytes[at] ^ 1U << messages_below(random, 8));
        }
        return size;
    case 1:
        length = size - at < length ? size - at : length;
        memmove(bytes + at, bytes + at + length, size - at - length);
        return size - length;
    case 2:
        length = capacity - size < length ? capacity - size : length;
        memmove(bytes + at + length, bytes + at, size - at);
        for (size_t i = 0; i < length; i++) {
            bytes[at + i] = (uint8_t)dice_next(random);
        }
        return size + length;
    default:
        if (at < size) {
            bytes[at] = (uint8_t)dice_next(random);
        }
        return size;
    }
}

static int write_corpus(const char *folder, unsigned long count)
{
    struct dice random = messages_seeded("corpus");
    static uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];

    for (unsigned long i = 0; i < count; i++) {
        char path[4096];
        CHECK(snprintf(path, sizeof(path), "%s/%lu", folder, i) < (int)sizeof(path));
        FILE *file = fopen(path, "wb");
        if (file == NULL) {
            perror(path);
            return 1;
        }
        size_t size = any_message(&random, bytes, sizeof(bytes));
        size_t written = fwrite(bytes, 1, size, file);
        CHECK(fclose(file) == 0 && written == size);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--corpus") == 0) {
        return write_corpus(argv[2], strtoul(argv[3], NULL, 0));
    }
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 60000;
    struct dice random = messages_seeded("fuzz_wire");
    static uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];

    for (unsigned long round = 0; round < rounds; round++) {
        size_t size = any_message(&random, bytes, sizeof(bytes));
        for (uint64_t changes = messages_below(&random, 6); changes > 0; changes--) {
            size = mutate(&random, bytes, size, sizeof(bytes));
        }
        uint8_t *exact = malloc(size + (size == 0)); /* reading past its end is noticed */
        memcpy(exact, bytes, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    return 0;
}

#endif

/* The real daemon's requests, from clients that are wrong or hostile: each gets a status and a
 * sentence, nothing is computed, and the daemon goes on. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "codec.h"
#include "daemon.h"
#include "raw_client.h"

#define CREDIT 8
#define SOON_MS 300 /* what has not come by then does not come */

static struct daemon daemon_;
static struct raw_client client;

static const char *const arguments[] = {
    "--threads=1", "--max-sessions=4", "--in-flight=8", "--max-plans=3", "--workspace=64K", NULL};

static void start(void)
{
    cr_assert(daemon_start(&daemon_, arguments));
    cr_assert(raw_open(&client, daemon_.directory));
}

/* Whatever was done to it: an honest request still succeeds. */
static void stop(void)
{
    struct raw_client honest;
    struct wire_request request;
    enum wire_status status;
    cr_assert(raw_open(&honest, daemon_.directory));
    uint32_t region = raw_add_region(&honest, RAW_REGION_BYTES);
    raw_submission(&honest, &request, 0, 1, 1, raw_add_plan(&honest), region);
    cr_assert(raw_post(&honest, &request) && raw_wait(&honest, 0, 1, &status));
    cr_assert_eq(status, WIRE_OK);
    raw_close(&honest);
    raw_close(&client);
    cr_assert(daemon_stop(&daemon_));
}

TestSuite(request, .init = start, .fini = stop);

static void expect(const struct wire_error *error, enum wire_status status, const char *part)
{
    cr_expect_eq(error->status, status, "%s: %s", wire_status_name(error->status), error->detail);
    cr_expect_not_null(strstr(error->detail, part), "%s", error->detail);
}

Test(request, a_second_hello_is_refused)
{
    struct raw_client thief = {.directory = daemon_.directory, .gate = -1, .page_fd = -1};
    struct wire_reply reply;
    cr_assert(raw_hello(&client, &reply));
    expect(&reply.error, WIRE_INVALID_ARGUMENT, "HELLO was said before");
    cr_assert(raw_rpc_connect(&thief));
    thief.session = client.session;
    cr_assert(raw_hello(&thief, &reply));
    expect(&reply.error, WIRE_INVALID_ARGUMENT, "HELLO was said before");
    raw_close(&thief);
}

Test(request, a_wrong_token_opens_nothing_and_tells_nothing)
{
    struct raw_client other;
    struct wire_gate_reply opened;
    struct wire_reply reply;
    struct wire_reply unknown;
    struct wire_request request = {.kind = WIRE_GET_STATS};
    cr_assert(raw_connect(&other, daemon_.directory) && raw_open_session(&other, &opened));
    cr_assert(raw_rpc_connect(&other));
    cr_assert(raw_call(&other, &request, &reply));
    expect(&reply.error, WIRE_PERMISSION_DENIED, "HELLO comes first");
    other.session.token[WIRE_TOKEN_BYTES - 1] ^= 1;
    cr_assert(raw_hello(&other, &reply));
    expect(&reply.error, WIRE_PERMISSION_DENIED, "token");
    other.session.id += 1000;
    cr_assert(raw_hello(&other, &unknown));
    cr_expect_str_eq(unknown.error.detail, reply.error.detail);
    other.session = opened.session;
    cr_assert(raw_hello(&other, &reply));
    cr_expect_eq(reply.error.status, WIRE_OK);
    raw_close(&other);
}

Test(request, random_bytes_are_answered_with_a_protocol_error)
{
    struct wire_reply reply;
    unsigned seed = 4711;
    for (int round = 0; round < 300; round++) {
        uint8_t bytes[512];
        size_t size = 1 + (size_t)rand_r(&seed) % sizeof bytes;
        for (size_t i = 0; i < size; i++) {
            bytes[i] = (uint8_t)rand_r(&seed);
        }
        bytes[0] = 0xff; /* so that none of them is a message by chance */
        cr_assert(raw_send(&client, bytes, size, false));
        cr_assert(raw_receive(&client, &reply, 5000), "round %d", round);
        cr_expect_neq(reply.error.status, WIRE_OK);
        cr_expect_neq(reply.error.detail[0], '\0');
    }
}

Test(request, mutated_messages_never_harm)
{
    static struct wire_request request;
    static uint8_t good[WIRE_MAX_MESSAGE_BYTES];
    struct wire_stats stats;
    unsigned seed = 815;
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, 4, plan, region);
    request.id = 1;
    size_t submit_size = codec_encode_request(&request, good, sizeof good);
    for (int round = 0; round < 3000; round++) {
        uint8_t bytes[4096];
        struct wire_reply reply;
        memcpy(bytes, good, submit_size);
        for (int i = 0; i < 1 + round % 4; i++) {
            bytes[(size_t)rand_r(&seed) % submit_size] ^= (uint8_t)(1U << (rand_r(&seed) % 8));
        }
        cr_assert(raw_send(&client, bytes, submit_size, false));
        (void)raw_receive(&client, &reply, 0);
    }
    struct raw_client observer;
    cr_assert(raw_open(&observer, daemon_.directory));
    cr_assert(raw_stats(&observer, &stats));
    cr_expect_eq(stats.sessions, 2);
    raw_close(&observer);
}

Test(request, an_empty_message_is_dropped)
{
    struct wire_stats stats;
    struct wire_reply reply;
    uint8_t byte = 0;
    cr_assert(raw_send(&client, &byte, 0, false));
    cr_expect_not(raw_receive(&client, &reply, SOON_MS));
    cr_assert(raw_stats(&client, &stats));
}

Test(request, a_message_of_two_frames_costs_only_its_connection)
{
    struct wire_reply reply;
    struct raw_client other;
    uint8_t byte = 0;
    cr_assert(raw_open(&other, daemon_.directory));
    cr_assert(raw_send(&client, &byte, 1, true) && raw_send(&client, &byte, 1, false));
    cr_expect_not(raw_receive(&client, &reply, SOON_MS));
    cr_expect_neq(raw_add_plan(&other), 0);
    raw_close(&other);
}

Test(request, a_message_too_large_costs_only_its_connection)
{
    static uint8_t bytes[WIRE_MAX_MESSAGE_BYTES + 1];
    struct wire_reply reply;
    cr_assert(raw_send(&client, bytes, sizeof bytes, false));
    cr_expect_not(raw_receive(&client, &reply, SOON_MS));
}

Test(request, a_sequence_out_of_turn_is_refused_and_uses_up_nothing)
{
    struct wire_request request;
    struct wire_reply reply;
    enum wire_status status;
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, RAW_REGION_BYTES);
    static const uint32_t wrong[] = {0, 2, 7, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        raw_submission(&client, &request, 3, wrong[i], 1, plan, region);
        cr_assert(raw_call(&client, &request, &reply));
        expect(&reply.error, WIRE_INVALID_ARGUMENT, "the next one of lane 3 is 1");
        cr_expect_eq(reply.kind, WIRE_REPLY_NONE);
    }
    raw_submission(&client, &request, PAGE_LANES, 1, 1, plan, region);
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_INVALID_ARGUMENT, "lane is 31");
    raw_submission(&client, &request, 3, 1, 0, plan, region);
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_INVALID_ARGUMENT, "calls");
    cr_expect_eq(atomic_load(&client.page->lane[3].done), 0);
    raw_submission(&client, &request, 3, 1, 2, plan, region);
    cr_assert(raw_post(&client, &request) && raw_wait(&client, 3, 2, &status));
    cr_expect_eq(status, WIRE_OK);
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_INVALID_ARGUMENT, "is 3");
}

/* Submits one call that cannot run; how it ended, by the page and by the reply. */
static void expect_failure(struct wire_request *request, enum wire_status status, const char *part)
{
    struct wire_reply reply;
    enum wire_status shown;
    uint32_t sequence = request->submit.first_sequence;
    uint32_t lane = request->submit.lane;
    cr_assert(raw_call(&client, request, &reply), "no reply, expected: %s", part);
    cr_assert_eq(reply.kind, WIRE_REPLY_FAILED, "%s", reply.error.detail);
    expect(&reply.error, status, part);
    cr_expect_eq(reply.failed.lane, lane);
    cr_expect_eq(reply.failed.sequence, sequence);
    cr_assert(raw_wait(&client, lane, sequence, &shown));
    cr_expect_eq(shown, status);
}

Test(request, a_bad_call_takes_its_turn_and_fails_alone)
{
    struct wire_request request;
    enum wire_status status;
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, 1, plan + 1, region);
    expect_failure(&request, WIRE_NOT_FOUND, "no plan 2");
    raw_submission(&client, &request, 0, 2, 1, 0, region);
    expect_failure(&request, WIRE_NOT_FOUND, "no plan 0");
    raw_submission(&client, &request, 0, 3, 1, plan, region + 1);
    expect_failure(&request, WIRE_NOT_FOUND, "q: the session has no region 2");
    raw_submission(&client, &request, 0, 4, 1, plan, region);
    request.submit.call[0].region[3] = UINT32_MAX;
    expect_failure(&request, WIRE_NOT_FOUND, "out: the session has no region");
    raw_submission(&client, &request, 0, 5, 1, plan, region);
    request.submit.call[0].tensors = 3;
    expect_failure(&request, WIRE_INVALID_ARGUMENT, "3 tensors");
    raw_submission(&client, &request, 0, 6, 1, plan, region);
    request.submit.call[0].offset[2] = RAW_REGION_BYTES - RAW_TENSOR_BYTES + 4;
    expect_failure(&request, WIRE_INVALID_ARGUMENT, "v");
    raw_submission(&client, &request, 0, 7, 1, plan, region);
    request.submit.call[0].offset[0] = UINT64_MAX - 3;
    expect_failure(&request, WIRE_INVALID_ARGUMENT, "q");
    raw_submission(&client, &request, 0, 8, 1, plan, region);
    request.submit.call[0].offset[3] = 0;
    expect_failure(&request, WIRE_INVALID_ARGUMENT, "overlap");
    raw_submission(&client, &request, 0, 9, 1, plan, region);
    cr_assert(raw_post(&client, &request) && raw_wait(&client, 0, 9, &status));
    cr_expect_eq(status, WIRE_OK);
    struct wire_stats stats;
    cr_assert(raw_stats(&client, &stats));
    cr_expect_eq(stats.session.requests, 9);
    cr_expect_eq(stats.session.failed, 8);
    cr_expect_eq(stats.session.groups, 1);
    cr_expect_eq(stats.session.group_members, 1);
    cr_expect_eq(stats.session.in_flight, 0);
}

/* A stream's calls after one that failed do not run, until the client begins anew. */
Test(request, a_failure_poisons_its_lane_and_epoch)
{
    struct wire_request request;
    enum wire_status status;
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, 1, plan + 1, region);
    request.submit.epoch = 5;
    expect_failure(&request, WIRE_NOT_FOUND, "no plan 2");
    raw_submission(&client, &request, 0, 2, 1, plan, region);
    request.submit.epoch = 5;
    expect_failure(&request, WIRE_LANE_POISONED, "");
    raw_submission(&client, &request, 1, 1, 1, plan, region);
    request.submit.epoch = 5;
    cr_assert(raw_post(&client, &request) && raw_wait(&client, 1, 1, &status));
    cr_expect_eq(status, WIRE_OK, "another lane");
    raw_submission(&client, &request, 0, 3, 1, plan, region);
    cr_assert(raw_post(&client, &request) && raw_wait(&client, 0, 3, &status));
    cr_expect_eq(status, WIRE_OK, "no epoch");
    raw_submission(&client, &request, 0, 4, 1, plan, region);
    request.submit.epoch = 6;
    cr_assert(raw_post(&client, &request) && raw_wait(&client, 0, 4, &status));
    cr_expect_eq(status, WIRE_OK, "a new epoch");
}

Test(request, facts_about_the_daemon_are_told)
{
    struct wire_request request = {.kind = WIRE_GET_INFO};
    struct wire_reply reply;
    cr_assert(raw_call(&client, &request, &reply));
    cr_assert_eq(reply.kind, WIRE_REPLY_INFO, "%s", reply.error.detail);
    const struct wire_info *info = &reply.info;
    cr_expect_eq(info->device.kind, WIRE_DEVICE_CPU);
    cr_expect_not(info->device.has_uuid);
    cr_expect_str_eq(info->device.name, client.session.device.name);
    cr_expect_eq(info->mps, WIRE_MPS_UNKNOWN);
    cr_expect_str_eq(info->driver, "");
    cr_expect_eq(info->families, 1);
    cr_expect_str_eq(info->family[0], "cpu");
    cr_expect_eq((pid_t)info->pid, daemon_.pid);
    cr_expect_eq(info->limits.in_flight, CREDIT);
    cr_expect_eq(info->max_sessions, 4);
    cr_expect_eq(info->max_sessions_per_uid, 4);
    cr_expect_geq(info->region_bytes_per_uid, info->limits.region_bytes);
    cr_expect_eq(info->major, WIRE_MAJOR);
    cr_expect_eq(info->minor, WIRE_MINOR);
    cr_expect_neq(info->version[0], 0);
}

Test(request, whose_handles_are_taken_is_told)
{
    static const char *const any[] = {"--threads=1", "--ipc-users=any", NULL};
    struct wire_request request = {.kind = WIRE_GET_INFO};
    struct wire_reply reply;
    cr_assert(raw_call(&client, &request, &reply));
    cr_expect(reply.info.one_ipc_user);
    raw_close(&client);
    (void)daemon_end(&daemon_, SIGTERM);
    cr_assert(daemon_restart(&daemon_, any));
    cr_assert(raw_open(&client, daemon_.directory));
    cr_assert(raw_call(&client, &request, &reply));
    cr_expect_eq(reply.kind, WIRE_REPLY_INFO);
    cr_expect_not(reply.info.one_ipc_user);
}

/* A limit that is not given fits the device, and the one that is given. */
Test(request, limits_of_bytes_fit_together)
{
    static const struct {
        const char *argument;
        uint64_t own;
        uint64_t per_uid;
    } cases[] = {
        {"--threads=1", 16, 64},
        {"--region-bytes=128G", 128, 128},
        {"--region-bytes=2G", 2, 64},
        {"--region-bytes-per-uid=8G", 8, 8},
        {"--region-bytes-per-uid=128G", 16, 128},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const given[] = {"--threads=1", cases[i].argument, NULL};
        struct wire_request request = {.kind = WIRE_GET_INFO};
        struct wire_reply reply;
        raw_close(&client);
        (void)daemon_end(&daemon_, SIGTERM);
        cr_assert(daemon_restart(&daemon_, given));
        cr_assert(raw_open(&client, daemon_.directory));
        cr_assert(raw_call(&client, &request, &reply));
        cr_expect_eq(reply.info.limits.region_bytes >> 30, cases[i].own, "%zu", i);
        cr_expect_eq(reply.info.region_bytes_per_uid >> 30, cases[i].per_uid, "%zu", i);
    }
}

Test(request, a_region_of_another_session_cannot_be_named)
{
    struct raw_client other;
    struct wire_request request;
    cr_assert(raw_open(&other, daemon_.directory));
    uint32_t region = raw_add_region(&other, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, 1, raw_add_plan(&client), region);
    expect_failure(&request, WIRE_NOT_FOUND, "no region");
    raw_close(&other);
}

Test(request, a_region_dropped_while_in_use_lasts_until_its_jobs_have_ended)
{
    struct wire_gate_request drop = {.kind = WIRE_GATE_DROP_REGION};
    struct wire_gate_reply dropped;
    struct wire_request request;
    struct wire_stats stats;
    enum wire_status status;
    uint32_t plan = raw_add_plan(&client);
    drop.region = raw_add_region(&client, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, 1, plan, drop.region);
    atomic_store(&client.page->lane[0].ready, 0); /* its inputs are not ready: it waits */
    cr_assert(raw_post(&client, &request) && raw_stats(&client, &stats));
    cr_assert(raw_gate_call(&client, &drop, NULL, 0, &dropped));
    cr_assert_eq(dropped.error.status, WIRE_OK);
    cr_assert(raw_stats(&client, &stats));
    cr_expect_eq(stats.session.in_flight, 1);
    cr_expect_eq(stats.session.region_bytes, RAW_REGION_BYTES);
    atomic_store(&client.page->lane[0].ready, 1);
    cr_assert(raw_wait(&client, 0, 1, &status));
    cr_expect_eq(status, WIRE_OK);
    cr_assert(raw_stats(&client, &stats));
    cr_expect_eq(stats.session.in_flight, 0);
    cr_expect_eq(stats.session.region_bytes, 0);
    cr_expect_eq(stats.session.regions, 0);
}

Test(request, what_is_past_the_credit_is_refused_and_credit_comes_back)
{
    struct wire_request request;
    struct wire_reply reply;
    enum wire_status status;
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, CREDIT, plan, region);
    atomic_store(&client.page->lane[0].ready, 0);
    cr_assert(raw_post(&client, &request));
    raw_submission(&client, &request, 1, 1, 1, plan, region);
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_RESOURCE_EXHAUSTED, "past its credit of 8");
    atomic_store(&client.page->lane[0].ready, CREDIT);
    cr_assert(raw_wait(&client, 0, CREDIT, &status));
    /* Credit counts from the moment that the page says done: over and over, without a pause. */
    for (uint32_t round = 1; round <= 200; round++) {
        raw_submission(&client, &request, 0, round * CREDIT + 1, CREDIT, plan, region);
        cr_assert(raw_post(&client, &request));
        cr_assert(raw_wait(&client, 0, (round + 1) * CREDIT, &status));
        cr_assert_eq(status, WIRE_OK);
    }
    cr_expect_not(raw_receive(&client, &reply, 0), "%s", reply.error.detail);
}

Test(request, plans_are_judged_and_capped)
{
    struct wire_request request = {.kind = WIRE_ADD_PLAN};
    struct wire_reply reply;
    raw_plan(&request.plan);
    request.plan.tensor[1].shape[3] = 9;
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_INVALID_ARGUMENT, "k");
    raw_plan(&request.plan);
    for (int t = 0; t < 4; t++) {
        request.plan.tensor[t].shape[3] = 257;
    }
    cr_assert(raw_call(&client, &request, &reply));
    cr_expect_neq(reply.error.status, WIRE_OK);
    cr_expect_neq(reply.error.detail[0], '\0');
    for (uint32_t i = 1; i <= 3; i++) {
        cr_expect_eq(raw_add_plan(&client), i);
    }
    raw_plan(&request.plan);
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_RESOURCE_EXHAUSTED, "3 plans");
    request = (struct wire_request){.kind = WIRE_DROP_PLAN};
    request.drop_plan = 2;
    cr_assert(raw_call(&client, &request, &reply));
    cr_expect_eq(reply.error.status, WIRE_OK);
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_NOT_FOUND, "no plan 2");
    cr_expect_eq(raw_add_plan(&client), 2);
}

Test(request, a_request_that_can_never_fit_is_told_both_numbers)
{
    struct wire_request request = {.kind = WIRE_ADD_PLAN};
    struct wire_reply reply;
    raw_plan(&request.plan);
    request.plan.direction = WIRE_BACKWARD;

    static const enum wire_role roles[] = {
        WIRE_Q, WIRE_K, WIRE_V, WIRE_OUT, WIRE_LSE, WIRE_DOUT, WIRE_DQ, WIRE_DK, WIRE_DV};

    request.plan.tensors = 9;
    for (uint32_t t = 0; t < 9; t++) {
        struct wire_tensor *tensor = &request.plan.tensor[t];
        bool lse = roles[t] == WIRE_LSE;
        *tensor = (struct wire_tensor){.role = roles[t], .dtype = WIRE_FP32, .dims = lse ? 3 : 4};
        uint64_t rows = 1 << 20;
        uint64_t shape[] = {1, lse ? 1 : rows, lse ? rows : 1, 8};
        int64_t strides[] = {(int64_t)rows * 8, lse ? (int64_t)rows : 8, lse ? 1 : 8, 1};
        memcpy(tensor->shape, shape, tensor->dims * sizeof *shape);
        memcpy(tensor->strides, strides, tensor->dims * sizeof *strides);
    }
    cr_assert(raw_call(&client, &request, &reply));
    expect(&reply.error, WIRE_RESOURCE_EXHAUSTED, "65536");
}

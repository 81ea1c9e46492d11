/* What a stream may rely on: order, results without a wait, refusals that leave the stream usable. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "chain.h"
#include "check.h"
#include "device.h"
#include "service.h"

#define MS UINT64_C(1000000)

static const struct set_extents usual = {2, 256, 4, 64};
static const struct set_extents small = {1, 64, 2, 64};

static double seconds_since(uint64_t begin)
{
    return (double)(device_now_ns() - begin) * 1e-9;
}

static cudaStream_t new_stream(void)
{
    cudaStream_t stream = NULL;
    CU(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static void expect_agreement(const struct chain *chain)
{
    const int64_t *shape = chain->set->shape;
    const struct set_extents extents = {shape[0], shape[1], shape[2], shape[3]};
    enum attnd_status status = ATTND_OK;
    struct set other;
    set_alloc(&other, &extents);
    bool same = chain_agrees(chain, &other, &status);
    OK(status);
    CHECK(same);
    set_free(&other);
}

static void chain_of_a_thousand(void)
{
    struct daemon daemon;
    struct set set;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&set, &usual);
    struct chain chain = {.client = client, .set = &set, .stream = new_stream(), .calls = 1000};
    for (uint32_t i = 0; i < 4; i++) {
        chain.seed = i;
        chain.backward = i % 2 == 0;
        chain.stream = i == 3 ? NULL : chain.stream; /* the default stream is one like others */
        expect_agreement(&chain);
    }
    CHECK(service_stats(client).client.failed == 0);
    attnd_close(client);
    service_stop(&daemon);
}

/* More streams than lanes, all at once; each is as if it were alone. */
static void many_streams(void)
{
    enum { STREAMS = 40, CALLS = 20 };
    static struct set sets[STREAMS];
    static struct set alone;
    struct daemon daemon;
    cudaStream_t streams[STREAMS];
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&alone, &usual);
    for (uint32_t i = 0; i < STREAMS; i++) {
        streams[i] = new_stream();
        set_alloc(&sets[i], &usual);
    }
    for (uint32_t i = 0; i < STREAMS; i++) {
        const struct chain chain = {client, &sets[i], streams[i], i, CALLS, true, false};
        OK(chain_enqueue(&chain));
    }
    CU(cudaDeviceSynchronize());
    for (uint32_t i = 0; i < STREAMS; i++) {
        const struct chain chain = {client, &alone, streams[i], i, CALLS, true, true};
        OK(chain_enqueue(&chain));
        CU(cudaDeviceSynchronize());
        CHECK(chain_is_sound(&alone));
        CHECK(work_differences(sets[i].memory, alone.memory, 3 * alone.pitch) == 0);
    }
    attnd_close(client);
    service_stop(&daemon);
}

static void arrays(void)
{
    enum { COUNT = 32 };
    static struct set sets[COUNT];
    static struct set alone;
    struct attnd_request requests[COUNT];
    struct daemon daemon;
    attnd_ticket ticket = 0;
    cudaStream_t stream = new_stream();
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&alone, &small);
    for (uint32_t i = 0; i < COUNT; i++) {
        struct set *set = &sets[i];
        set_alloc(set, &small);
        set_fill(set, stream, i);
        requests[i] = (struct attnd_request){.size = sizeof requests[i],
            .direction = ATTND_FORWARD,
            .options = &set->options,
            .q = &set->tensor[SET_Q],
            .k = &set->tensor[SET_K],
            .v = &set->tensor[SET_V],
            .out = &set->tensor[SET_OUT],
            .lse = &set->tensor[SET_LSE]};
    }
    OK(attnd_submit(client, stream, requests, COUNT, &ticket));
    CU(cudaStreamSynchronize(stream)); /* nobody has asked for the ticket */
    for (uint32_t i = 0; i < COUNT; i++) {
        attnd_ticket lone = 0;
        set_fill(&alone, stream, i);
        OK(set_forward(&alone, client, stream, &lone));
        OK(attnd_wait(client, lone, ATTND_FOREVER));
        CHECK(work_differences(sets[i].memory, alone.memory, SET_ALL * alone.pitch) == 0);
    }
    OK(attnd_wait(client, ticket, 0));
    attnd_close(client);
    service_stop(&daemon);
}

/* The call returns at once and starts behind what the stream does. */
static void calls_do_not_block(void)
{
    struct daemon daemon;
    struct set set;
    attnd_ticket ticket = 0;
    cudaStream_t stream = new_stream();
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&set, &usual);
    const struct chain chain = {client, &set, stream, 1, 2, true, true};
    OK(chain_enqueue(&chain)); /* everything is registered now */
    work_spin(stream, 400 * MS);
    set_fill(&set, stream, 2); /* until here the inputs are others */
    uint64_t begin = device_now_ns();
    OK(set_forward(&set, client, stream, &ticket));
    uint64_t took = device_now_ns() - begin;
    CHECK(took < 100 * MS);
    REFUSED(attnd_wait(client, ticket, 0), ATTND_TIMED_OUT);
    REFUSED(attnd_wait(client, ticket, (int64_t)(50 * MS)), ATTND_TIMED_OUT);
    CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    CU(cudaStreamSynchronize(stream));
    struct set again;
    set_alloc(&again, &usual);
    set_fill(&again, stream, 2);
    OK(set_forward(&again, client, stream, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    CHECK(work_differences(set.memory, again.memory, SET_ALL * set.pitch) == 0);
    (void)printf("  the call took %.0f us\n", (double)took * 1e-3);
    attnd_close(client);
    service_stop(&daemon);
}

/* A stream that is stuck holds up no other of the same client. Nothing here may free memory, for which
 * CUDA waits until the device is idle. */
static void stuck_stream(void)
{
    struct daemon daemon;
    struct set stuck;
    struct set sets[2];
    cudaStream_t slow = new_stream();
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&stuck, &usual);
    set_alloc(&sets[0], &usual);
    set_alloc(&sets[1], &usual);
    struct chain chain = {client, &sets[0], new_stream(), 1, 20, true, false};
    expect_agreement(&chain);
    set_fill(&stuck, slow, 1);
    CU(cudaDeviceSynchronize());
    work_spin(slow, 8000 * MS);
    OK(set_forward(&stuck, client, slow, NULL));
    uint64_t begin = device_now_ns();
    OK(chain_enqueue(&chain));
    CU(cudaStreamSynchronize(chain.stream));
    double took = seconds_since(begin);
    (void)printf("  20 calls took %.2f s beside a kernel that does not end\n", took);
    CHECK(took < 6);
    CHECK(cudaStreamQuery(slow) == cudaErrorNotReady);
    CU(cudaStreamSynchronize(slow));
    chain.set = &sets[1];
    chain.lockstep = true;
    OK(chain_enqueue(&chain));
    CU(cudaDeviceSynchronize());
    CHECK(work_differences(sets[0].memory, sets[1].memory, 3 * sets[0].pitch) == 0);
    attnd_close(client);
    service_stop(&daemon);
}

static void captures_are_refused(void)
{
    struct daemon daemon;
    struct set set;
    cudaGraph_t graph = NULL;
    cudaStream_t stream = new_stream();
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&set, &usual);
    const struct chain chain = {client, &set, stream, 1, 20, true, false};
    expect_agreement(&chain);
    CU(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enum attnd_status status = set_forward(&set, client, stream, NULL);
    CHECK(status == ATTND_UNSUPPORTED || status == ATTND_INVALID_ARGUMENT);
    (void)printf("  %s\n", attnd_message());
    CU(cudaStreamEndCapture(stream, &graph)); /* still valid */
    CU(cudaGraphDestroy(graph));
    expect_agreement(&chain);
    attnd_close(client);
    service_stop(&daemon);
}

/* A call that does not fit fails when it is its turn or before; the stream goes on, told so. */
static void failed_calls_poison_their_lane(void)
{
    struct daemon daemon;
    struct set set;
    attnd_ticket ticket = 0;
    int ended = 0;
    cudaStream_t stream = new_stream();
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    struct process busy = service_trainer(&daemon, "drain", 1, 40);
    set_alloc(&set, &usual);
    const struct chain chain = {client, &set, stream, 1, 20, true, false};
    expect_agreement(&chain);
    service_say(&busy); /* from now on there is work that the daemon will finish */
    uint64_t begin = device_now_ns();
    CHECK(kill(daemon.pid, SIGTERM) == 0);
    enum attnd_status status = ATTND_OK;
    for (int tries = 0; tries < 200 && status == ATTND_OK; tries++) {
        device_sleep_ms(5);
        set_fill(&set, stream, 3);
        status = set_forward(&set, client, stream, &ticket);
        status = status == ATTND_OK ? attnd_wait(client, ticket, ATTND_FOREVER) : status;
    }
    REFUSED(status, ATTND_DRAINING);
    status = set_forward(&set, client, stream, &ticket);
    status = status == ATTND_OK ? attnd_wait(client, ticket, ATTND_FOREVER) : status;
    CHECK(status == ATTND_LANE_POISONED || status == ATTND_DRAINING);
    (void)printf("  after a failure: %s\n", attnd_status_name(status));
    OK(attnd_lane_reset(client, stream));
    status = set_forward(&set, client, stream, &ticket);
    status = status == ATTND_OK ? attnd_wait(client, ticket, ATTND_FOREVER) : status;
    REFUSED(status, ATTND_DRAINING);
    CU(cudaStreamSynchronize(stream)); /* nothing hangs in it */
    double streams = seconds_since(begin);
    service_succeed(&busy, "the trainer with accepted calls");
    double trainer = seconds_since(begin);
    attnd_close(client);
    double closed = seconds_since(begin);
    CHECK(waitpid(daemon.pid, &ended, 0) == daemon.pid && ended == 0);
    (void)printf(
        "  after SIGTERM: refused and streams free %.2f s, trainer %.2f s, closed %.2f s, daemon "
        "%.2f s\n",
        streams, trainer, closed, seconds_since(begin));
    daemon.pid = 0;
    service_stop(&daemon);
}

const struct service_test service_order_tests[] = {
    {"order_chain_of_a_thousand", chain_of_a_thousand, false},
    {"order_many_streams", many_streams, false},
    {"order_arrays", arrays, false},
    {"order_calls_do_not_block", calls_do_not_block, false},
    {"order_stuck_stream", stuck_stream, false},
    {"order_captures_are_refused", captures_are_refused, false},
    {"order_failed_calls_poison_their_lane", failed_calls_poison_their_lane, false},
    {NULL, NULL, false},
};

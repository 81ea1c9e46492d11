/* libattnd in the order of CUDA streams. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "client.h"
#include "clock.h"
#include "gpu_case.h"
#include "handle.h"

static void start(void)
{
    gpu_start(NULL);
}

TestSuite(client_gpu_stream, .init = start, .fini = gpu_stop, .timeout = 60);

static void *stream_of(int ordinal, bool primary)
{
    void *popped;
    (void)cuCtxPushCurrent_v2(fake_cuda_context(ordinal, primary));
    void *stream = fake_cuda_stream();
    (void)cuCtxPopCurrent_v2(&popped);
    return stream;
}

/* ---- Order -------------------------------------------------------------------------------------- */

/* Kernels of the program's own: the inputs come late, and what comes out is looked at at once. */
struct late {
    struct client_case *call;
    struct gpu_gate *gate;
    unsigned char *inputs;
    bool equal;
};

static void make_inputs(void *context)
{
    struct late *late = context;
    gpu_hold(late->gate);
    memcpy(late->call->memory, late->inputs, late->call->bytes);
}

static void look_at_outputs(void *context)
{
    struct late *late = context;
    late->equal = client_case_equal(late->call);
}

Test(client_gpu_stream, a_call_returns_at_once_and_the_stream_goes_on_with_its_result)
{
    static struct gpu_gate gate;
    struct client_case *made = gpu_call(NULL);
    struct late late = {.call = made, .gate = &gate, .inputs = malloc(made->bytes)};
    void *stream = fake_cuda_stream();
    attnd_ticket ticket;
    memcpy(late.inputs, made->memory, made->bytes);
    memset(made->memory, 0, made->bytes);
    fake_cuda_launch(stream, make_inputs, &late);
    OK(gpu_submit(made, stream, &ticket));
    fake_cuda_launch(stream, look_at_outputs, &late);
    cr_assert(gpu_says(attnd_wait(gpu_client, ticket, 50000000), ATTND_TIMED_OUT, "not ended yet"));
    cr_expect_eq(((unsigned char *)made->tensor[WIRE_OUT].data)[0], 0, "it waits for the inputs");
    atomic_store(&gate.open, true);
    OK(attnd_wait(gpu_client, ticket, ATTND_FOREVER));
    fake_cuda_synchronize(stream);
    cr_expect(late.equal);
    free(late.inputs);
    gpu_finish_call(made, true);
}

#define CHAIN 300

/* out becomes the next q. */
static void feed_back(void *context)
{
    struct client_case *made = context;
    size_t bytes = made->offset[WIRE_K] - made->offset[WIRE_Q];
    memcpy(made->tensor[WIRE_Q].data, made->tensor[WIRE_OUT].data, bytes);
}

static void feed_twin(struct client_case *made)
{
    size_t bytes = made->offset[WIRE_K] - made->offset[WIRE_Q];
    memcpy(client_case_twin(made, WIRE_Q), client_case_twin(made, WIRE_OUT), bytes);
}

Test(client_gpu_stream, a_chain_of_calls_and_kernels_is_computed_in_order)
{
    static struct gpu_gate gate;
    struct client_case *made = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    fake_cuda_launch(stream, gpu_hold, &gate);
    for (int i = 0; i < CHAIN; i++) {
        if (i == PAGE_RESULTS / 2) {
            atomic_store(&gate.open, true); /* with more than that the next calls have to wait */
        }
        OK(gpu_submit(made, stream, NULL));
        fake_cuda_launch(stream, feed_back, made);
    }
    fake_cuda_synchronize(stream);
    unsigned char *result = malloc(made->bytes);
    memcpy(result, made->memory, made->bytes);
    for (int i = 0; i < CHAIN; i++) {
        client_case_run(made);
        feed_twin(made);
    }
    cr_expect_eq(memcmp(result, made->twin, made->bytes), 0);
    free(result);
    gpu_finish_call(made, true);
}

Test(client_gpu_stream, the_members_of_an_array_end_together)
{
    struct attnd_request requests[32];
    struct client_case *made[32];
    void *stream = fake_cuda_stream();
    attnd_ticket ticket;
    for (int i = 0; i < 32; i++) {
        made[i] = gpu_call(NULL);
        requests[i] = made[i]->request;
    }
    for (int round = 0; round < 3; round++) {
        OK(attnd_submit(gpu_client, stream, requests, 32, &ticket));
    }
    fake_cuda_synchronize(stream);
    OK(attnd_wait(gpu_client, ticket, 0));
    for (int i = 0; i < 32; i++) {
        cr_expect(client_case_equal(made[i]), "%d", i);
        gpu_finish_call(made[i], true);
    }
}

Test(client_gpu_stream, more_streams_than_lanes_take_turns)
{
    struct client_case *made[40];
    void *stream[40];
    for (int i = 0; i < 40; i++) {
        made[i] = gpu_call(NULL);
        stream[i] = fake_cuda_stream();
    }
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 40; i++) {
            OK(gpu_submit(made[i], stream[i], NULL));
        }
    }
    for (int i = 0; i < 40; i++) {
        fake_cuda_synchronize(stream[i]);
        cr_expect(client_case_equal(made[i]), "%d", i);
        gpu_finish_call(made[i], true);
    }
}

/* ---- Room --------------------------------------------------------------------------------------- */

static void *open_later(void *gate)
{
    (void)usleep(100000);
    atomic_store(&((struct gpu_gate *)gate)->open, true);
    return NULL;
}

static void start_generous(void)
{
    gpu_start((const char *const[]){"--in-flight=200", NULL});
}

TestSuite(client_gpu_room, .init = start_generous, .fini = gpu_stop, .timeout = 60);

Test(client_gpu_room, a_full_stream_blocks_its_caller_and_no_other)
{
    static struct gpu_gate gate;
    pthread_t thread;
    struct client_case *made = gpu_call(NULL);
    struct client_case *other = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    fake_cuda_launch(stream, gpu_hold, &gate);
    int64_t begin = clock_now_ns();
    for (int i = 0; i < PAGE_RESULTS; i++) {
        OK(gpu_submit(made, stream, NULL));
    }
    cr_expect_lt(clock_now_ns() - begin, 5 * CLOCK_SECOND_NS);
    cr_expect_not(fake_cuda_is_idle(stream));
    gpu_run(other, NULL);
    cr_assert_eq(pthread_create(&thread, NULL, open_later, &gate), 0);
    OK(gpu_submit(made, stream, NULL));
    cr_expect(atomic_load(&gate.open), "it had to wait");
    (void)pthread_join(thread, NULL);
    fake_cuda_synchronize(stream);
    cr_expect(client_case_equal(made));
    gpu_finish_call(made, true);
    gpu_finish_call(other, true);
}

/* ---- Which stream ------------------------------------------------------------------------------- */

static void *run_without_context(void *context)
{
    void *current = context;
    void *popped;
    cr_expect_eq(cuCtxGetCurrent(&current), 0);
    cr_expect_null(current);
    OK(gpu_submit(context, NULL, NULL));
    (void)cuCtxGetCurrent(&current);
    cr_expect_null(current, "it is as it was");
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    fake_cuda_synchronize(NULL);
    (void)cuCtxPopCurrent_v2(&popped);
    return NULL;
}

Test(client_gpu_stream, default_streams_are_streams)
{
    pthread_t thread;
    struct client_case *made = gpu_call(NULL);
    gpu_run(made, NULL);
    gpu_run(made, (void *)1);
    gpu_run(made, (void *)2);
    cr_assert_eq(pthread_create(&thread, NULL, run_without_context, made), 0);
    (void)pthread_join(thread, NULL);
    cr_expect(client_case_equal(made));
    gpu_finish_call(made, true);
}

Test(client_gpu_stream, a_client_has_streams_of_one_context)
{
    struct client_case *made = gpu_call(NULL);
    void *elsewhere = stream_of(1, true);
    void *stream = stream_of(0, true);
    void *other = stream_of(0, false);
    cr_assert(gpu_says(gpu_submit(made, elsewhere, NULL), ATTND_INVALID_ARGUMENT,
        "stream is of GPU-5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a01"));
    gpu_run(made, stream);
    cr_assert(
        gpu_says(gpu_submit(made, other, NULL), ATTND_INVALID_ARGUMENT, "another CUDA context"));
    cr_assert(gpu_says(
        gpu_submit(made, elsewhere, NULL), ATTND_INVALID_ARGUMENT, "another CUDA context"));
    (void)cuCtxPushCurrent_v2(fake_cuda_context(1, true));
    gpu_run(made, stream); /* whatever is current */
    gpu_finish_call(made, true);
}

Test(client_gpu_stream, a_stream_that_is_captured_is_refused_and_not_disturbed)
{
    struct client_case *made = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    fake_cuda_capture(stream, true);
    cr_assert(
        gpu_says(gpu_submit(made, stream, NULL), ATTND_UNSUPPORTED, "stream is being captured"));
    cr_expect_not(fake_cuda_capture_is_spoilt(stream));
    cr_expect_eq(gpu_regions(), 0);
    cr_expect_eq(fake_cuda_registered(), 0);
    struct attnd_stats stats = {.size = sizeof stats};
    OK(attnd_get_stats(gpu_client, &stats));
    cr_expect_eq(stats.client.plans, 0);
    fake_cuda_capture(stream, false);
    gpu_run(made, stream);
    fake_cuda_capture(stream, true);
    cr_assert(gpu_says(attnd_lane_reset(gpu_client, stream), ATTND_UNSUPPORTED, "being captured"));
    cr_expect_not(fake_cuda_capture_is_spoilt(stream));
    fake_cuda_capture(stream, false);
    OK(attnd_lane_reset(gpu_client, stream));
    gpu_finish_call(made, true);
}

/* ---- Failures ----------------------------------------------------------------------------------- */

static struct client_case *faulty_call(void)
{
    struct client_case *made = gpu_call(NULL);
    made->options.dropout_p = 0.5F;
    made->options.dropout_offset = FAKE_FAULT_OFFSET;
    return made;
}

Test(client_gpu_stream, behind_a_failure_nothing_runs_until_the_stream_is_reset)
{
    static struct gpu_gate gate;
    struct client_case *faulty = faulty_call();
    struct client_case *made = gpu_call(NULL);
    struct client_case *beside = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    attnd_ticket first;
    attnd_ticket second;
    fake_cuda_launch(stream, gpu_hold, &gate);
    OK(gpu_submit(faulty, stream, &first));
    OK(gpu_submit(made, stream, &second));
    atomic_store(&gate.open, true);
    fake_cuda_synchronize(stream);
    cr_expect_eq(((uint16_t *)made->tensor[WIRE_OUT].data)[0], 0xA5A5, "it did not run");
    cr_assert(gpu_says(attnd_wait(gpu_client, first, ATTND_FOREVER), ATTND_DEVICE_FAULT, ""));
    char reason[512];
    (void)snprintf(reason, sizeof reason, "%.200s", attnd_message());
    cr_assert(
        gpu_says(attnd_wait(gpu_client, second, ATTND_FOREVER), ATTND_LANE_POISONED, "earlier"));
    cr_assert(gpu_says(gpu_submit(made, stream, NULL), ATTND_LANE_POISONED, reason));
    gpu_run(beside, NULL);
    cr_assert(gpu_says(gpu_submit(made, stream, NULL), ATTND_LANE_POISONED, "attnd_lane_reset()"));
    OK(attnd_lane_reset(gpu_client, stream));
    gpu_run(made, stream);
    OK(attnd_lane_reset(gpu_client, stream));
    cr_assert(gpu_says(attnd_wait(gpu_client, first, 0), ATTND_DEVICE_FAULT, ""));
    gpu_finish_call(faulty, true);
    gpu_finish_call(made, true);
    gpu_finish_call(beside, true);
}

Test(client_gpu_stream, a_failure_of_an_array_names_its_member)
{
    struct client_case *faulty = faulty_call();
    struct client_case *made = gpu_call(NULL);
    struct attnd_request requests[] = {made->request, faulty->request, made->request};
    DLTensor out = made->tensor[WIRE_OUT];
    out.data = fake_cuda_alloc(0, FAKE_MALLOC, made->bytes);
    requests[2].out = &out;
    requests[2].lse = NULL;
    attnd_ticket ticket;
    OK(attnd_submit(gpu_client, NULL, requests, 3, &ticket));
    cr_assert(
        gpu_says(attnd_wait(gpu_client, ticket, ATTND_FOREVER), ATTND_DEVICE_FAULT, "requests["));
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_LANE_POISONED, ""));
    gpu_finish_call(faulty, true);
    gpu_finish_call(made, true);
}

static void move_to_host(struct client_case *made)
{
    client_case_place(made, malloc(made->bytes));
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        made->tensor[role].device = (DLDevice){kDLCPU, 0};
    }
}

Test(client_gpu_stream, host_calls_are_never_poisoned)
{
    struct client_case *faulty = faulty_call();
    move_to_host(faulty);
    for (int i = 0; i < 3; i++) {
        attnd_ticket ticket;
        OK(gpu_submit(faulty, NULL, &ticket));
        cr_assert(gpu_says(attnd_wait(gpu_client, ticket, 0), ATTND_DEVICE_FAULT, ""));
    }
    free(faulty->memory);
    gpu_finish_call(faulty, false);
}

/* The client's messages go nowhere through a socket that is not connected. */
static void exchange_socket(void **socket)
{
    struct rpc *rpc = &gpu_client->rpc;
    (void)pthread_mutex_lock(&rpc->mutex);
    void *before = rpc->socket;
    rpc->socket = *socket;
    *socket = before;
    (void)pthread_mutex_unlock(&rpc->mutex);
}

Test(client_gpu_stream, a_host_call_that_could_not_be_sent_makes_no_stream_ready)
{
    struct client_case *host = gpu_call(NULL);
    void *unconnected = zmq_socket(gpu_client->rpc.context, ZMQ_DEALER);
    attnd_ticket ticket;
    move_to_host(host);
    OK(gpu_submit(host, NULL, &ticket)); /* the daemon knows the plan from now on */
    OK(attnd_wait(gpu_client, ticket, ATTND_FOREVER));
    gpu_client->timeout_ns = CLOCK_SECOND_NS / 20;
    exchange_socket(&unconnected);
    cr_assert(gpu_says(gpu_submit(host, NULL, NULL), ATTND_TIMED_OUT, "took no message"));
    exchange_socket(&unconnected);
    gpu_client->timeout_ns = 10 * CLOCK_SECOND_NS;
    (void)zmq_close(unconnected);
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        cr_expect_eq(gpu_client->page->lane[lane].ready,
            (uint32_t)atomic_load(&gpu_client->lanes.lane[lane].sent));
    }
    free(host->memory);
    gpu_finish_call(host, false);
}

Test(client_gpu_stream, a_stream_that_takes_no_work_holds_up_nobody)
{
    static struct gpu_gate gate;
    pthread_t thread;
    struct client_case *made = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    attnd_ticket ticket;
    gpu_run(made, stream);
    fake_cuda_launch(stream, gpu_hold, &gate);
    OK(gpu_submit(made, stream, &ticket));
    cr_assert_eq(pthread_create(&thread, NULL, open_later, &gate), 0);
    fake_cuda_fail_next(DRIVER_ILLEGAL_ADDRESS);
    cr_assert(gpu_says(gpu_submit(made, stream, NULL), ATTND_DEVICE_FAULT,
        "stream takes no work: CUDA says CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
    cr_expect(atomic_load(&gate.open), "the request before it did not get its turn early");
    OK(attnd_wait(gpu_client, ticket, 0));
    (void)pthread_join(thread, NULL);
    gpu_run(made, stream);
    gpu_finish_call(made, true);
}

Test(client_gpu_stream, when_the_programs_own_kernels_fail_nobody_waits_for_ever)
{
    static struct gpu_gate gate;
    struct client_case *made = gpu_call(NULL);
    struct client_case *host = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    attnd_ticket good;
    attnd_ticket ticket;
    OK(gpu_submit(made, stream, &good));
    OK(attnd_wait(gpu_client, good, ATTND_FOREVER));
    fake_cuda_launch(stream, gpu_hold, &gate);
    for (int i = 0; i < PAGE_RESULTS; i++) {
        OK(gpu_submit(made, stream, &ticket));
    }
    fake_cuda_break(fake_cuda_context(0, true));
    cr_assert(gpu_says(attnd_wait(gpu_client, ticket, ATTND_FOREVER), ATTND_DEVICE_FAULT,
        "the CUDA context of the stream failed"));
    OK(attnd_wait(gpu_client, good, 0));
    cr_assert(gpu_says(gpu_submit(made, stream, NULL), ATTND_DEVICE_FAULT,
        "stream cannot be used: CUDA says CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
    move_to_host(host);
    for (int i = 0; i < PAGE_RESULTS; i++) {
        OK(gpu_submit(host, NULL, &ticket));
        OK(attnd_wait(gpu_client, ticket, 0));
    }
    free(host->memory);
    gpu_finish_call(host, false);
    gpu_finish_call(made, true);
}

static bool is_broken(void *unused)
{
    (void)unused;
    return atomic_load(&gpu_client->streams.broken);
}

Test(client_gpu_stream, a_failed_context_is_noticed_without_any_memory_of_it)
{
    struct client_case *made = gpu_call(NULL);
    void *own = made->tensor[WIRE_Q].data;
    made->tensor[WIRE_Q].data = fake_cuda_alloc(0, FAKE_POOL, made->bytes);
    cr_assert(gpu_says(
        gpu_submit(made, NULL, NULL), ATTND_UNSUPPORTED_MEMORY, "q lies in a memory pool"));
    made->tensor[WIRE_Q].data = own;
    cr_expect_eq(gpu_regions(), 0);
    fake_cuda_break(fake_cuda_context(0, true));
    cr_expect(gpu_eventually(is_broken, NULL));
    gpu_finish_call(made, true);
}

/* ---- Finding the daemon ------------------------------------------------------------------------- */

static enum wire_device_kind kind_found(const char *root)
{
    struct attnd_open_options options = {
        .size = sizeof options, .name = "test", .timeout_ns = 10 * CLOCK_SECOND_NS};
    struct attnd *found = NULL;
    enum wire_device_kind kind = (enum wire_device_kind)0;
    if (client_open_found(root, &options, &found) == ATTND_OK) {
        kind = found->session.device.kind;
    }
    attnd_close(found);
    return kind;
}

Test(client_gpu_stream, the_daemon_of_the_current_device_is_found)
{
    char root[] = "/tmp/attnd-root-XXXXXX";
    char path[2][64];
    void *popped;
    cr_assert_not_null(mkdtemp(root));
    (void)snprintf(path[0], sizeof path[0], "%s/0", root);
    (void)snprintf(path[1], sizeof path[1], "%s/gone", root);
    cr_expect_eq(kind_found(root), 0);
    cr_expect(strstr(attnd_message(), "cpu/gate.sock does not exist"), "%s", attnd_message());
    cr_assert_eq(symlink("/nowhere", path[1]), 0);
    cr_assert_eq(symlink(gpu_daemon.directory, path[0]), 0);
    cr_expect_eq(kind_found(root), WIRE_DEVICE_CUDA);
    (void)cuCtxPushCurrent_v2(fake_cuda_context(1, true));
    cr_expect_eq(kind_found(root), 0, "it is another device's");
    (void)cuCtxPopCurrent_v2(&popped);
    (void)cuCtxPopCurrent_v2(&popped);
    cr_expect_eq(kind_found(root), 0, "no device is current");
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(unlink(path[i]), 0);
    }
    cr_expect_eq(rmdir(root), 0);
}

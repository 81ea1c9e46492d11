/* libattnd when the daemon of its device has gone: streams go on, everybody is told, nothing hangs. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "client.h"
#include "clock.h"
#include "codec.h"
#include "driver_abi.h"
#include "gpu_case.h"

#define SECONDS CLOCK_SECOND_NS

static void start(void)
{
    gpu_start(NULL);
}

static void stop(void)
{
    cr_expect(daemon_stop(&gpu_daemon));
}

TestSuite(client_gpu_loss, .init = start, .fini = stop, .timeout = 60);

static void kill_daemon(void)
{
    (void)daemon_end(&gpu_daemon, SIGKILL);
}

static bool is_idle(void *stream)
{
    return fake_cuda_is_idle(stream);
}

static bool is_lost(void *unused)
{
    (void)unused;
    return loss_happened(&gpu_client->loss);
}

/* In less time than a client has patience for by default. */
static void close_client(void)
{
    int64_t begin = clock_now_ns();
    attnd_close(gpu_client);
    cr_expect_lt(clock_now_ns() - begin, 4 * SECONDS);
}

Test(client_gpu_loss, streams_that_wait_for_it_go_on)
{
    struct client_case *made = gpu_call(NULL);
    void *stream[20];
    attnd_ticket ticket;
    attnd_ticket good;
    OK(gpu_submit(made, NULL, &good));
    OK(attnd_wait(gpu_client, good, ATTND_FOREVER));
    (void)kill(gpu_daemon.pid, SIGSTOP);
    for (int i = 0; i < 20; i++) {
        stream[i] = fake_cuda_stream();
        OK(gpu_submit(made, stream[i], &ticket));
        OK(gpu_submit(made, stream[i], &ticket));
    }
    (void)usleep(50000);
    cr_expect_not(fake_cuda_is_idle(stream[0]));
    kill_daemon();
    for (int i = 0; i < 20; i++) {
        cr_expect(gpu_eventually(is_idle, stream[i]), "stream %d waits", i);
    }
    cr_assert(gpu_says(attnd_wait(gpu_client, ticket, ATTND_FOREVER), ATTND_DISCONNECTED, "gone"));
    cr_assert(gpu_says(gpu_submit(made, stream[0], NULL), ATTND_DISCONNECTED, "gone"));
    cr_assert(gpu_says(attnd_trim(gpu_client, ATTND_FOREVER), ATTND_DISCONNECTED, "gone"));
    cr_assert(gpu_says(attnd_lane_reset(gpu_client, NULL), ATTND_DISCONNECTED, "gone"));
    OK(attnd_wait(gpu_client, good, 0));
    close_client();
    cr_expect_eq(fake_cuda_registered(), 0);
    gpu_finish_call(made, true);
}

Test(client_gpu_loss, a_stream_that_comes_late_does_not_wait_either)
{
    static struct gpu_gate gate;
    struct client_case *made = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    attnd_ticket ticket;
    fake_cuda_launch(stream, gpu_hold, &gate);
    OK(gpu_submit(made, stream, &ticket));
    kill_daemon();
    cr_assert(gpu_says(attnd_wait(gpu_client, ticket, ATTND_FOREVER), ATTND_DISCONNECTED, "gone"));
    /* The last words of the daemon's device. */
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        atomic_store(&gpu_client->page->lane[lane].done, 0);
    }
    (void)usleep(50000);
    atomic_store(&gate.open, true);
    cr_expect(gpu_eventually(is_idle, stream));
    close_client();
    cr_expect_eq(fake_cuda_registered(), 0);
    gpu_finish_call(made, true);
}

Test(client_gpu_loss, closing_does_not_wait_for_a_stream_for_ever)
{
    static struct gpu_gate gate;
    struct client_case *made = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    gpu_client->timeout_ns = SECONDS / 5;
    fake_cuda_launch(stream, gpu_hold, &gate);
    OK(gpu_submit(made, stream, NULL));
    kill_daemon();
    cr_expect(gpu_eventually(is_lost, NULL));
    close_client();
    atomic_store(&gate.open, true);
    cr_expect(gpu_eventually(is_idle, stream), "what it looks at is still there");
    gpu_finish_call(made, true);
}

struct late_call {
    struct client_case *call;
    void *stream;
    enum attnd_status status;
};

static bool has_failed(void *unused)
{
    (void)unused;
    return fake_cuda_has_failed();
}

static void *submit_late(void *context)
{
    struct late_call *late = context;
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    late->status = gpu_submit(late->call, late->stream, NULL);
    return NULL;
}

Test(client_gpu_loss, a_stream_that_took_no_work_may_still_look_at_the_page)
{
    static struct gpu_gate gate;
    struct late_call late = {.call = gpu_call(NULL), .stream = fake_cuda_stream()};
    pthread_t thread;
    gpu_client->timeout_ns = SECONDS / 5;
    gpu_run(late.call, late.stream);
    fake_cuda_launch(late.stream, gpu_hold, &gate);
    OK(gpu_submit(late.call, late.stream, NULL));
    fake_cuda_fail_next(DRIVER_ILLEGAL_ADDRESS);
    cr_assert_eq(pthread_create(&thread, NULL, submit_late, &late), 0);
    cr_expect(gpu_eventually(has_failed, NULL));
    (void)usleep(50000); /* it waits for the stream by now */
    kill_daemon();
    (void)pthread_join(thread, NULL);
    cr_expect_eq(late.status, ATTND_DEVICE_FAULT, "%s", attnd_status_name(late.status));
    close_client();
    atomic_store(&gate.open, true);
    cr_expect(gpu_eventually(is_idle, late.stream), "what it looks at is still there");
    gpu_finish_call(late.call, true);
}

/* A stream that waits for a daemon which is there and does nothing. */
static void *wait_for_sleeper(struct client_case *made, attnd_ticket *ticket)
{
    void *stream = fake_cuda_stream();
    gpu_run(made, stream);
    (void)kill(gpu_daemon.pid, SIGSTOP);
    OK(gpu_submit(made, stream, ticket));
    (void)usleep(50000);
    cr_expect_not(fake_cuda_is_idle(stream));
    return stream;
}

static void expect_release(void *stream, attnd_ticket ticket)
{
    cr_expect(gpu_eventually(is_idle, stream));
    cr_assert(
        gpu_says(attnd_wait(gpu_client, ticket, ATTND_FOREVER), ATTND_PROTOCOL_ERROR, "be read"));
    (void)kill(gpu_daemon.pid, SIGCONT);
    close_client();
    cr_expect_eq(fake_cuda_registered(), 0);
}

/* As if the daemon had sent it on rpc.sock. Returns what is to be closed. */
static void *send_as_daemon(const void *bytes, size_t size)
{
    struct rpc *rpc = &gpu_client->rpc;
    void *other = zmq_socket(rpc->context, ZMQ_DEALER);
    (void)pthread_mutex_lock(&rpc->mutex);
    cr_assert_eq(zmq_bind(rpc->socket, "inproc://test"), 0);
    (void)pthread_mutex_unlock(&rpc->mutex);
    cr_assert_eq(zmq_connect(other, "inproc://test"), 0);
    cr_assert_eq(zmq_send(other, bytes, size, 0), (int)size);
    return other;
}

Test(client_gpu_loss, a_message_that_nobody_can_read_lets_streams_go)
{
    struct client_case *made = gpu_call(NULL);
    attnd_ticket ticket;
    void *stream = wait_for_sleeper(made, &ticket);
    void *other = send_as_daemon("\xFF", 1);
    cr_expect(gpu_eventually(is_idle, stream));
    (void)zmq_close(other); /* this is something that is noticed as well */
    expect_release(stream, ticket);
    gpu_finish_call(made, true);
}

Test(client_gpu_loss, a_refusal_of_messages_is_no_reason_to_try_again)
{
    struct client_case *made = gpu_call(NULL);
    uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];
    struct wire_reply reply = {.error = {.status = WIRE_AGAIN, .detail = "not now"}};
    gpu_run(made, NULL);
    void *other = send_as_daemon(bytes, codec_encode_reply(&reply, bytes, sizeof bytes));
    cr_expect(gpu_eventually(is_lost, NULL));
    (void)zmq_close(other);
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_PROTOCOL_ERROR, "not now"));
    close_client();
    gpu_finish_call(made, true);
}

Test(client_gpu_loss, an_answer_that_nobody_can_read_lets_streams_go)
{
    struct client_case *made = gpu_call(NULL);
    attnd_ticket ticket;
    int fd[2];
    void *memory;
    void *stream = wait_for_sleeper(made, &ticket);
    int session = dup(gpu_client->gate.fd);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fd), 0);
    cr_assert_eq(send(fd[1], "\xFF", 1, 0), 1);
    cr_assert_geq(dup2(fd[0], gpu_client->gate.fd), 0);
    (void)eventfd_write(gpu_client->watch.fd, 1); /* it looks at the new one from now on */
    (void)usleep(50000);
    cr_assert(gpu_says(attnd_alloc(gpu_client, 4096, &memory), ATTND_PROTOCOL_ERROR, "be read"));
    expect_release(stream, ticket);
    (void)close(session);
    (void)close(fd[0]);
    (void)close(fd[1]);
    gpu_finish_call(made, true);
}

static void *submit_all_the_time(void *context)
{
    void *stream = context;
    enum attnd_status status = ATTND_OK;
    struct client_case *made = gpu_call(NULL);
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    while (status == ATTND_OK) {
        status = gpu_submit(made, stream, NULL);
    }
    cr_expect_eq(status, ATTND_DISCONNECTED, "%s", attnd_message());
    gpu_finish_call(made, false);
    return NULL;
}

Test(client_gpu_loss, whoever_submits_meanwhile_is_told_and_waits_for_nothing)
{
    pthread_t thread[4];
    void *stream[4];
    for (int i = 0; i < 4; i++) {
        stream[i] = fake_cuda_stream();
        cr_assert_eq(pthread_create(&thread[i], NULL, submit_all_the_time, stream[i]), 0);
    }
    (void)usleep(200000);
    kill_daemon();
    for (int i = 0; i < 4; i++) {
        (void)pthread_join(thread[i], NULL);
        cr_expect(gpu_eventually(is_idle, stream[i]));
    }
    close_client();
    cr_expect_eq(fake_cuda_registered(), 0);
}

Test(client_gpu_loss, memory_that_is_freed_meanwhile_harms_nobody)
{
    struct client_case *made = gpu_call(NULL);
    gpu_run(made, NULL);
    kill_daemon();
    gpu_finish_call(made, true);
    (void)usleep(300000); /* the sweep looks several times */
    cr_expect(gpu_eventually(is_lost, NULL));
    made = gpu_call(NULL);
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_DISCONNECTED, ""));
    gpu_finish_call(made, true);
    close_client();
}

#define PIECES 8

static void *register_pieces(void *made)
{
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    cr_assert(
        gpu_says(gpu_submit(made, NULL, NULL), ATTND_DISCONNECTED, "requests[0]: the daemon has"));
    return NULL;
}

static bool are_exported(void *unused)
{
    (void)unused;
    return fake_cuda_exported() == PIECES;
}

Test(client_gpu_loss, pieces_on_their_way_do_not_wait_for_it)
{
    char *range = fake_cuda_reserve(PIECES);
    for (uint64_t i = 0; i < PIECES; i++) {
        fake_cuda_map(0, FAKE_MAPPED, range + i * FAKE_PIECE_BYTES);
    }
    struct client_case *first = gpu_call(range);
    struct client_case *made = gpu_call(range + (PIECES - 1) * FAKE_PIECE_BYTES);
    pthread_t thread;
    gpu_run(first, NULL);
    gpu_client->timeout_ns = 30 * SECONDS;
    (void)kill(gpu_daemon.pid, SIGSTOP);
    cr_assert_eq(pthread_create(&thread, NULL, register_pieces, made), 0);
    cr_expect(gpu_eventually(are_exported, NULL));
    int64_t begin = clock_now_ns();
    kill_daemon();
    (void)pthread_join(thread, NULL);
    cr_expect_lt(clock_now_ns() - begin, 10 * SECONDS);
    close_client();
    cr_expect_eq(fake_cuda_exported(), PIECES, "nothing is tried twice");
    gpu_finish_call(first, false);
    gpu_finish_call(made, false);
}

/* The connection of this process to the daemon's rpc.sock. */
static int find_rpc_connection(void)
{
    for (int fd = 0; fd < 1024; fd++) {
        struct sockaddr_un peer = {0};
        socklen_t size = sizeof peer;
        if (getpeername(fd, (struct sockaddr *)&peer, &size) == 0 && peer.sun_family == AF_UNIX &&
            strstr(peer.sun_path, "/rpc.sock")) {
            return fd;
        }
    }
    return -1;
}

Test(client_gpu_loss, a_lost_connection_for_requests_is_the_daemons_loss)
{
    struct client_case *made = gpu_call(NULL);
    struct attnd_stats stats = {.size = sizeof stats};
    attnd_ticket ticket;
    gpu_client->timeout_ns = 30 * SECONDS;
    void *stream = wait_for_sleeper(made, &ticket);
    int64_t begin = clock_now_ns();
    cr_assert_eq(shutdown(find_rpc_connection(), SHUT_RDWR), 0);
    cr_expect(gpu_eventually(is_idle, stream), "the stream waits");
    cr_assert(
        gpu_says(attnd_wait(gpu_client, ticket, ATTND_FOREVER), ATTND_DISCONNECTED, "rpc.sock"));
    cr_assert(gpu_says(attnd_get_stats(gpu_client, &stats), ATTND_DISCONNECTED, "rpc.sock"));
    cr_assert(gpu_says(gpu_submit(made, stream, NULL), ATTND_DISCONNECTED, "rpc.sock"));
    cr_expect_lt(clock_now_ns() - begin, 10 * SECONDS);
    (void)kill(gpu_daemon.pid, SIGCONT);
    close_client();
    cr_expect_eq(fake_cuda_registered(), 0);
    gpu_finish_call(made, true);
}

Test(client_gpu_loss, without_a_connection_for_requests_there_is_no_client)
{
    struct attnd_open_options options = {.size = sizeof options, .address = gpu_daemon.directory};
    struct attnd *client = NULL;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/rpc.sock", gpu_daemon.directory);
    cr_assert_eq(unlink(path), 0);
    cr_assert(gpu_says(
        attnd_open(&options, &client), ATTND_DISCONNECTED, "no connection to its rpc.sock"));
    cr_expect_null(client);
    close_client();
}

/* libattnd where the real daemon's limits or its time end: memory for copies, refusals that come late. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "block.h"
#include "client.h"
#include "client_set.h"
#include "clock.h"
#include "codec.h"
#include "daemon.h"

#define WHOLE (UINT64_C(1) << 20)

static struct daemon daemon_;
static struct attnd *client;

static void start(const char *const *arguments)
{
    cr_assert(daemon_start(&daemon_, arguments));
    client = client_open(&daemon_);
}

static void stop(void)
{
    attnd_close(client);
    cr_expect(daemon_stop(&daemon_));
}

TestSuite(client_limit, .fini = stop, .timeout = 30);

#define OK(call) cr_assert_eq((call), ATTND_OK, "%s", attnd_message())

static void expect_failure(enum attnd_status got, enum attnd_status status, const char *sentence)
{
    cr_expect_eq(got, status, "%s: %s", attnd_status_name(got), attnd_message());
    cr_expect(strstr(attnd_message(), sentence), "\"%s\" lacks \"%s\"", attnd_message(), sentence);
}

static void *acquire_patiently(void *unused)
{
    struct block_piece piece = {0};
    (void)unused;
    cr_expect_eq(block_acquire(client, WHOLE, true, &piece), ATTND_OK, "%s", attnd_message());
    block_release(client, &piece);
    return NULL;
}

Test(client_limit, who_waits_for_a_piece_holds_up_nobody_who_has_one)
{
    struct block_piece first = {0};
    struct block_piece second = {0};
    pthread_t patient;
    start((const char *const[]){"--max-regions=1", "--region-bytes=1M", NULL});
    cr_assert_eq(block_acquire(client, WHOLE, false, &first), ATTND_OK);
    cr_assert_eq(pthread_create(&patient, NULL, acquire_patiently, NULL), 0);
    (void)usleep(50000); /* it waits for our piece now */
    cr_expect_eq(block_acquire(client, 64, false, &second), ATTND_RESOURCE_EXHAUSTED);
    block_release(client, &first);
    cr_expect_eq(pthread_join(patient, NULL), 0);
}

Test(client_limit, doubles_of_more_bytes_than_can_be_counted_are_refused)
{
    int64_t queries[4] = {32, 0, 65536, 256};
    int64_t keys[4] = {32, INT64_C(1) << 31, 65536, 256}; /* 2^62 bytes, if they were compact */
    int64_t strides[4] = {0, 0, 0, 1};
    float row[256] = {0};
    DLTensor q = {.data = row,
        .device = {kDLCPU, 0},
        .ndim = 4,
        .dtype = {kDLFloat, 32, 1},
        .shape = queries};
    DLTensor k = q;
    k.shape = keys;
    k.strides = strides;
    struct attnd_request requests[2] = {{.size = sizeof requests[0], .direction = ATTND_FORWARD}};
    requests[0].q = requests[0].out = &q;
    requests[0].k = requests[0].v = &k;
    requests[1] = requests[0];
    start(NULL);
    expect_failure(attnd_submit(client, NULL, requests, 1, NULL), ATTND_RESOURCE_EXHAUSTED, "");
    expect_failure(
        attnd_submit(client, NULL, requests, 2, NULL), ATTND_RESOURCE_EXHAUSTED, "too large");
}

Test(client_limit, a_refusal_that_comes_too_late_harms_nobody)
{
    start((const char *const[]){"--workspace=1M", NULL});
    struct attnd *hasty = NULL;
    struct attnd_open_options options = {.size = sizeof options, .address = daemon_.directory};
    struct client_set vast;
    struct client_set small;
    attnd_ticket ticket;
    OK(attnd_open(&options, &hasty));
    client_set_alloc(&vast, hasty, 1, 40000, 16, 8);
    client_set_alloc(&small, hasty, 1, 16, 1, 8);
    const int64_t patience = hasty->timeout_ns;
    cr_assert_eq(kill(daemon_.pid, SIGSTOP), 0);
    hasty->timeout_ns = CLOCK_SECOND_NS / 2;
    expect_failure(
        client_set_backward(&vast, hasty, NULL, NULL, &ticket), ATTND_TIMED_OUT, "0.500 s");
    hasty->timeout_ns = patience;
    cr_assert_eq(kill(daemon_.pid, SIGCONT), 0);
    (void)client_stats(hasty); /* behind it */
    (void)usleep(50000);
    OK(client_set_forward(&small, hasty, NULL, NULL, &ticket));
    OK(attnd_wait(hasty, ticket, ATTND_FOREVER));
    expect_failure(client_set_backward(&vast, hasty, NULL, NULL, &ticket), ATTND_RESOURCE_EXHAUSTED,
        "1048576");
    attnd_close(hasty);
}

/* ---- A daemon that makes no sense --------------------------------------------------------------- */

#define PACKET_BYTES 1024

/* Answers the first who comes with a session in which nothing may be asked for. */
static void *serve_nothing(void *listener)
{
    uint8_t packet[PACKET_BYTES];
    struct wire_gate_request request = {0};
    struct wire_error error;
    int fd = accept(*(const int *)listener, NULL, NULL);
    ssize_t size = recv(fd, packet, sizeof packet, 0);
    cr_assert(size > 0 && codec_decode_gate_request(packet, (size_t)size, &request, &error));
    const struct wire_gate_reply reply = {.id = request.id,
        .has_session = true,
        .session = {.id = 1,
            .major = WIRE_MAJOR,
            .minor = WIRE_MINOR,
            .limits = {.regions = 1, .plans = 1},
            .device = {.kind = WIRE_DEVICE_CPU}}};
    size = (ssize_t)codec_encode_gate_reply(&reply, packet, sizeof packet);
    cr_assert_eq(send(fd, packet, (size_t)size, 0), size);
    (void)recv(fd, packet, sizeof packet, 0); /* until it leaves */
    (void)close(fd);
    return NULL;
}

Test(client_odd_limit, without_room_for_a_request_there_is_no_client)
{
    char directory[] = "/tmp/attnd-limit-XXXXXX";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct attnd_open_options options = {.size = sizeof options, .address = directory};
    struct attnd *opened = NULL;
    pthread_t thread;
    cr_assert_not_null(mkdtemp(directory));
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/gate.sock", directory);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(listener, (const struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(listener, 1), 0);
    cr_assert_eq(pthread_create(&thread, NULL, serve_nothing, &listener), 0);
    expect_failure(
        attnd_open(&options, &opened), ATTND_PROTOCOL_ERROR, "allows this client no requests");
    (void)pthread_join(thread, NULL);
    (void)close(listener);
    (void)unlink(address.sun_path);
    (void)rmdir(directory);
}

/* The client's end of gate.sock, against a daemon that the test plays. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "codec.h"
#include "gate.h"

#define MS INT64_C(1000000)
#define PACKET_BYTES 1024
#define SEVERAL 5

static struct loss loss;
static struct gate gate;
static int daemon_fd;

static void init(void)
{
    char directory[] = "/tmp/attnd-gate-XXXXXX";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    cr_assert_not_null(mkdtemp(directory));
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/gate.sock", directory);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    cr_assert_eq(bind(listener, (const struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(listener, 1), 0);
    cr_assert_eq(gate_open(&gate, directory, &loss, 1000 * MS), ATTND_OK);
    daemon_fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    cr_assert_geq(daemon_fd, 0);
    (void)close(listener);
    (void)unlink(address.sun_path);
    (void)rmdir(directory);
}

static void finish(void)
{
    gate_close(&gate, false);
    (void)close(daemon_fd);
}

TestSuite(client_gate, .init = init, .fini = finish, .timeout = 30);

static enum attnd_status ask(struct wire_gate_request request, struct wire_gate_reply *reply)
{
    return gate_exchange(&gate, &request, -1, reply, 20 * MS);
}

/* The next request that the daemon got; its kind is NONE where there is no more. */
static struct wire_gate_request take(void)
{
    uint8_t packet[PACKET_BYTES];
    struct wire_gate_request request = {0};
    struct wire_error error;
    ssize_t size = recv(daemon_fd, packet, sizeof packet, 0);
    if (size > 0) {
        cr_assert(codec_decode_gate_request(packet, (size_t)size, &request, &error));
    }
    return request;
}

static void send_reply(const struct wire_gate_reply *reply)
{
    uint8_t packet[PACKET_BYTES];
    size_t size = codec_encode_gate_reply(reply, packet, sizeof packet);
    cr_assert_eq(send(daemon_fd, packet, size, 0), (ssize_t)size);
}

static void answer(uint32_t id, uint32_t region)
{
    send_reply(&(struct wire_gate_reply){.id = id, .region = region});
}

static void refuse(uint32_t id, const char *why)
{
    struct wire_gate_reply reply = {.id = id};
    (void)wire_fail(&reply.error, WIRE_UNSUPPORTED_MEMORY, "%s", why);
    send_reply(&reply);
}

/* A request of the kind is answered only once its client has given up. */
static void answer_late(enum wire_gate_kind kind, uint32_t region)
{
    struct wire_gate_reply reply;
    cr_assert_eq(
        ask((struct wire_gate_request){.kind = kind, .bytes = 4096}, &reply), ATTND_TIMED_OUT);
    struct wire_gate_request late = take();
    cr_assert_eq(late.kind, kind);
    answer(late.id, region);
    cr_assert_eq(ask((struct wire_gate_request){.kind = WIRE_GATE_TRIM}, &reply), ATTND_TIMED_OUT);
    cr_assert_eq(take().kind, WIRE_GATE_TRIM);
}

Test(client_gate, a_region_that_was_added_too_late_is_dropped)
{
    answer_late(WIRE_GATE_ADD_REGION, 7);
    struct wire_gate_request drop = take();
    cr_expect_eq(drop.kind, WIRE_GATE_DROP_REGION);
    cr_expect_eq(drop.region, 7);
}

Test(client_gate, a_region_that_grew_too_late_is_its_owners_to_drop)
{
    answer_late(WIRE_GATE_EXTEND_REGION, 7);
    cr_expect_eq(take().kind, WIRE_GATE_NONE);
}

Test(client_gate, a_request_always_has_a_number)
{
    struct wire_gate_reply reply;
    gate.last_id = UINT32_MAX - 1;
    cr_expect_eq(ask((struct wire_gate_request){.kind = WIRE_GATE_TRIM}, &reply), ATTND_TIMED_OUT);
    cr_expect_neq(take().id, 0, "that says that nothing was sent");
}

/* ---- Several at once ---------------------------------------------------------------------------- */

static struct gate_message several[SEVERAL];

/* What gate_exchange_all() says and how many of the messages were done. The numbers of the messages are
 * 2, 4 and so on: what they are answered may be said before. */
static enum attnd_status ask_several(size_t *done, struct wire_gate_reply *reply)
{
    for (int i = 0; i < SEVERAL; i++) {
        several[i] = (struct gate_message){.request = {.kind = WIRE_GATE_EXTEND_REGION,
                                               .region = 7,
                                               .offset = (uint64_t)(i + 1) * 4096,
                                               .bytes = 4096},
            .fd = open("/dev/null", O_RDONLY | O_CLOEXEC)};
        cr_assert_geq(several[i].fd, 0);
    }
    enum attnd_status status = gate_exchange_all(&gate, several, SEVERAL, done, reply, 20 * MS);
    for (int i = 0; i < SEVERAL; i++) {
        cr_expect_eq(fcntl(several[i].fd, F_GETFD), -1, "descriptor %d is open still", i);
    }
    return status;
}

Test(client_gate, several_messages_wait_for_no_replies)
{
    size_t done;
    struct wire_gate_reply reply;
    cr_expect_eq(ask_several(&done, &reply), ATTND_TIMED_OUT);
    cr_expect_eq(done, 0);
    for (int i = 0; i < SEVERAL; i++) {
        cr_expect_eq(take().offset, (uint64_t)(i + 1) * 4096, "message %d was not sent", i);
    }
    cr_expect_eq(take().kind, WIRE_GATE_NONE);
}

Test(client_gate, all_of_several_messages_are_done)
{
    size_t done;
    struct wire_gate_reply reply;
    for (uint32_t i = 1; i <= SEVERAL; i++) {
        answer(2 * i, 7);
    }
    cr_expect_eq(ask_several(&done, &reply), ATTND_OK);
    cr_expect_eq(done, SEVERAL);
    cr_expect_eq(reply.error.status, WIRE_OK);
}

Test(client_gate, the_first_refusal_among_several_is_told)
{
    size_t done;
    struct wire_gate_reply reply;
    answer(2, 7);
    answer(4, 7);
    refuse(6, "no");
    refuse(8, "not there");
    refuse(10, "not there either");
    cr_expect_eq(ask_several(&done, &reply), ATTND_OK);
    cr_expect_eq(done, 2);
    cr_expect_eq(reply.error.status, WIRE_UNSUPPORTED_MEMORY);
    cr_expect_str_eq(reply.error.detail, "no");
    answer(12, 0);
    cr_expect_eq(ask((struct wire_gate_request){.kind = WIRE_GATE_TRIM}, &reply), ATTND_OK);
}

Test(client_gate, what_was_done_of_several_before_the_daemon_left_is_told)
{
    size_t done;
    struct wire_gate_reply reply;
    answer(2, 7);
    (void)close(daemon_fd);
    daemon_fd = -1;
    cr_expect_eq(ask_several(&done, &reply), ATTND_DISCONNECTED);
    cr_expect_eq(done, 1);
    cr_expect(loss_happened(&loss));
    cr_expect_eq(ask_several(&done, &reply), ATTND_DISCONNECTED, "again");
    cr_expect_eq(done, 0);
}

/* ---- Several threads ---------------------------------------------------------------------------- */

static void *ask_with_patience(void *context)
{
    enum attnd_status *status = context;
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM};
    struct wire_gate_reply reply;
    *status = gate_exchange(&gate, &request, -1, &reply, 20000 * MS);
    return NULL;
}

Test(client_gate, an_exchange_waits_for_anothers_no_longer_than_it_may)
{
    struct wire_gate_request first = {.kind = WIRE_GATE_NONE};
    struct wire_gate_reply reply;
    enum attnd_status status = ATTND_INTERNAL;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, ask_with_patience, &status), 0);
    while (first.kind == WIRE_GATE_NONE) {
        (void)usleep(1000);
        first = take();
    }
    int64_t begin = clock_now_ns();
    cr_expect_eq(ask((struct wire_gate_request){.kind = WIRE_GATE_TRIM}, &reply), ATTND_TIMED_OUT);
    cr_expect_lt(clock_now_ns() - begin, 10000 * MS);
    cr_expect_eq(take().kind, WIRE_GATE_NONE, "it was not its turn");
    answer(first.id, 0);
    (void)pthread_join(thread, NULL);
    cr_expect_eq(status, ATTND_OK);
}

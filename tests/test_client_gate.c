/* The client's end of gate.sock, against a daemon that the test plays. */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "codec.h"
#include "gate.h"

#define MS INT64_C(1000000)
#define PACKET_BYTES 1024

static struct loss loss;
static struct gate gate;
static int daemon_fd;

static void init(void)
{
    int fd[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd), 0);
    gate = (struct gate){.fd = fd[0], .loss = &loss};
    daemon_fd = fd[1];
    (void)pthread_mutex_init(&gate.mutex, NULL);
}

static void finish(void)
{
    gate_close(&gate, false);
    (void)close(daemon_fd);
}

TestSuite(client_gate, .init = init, .fini = finish, .timeout = 10);

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

static void answer(uint32_t id, uint32_t region)
{
    uint8_t packet[PACKET_BYTES];
    const struct wire_gate_reply reply = {.id = id, .region = region};
    size_t size = codec_encode_gate_reply(&reply, packet, sizeof packet);
    cr_assert_eq(send(daemon_fd, packet, size, 0), (ssize_t)size);
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

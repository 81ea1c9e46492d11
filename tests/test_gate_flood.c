/*
 * The gate and who asks too much of it, while what it works with is held up: nothing piles up without a
 * bound, others are served, and strangers' memory is let go of by workers alone.
 */
#include "gate.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "gate_world.h"
#include "packet.h"

#define FLOOD 1000
#define OFFERED 4         /* descriptors in one packet */
#define MOST_CLOSINGS 132 /* of one user: so many wait, and one packet more */
#define MOST_SOCKETS 24   /* of one user: as many as may be open, and a few that end at the time */

/* As many as the socket takes, of a client that reads nothing and then leaves. */
static void test_a_flood_of_offers_hurts_nobody(void)
{
    struct raw_client hostile;
    struct raw_client honest;
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096, .id = 1};
    uint8_t bytes[256];
    unsigned sent = 0;

    world_start();
    world_connect(&hostile);
    world_connect(&honest);
    slow_backend_hold(&world.slow, true, false);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    CHECK(fcntl(hostile.gate, F_SETFL, O_NONBLOCK) == 0);
    while (sent < FLOOD && raw_gate_send(&hostile, bytes, size, NULL, 0)) {
        sent++;
    }
    CHECK(sent > 100);
    (void)world_next(&honest, world_post_drop(&honest, 1), WIRE_NOT_FOUND);
    CHECK(slow_backend_wait_held(&world.slow)); /* the first of them */
    unsigned maps = slow_backend_maps(&world.slow);
    raw_close(&hostile);
    world_pass_gate();
    slow_backend_hold(&world.slow, false, false);
    (void)world_next(&honest, world_post_add(&honest, 4096), WIRE_OK);
    world_wait_until(slow_backend_mappings, 1);
    CHECK(slow_backend_maps(&world.slow) <= maps + 1); /* what waited in the socket is gone */
    raw_close(&honest);
    world_stop();
}

/* Memory that comes with requests which are refused at once, while the thread that closes it is held
 * up: what waits there is bounded, what is not received goes on a worker as well, and it is no hindrance
 * to any other user. */
static void test_refused_memory_does_not_pile_up(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION};
    struct wire_gate_reply reply;
    struct raw_client hostile;
    struct raw_client second;
    struct raw_client honest;
    const bool two_users = geteuid() == 0;
    int fds[OFFERED];
    int ends[2];
    int refused = 0;

    world_start();
    world_connect(&hostile);
    world_connect(&second);
    if (two_users) {
        world_connect_other(&honest);
    }
    (void)world_next(&hostile, world_post_add(&hostile, 4096), WIRE_OK);
    for (int i = 0; i < OFFERED; i++) {
        fds[i] = world_memory();
    }
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    slow_backend_hold(&world.slow, false, true);
    (void)world_next(&hostile, world_post_drop(&hostile, 1), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    unsigned before = world_descriptors();
    while (refused < FLOOD && raw_gate_call(&hostile, &request, fds, OFFERED, &reply)) {
        CHECK(reply.error.status == WIRE_INVALID_ARGUMENT);
        refused++;
    }
    CHECK(refused < FLOOD);
    CHECK(world_descriptors() <= before + MOST_CLOSINGS);
    (void)raw_gate_call(&second, &request, &ends[1], 1, &reply);
    CHECK(raw_gate_ends(&second));
    (void)close(ends[1]);
    struct pollfd other_end = {.fd = ends[0]};
    CHECK(poll(&other_end, 1, 0) == 0);
    if (two_users) {
        (void)world_next(&honest, world_post_add(&honest, 4096), WIRE_OK);
        raw_close(&honest);
    }
    raw_close(&hostile);
    raw_close(&second);
    slow_backend_hold(&world.slow, false, false);
    CHECK(poll(&other_end, 1, WORLD_WAIT_MS) == 1 && (other_end.revents & POLLHUP) != 0);
    (void)close(ends[0]);
    for (int waited = 0; waited < WORLD_WAIT_MS && world_descriptors() > before; waited++) {
        (void)usleep(1000);
    }
    world_connect(&hostile);
    request = world_offer(4096);
    world_accepts(&hostile, &request, true);
    for (int i = 0; i < OFFERED; i++) {
        (void)close(fds[i]);
    }
    raw_close(&hostile);
    world_stop();
}

/* As many as the kernel sends at once. */
static void test_all_descriptors_of_a_packet_are_taken(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION};
    struct wire_gate_reply reply;
    struct raw_client client;
    int fds[PACKET_MAX_DESCRIPTORS];

    world_start();
    world_connect(&client);
    int fd = world_memory();
    for (int i = 0; i < PACKET_MAX_DESCRIPTORS; i++) {
        fds[i] = fd;
    }
    CHECK(raw_gate_call(&client, &request, fds, PACKET_MAX_DESCRIPTORS, &reply));
    CHECK(reply.error.status == WIRE_INVALID_ARGUMENT);
    CHECK(strcmp(reply.error.detail, "the message came with 253 descriptors instead of 1") == 0);
    (void)close(fd);
    raw_close(&client);
    world_stop();
}

/* It may be the last that holds gigabytes of memory. The gate does not let go of it by itself. */
static void test_what_was_not_received_goes_on_a_worker(void)
{
    struct wire_gate_request request = world_offer(4096);
    struct raw_client holder;
    struct raw_client leaving;
    uint8_t bytes[256];
    int ends[2];

    world_start();
    world_connect(&holder);
    world_connect(&leaving);
    (void)world_next(&holder, world_post_add(&holder, 4096), WIRE_OK);
    slow_backend_hold(&world.slow, true, true);
    (void)world_next(&holder, world_post_drop(&holder, 1), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)world_post_add(&leaving, 4096);
    world_wait_until(slow_backend_maps, 2); /* from here on nothing more is received */
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    CHECK(raw_gate_send(&leaving, bytes, size, &ends[1], 1));
    (void)close(ends[1]);
    raw_close(&leaving);
    world_pass_gate();
    struct pollfd other_end = {.fd = ends[0]};
    CHECK(poll(&other_end, 1, 0) == 0);
    slow_backend_hold(&world.slow, false, false);
    CHECK(poll(&other_end, 1, WORLD_WAIT_MS) == 1 && (other_end.revents & POLLHUP) != 0);
    (void)close(ends[0]);
    raw_close(&holder);
    world_stop();
}

static bool is_served(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM, .id = 1};
    struct wire_gate_reply reply;
    struct raw_client client;
    uint8_t bytes[64];

    CHECK(raw_connect(&client, world.directory));
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    bool served = raw_gate_send(&client, bytes, size, NULL, 0) && raw_gate_receive(&client, &reply);
    raw_close(&client);
    return served;
}

static void test_sockets_that_wait_to_be_closed_are_bounded(void)
{
    struct raw_client holder;
    int served = 0;

    world_start();
    world_connect(&holder);
    (void)world_next(&holder, world_post_add(&holder, 4096), WIRE_OK);
    slow_backend_hold(&world.slow, false, true);
    (void)world_next(&holder, world_post_drop(&holder, 1), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    while (served < FLOOD && is_served()) {
        served++;
    }
    CHECK(served >= WORLD_SESSIONS && served <= MOST_SOCKETS);
    (void)world_next(&holder, world_post_add(&holder, 4096), WIRE_OK);
    slow_backend_hold(&world.slow, false, false);
    for (int waited = 0; waited < WORLD_WAIT_MS && !is_served(); waited++) {
        (void)usleep(1000);
    }
    CHECK(is_served());
    raw_close(&holder);
    world_stop();
}

/* Nothing of it is left but the mapping that is at work, and its user may have no more than before. */
static void test_what_a_session_leaves_behind_counts(void)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = WORLD_REGION_BYTES};
    struct raw_client leaving;
    struct raw_client staying;

    world_start();
    world_connect(&leaving);
    world_connect(&staying);
    slow_backend_hold(&world.slow, true, false);
    (void)world_post(&leaving, &request, true);
    CHECK(slow_backend_wait_held(&world.slow));
    raw_close(&leaving);
    world_pass_gate(); /* the session has ended */
    (void)world_next(&staying, world_post_add(&staying, 4096), WIRE_RESOURCE_EXHAUSTED);
    slow_backend_hold(&world.slow, false, true);
    CHECK(slow_backend_wait_held(&world.slow)); /* its unmapping */
    (void)world_next(&staying, world_post_add(&staying, 4096), WIRE_RESOURCE_EXHAUSTED);
    slow_backend_hold(&world.slow, false, false);
    world_wait_until(slow_backend_mappings, 0);
    world_accepts(&staying, &request, true);
    raw_close(&staying);
    world_stop();
}

int main(void)
{
    world_init();
    test_a_flood_of_offers_hurts_nobody();
    test_refused_memory_does_not_pile_up();
    test_all_descriptors_of_a_packet_are_taken();
    test_what_was_not_received_goes_on_a_worker();
    test_sockets_that_wait_to_be_closed_are_bounded();
    test_what_a_session_leaves_behind_counts();
    return 0;
}

/*
 * The gate with a backend that maps when the test lets it: answers come late and in order, others are
 * not held up, and whoever leaves meanwhile leaves nothing behind.
 */
#include "gate.h"

#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "codec.h"
#include "gate_world.h"

#define QUIET_MS 50 /* what has not come by then is held */

static uint32_t post_extend(
    struct raw_client *client, uint32_t region, uint64_t offset, uint64_t bytes)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_EXTEND_REGION, .region = region, .offset = offset, .bytes = bytes};
    return world_post(client, &request, true);
}

static bool is_quiet(const struct raw_client *client)
{
    struct pollfd poller = {.fd = client->gate, .events = POLLIN};
    return poll(&poller, 1, QUIET_MS) == 0;
}

static void test_answers_wait_and_keep_their_order(void)
{
    struct raw_client client;

    world_start();
    world_connect(&client);
    slow_backend_hold(&world.slow, true, false);
    uint32_t add = world_post_add(&client, 4096);
    uint32_t drop = world_post_drop(&client, 99);
    uint32_t other = world_post_add(&client, 8192);
    CHECK(slow_backend_wait_held(&world.slow));
    CHECK(is_quiet(&client));
    slow_backend_hold(&world.slow, false, false);
    CHECK(world_next(&client, add, WIRE_OK).region == 1);
    (void)world_next(&client, drop, WIRE_NOT_FOUND);
    CHECK(world_next(&client, other, WIRE_OK).region == 2);
    raw_close(&client);
    world_stop();
}

static void test_others_are_not_held_up(void)
{
    struct raw_client slow;
    struct raw_client other;

    world_start();
    world_connect(&slow);
    world_connect(&other);
    uint32_t dropped = world_next(&slow, world_post_add(&slow, 4096), WIRE_OK).region;
    uint32_t kept = world_next(&slow, world_post_add(&slow, 4096), WIRE_OK).region;
    slow_backend_hold(&world.slow, false, true);
    (void)world_next(&slow, world_post_drop(&slow, dropped), WIRE_OK);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)world_next(
        &other, world_post_add(&other, 4096), WIRE_OK); /* while something is unmapped */
    slow_backend_hold(&world.slow, true, false);
    uint32_t extended = post_extend(&slow, kept, 4096, 4096);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)world_next(
        &other, world_post_drop(&other, 2), WIRE_NOT_FOUND); /* while something is mapped */
    CHECK(is_quiet(&slow));
    slow_backend_hold(&world.slow, false, false);
    (void)world_next(&slow, extended, WIRE_OK);
    raw_close(&slow);
    raw_close(&other);
    world_stop();
}

static void test_regions_grow(void)
{
    struct raw_client client;
    struct raw_client other;

    world_start();
    world_connect(&client);
    world_connect(&other);
    uint32_t region = world_next(&client, world_post_add(&client, 4096), WIRE_OK).region;
    (void)world_next(&client, post_extend(&client, region, 4096, 8192), WIRE_OK);
    (void)world_next(&client, post_extend(&client, region, 4096, 8192), WIRE_INVALID_ARGUMENT);
    (void)world_next(&client, post_extend(&client, region, 12288, 1 << 20), WIRE_INVALID_ARGUMENT);
    (void)world_next(&client, post_extend(&client, region, 12288, 0), WIRE_INVALID_ARGUMENT);
    (void)world_next(&other, post_extend(&other, region, 12288, 4096), WIRE_NOT_FOUND);
    slow_backend_refuse(&world.slow, true);
    (void)world_next(&client, post_extend(&client, region, 12288, 4096), WIRE_UNSUPPORTED_MEMORY);
    slow_backend_refuse(&world.slow, false);
    (void)world_next(&client, post_extend(&client, region, 12288, 4096), WIRE_OK);
    (void)world_next(&client, world_post_drop(&client, region), WIRE_OK);
    (void)world_next(&client, post_extend(&client, region, 16384, 4096), WIRE_NOT_FOUND);
    raw_close(&client);
    raw_close(&other);
    world_stop();
}

static void test_handles_come_without_descriptors(void)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096};
    struct raw_client client;

    world_start();
    world_connect(&client);
    request.handle[8] = 17;
    (void)world_next(&client, world_post(&client, &request, true), WIRE_INVALID_ARGUMENT);
    CHECK(world_next(&client, world_post(&client, &request, false), WIRE_OK).region == 1);
    const struct backend_offer offer = slow_backend_last(&world.slow);
    CHECK(offer.kind == WIRE_MEMORY_CUDA_IPC && offer.bytes == 4096 && offer.handle[8] == 17);
    CHECK(offer.pid == getpid() && offer.uid == getuid());
    request.memory = WIRE_MEMORY_CUDA_VMM;
    (void)world_next(&client, world_post(&client, &request, false), WIRE_INVALID_ARGUMENT);
    raw_close(&client);
    world_stop();
}

/* Needs root, to be two users. */
static void test_handles_are_of_one_user_at_a_time(void)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096};
    struct raw_client first;
    struct raw_client second;

    if (geteuid() != 0) {
        return;
    }
    world_start();
    world_connect(&first);
    world_connect_other(&second);
    slow_backend_hold(&world.slow, true, false);
    uint32_t adding = world_post(&first, &request, false);
    CHECK(slow_backend_wait_held(&world.slow));
    (void)world_next(&second, world_post(&second, &request, false), WIRE_PERMISSION_DENIED);
    slow_backend_hold(&world.slow, false, false);
    (void)world_next(&first, adding, WIRE_OK);
    (void)world_next(&second, world_post(&second, &request, false), WIRE_PERMISSION_DENIED);
    (void)world_next(&second, world_post_add(&second, 4096), WIRE_OK);
    (void)world_next(&first, world_post_drop(&first, 1), WIRE_OK);
    (void)world_next(&second, world_post(&second, &request, false), WIRE_OK);
    CHECK(slow_backend_last(&world.slow).uid == WORLD_OTHER_UID);
    (void)world_next(&first, world_post(&first, &request, false), WIRE_PERMISSION_DENIED);
    raw_close(&second);
    world_wait_until(slow_backend_mappings, 0);
    world_accepts(&first, &request, false);
    raw_close(&first);
    world_stop();
}

static void test_trimming_ends_when_all_is_unmapped(void)
{
    struct raw_client client;

    world_start();
    world_connect(&client);
    (void)world_next(&client, world_post_trim(&client), WIRE_OK);
    slow_backend_hold(&world.slow, false, true);
    for (uint32_t i = 1; i <= 3; i++) {
        CHECK(world_next(&client, world_post_add(&client, 4096), WIRE_OK).region == i);
    }
    (void)world_next(&client, world_post_drop(&client, 1), WIRE_OK);
    (void)world_next(&client, world_post_drop(&client, 2), WIRE_OK);
    uint32_t trim = world_post_trim(&client);
    uint32_t drop = world_post_drop(&client, 3);
    CHECK(is_quiet(&client));
    slow_backend_hold(&world.slow, false, false);
    (void)world_next(&client, trim, WIRE_OK);
    (void)world_next(&client, drop, WIRE_OK);
    (void)world_next(&client, world_post_trim(&client), WIRE_OK);
    CHECK(slow_backend_mappings(&world.slow) == 0);
    raw_close(&client);
    world_stop();
}

/* Twice as often as there are places for sessions. */
static void test_leaving_while_mapping_leaves_nothing(void)
{
    struct raw_client client;

    world_start();
    unsigned before = world_descriptors();
    for (int i = 0; i < 2 * WORLD_SESSIONS; i++) {
        world_connect(&client);
        slow_backend_hold(&world.slow, true, false);
        (void)world_post_add(&client, 4096);
        (void)world_post_add(&client, 4096);
        CHECK(slow_backend_wait_held(&world.slow));
        raw_close(&client);
        (void)usleep(1000 * (unsigned)(i % 3));
        slow_backend_hold(&world.slow, false, false);
    }
    world_wait_until(slow_backend_mappings, 0);
    world_wait_until(slow_backend_pins, 0);
    for (int waited = 0; waited < WORLD_WAIT_MS && world_descriptors() > before; waited++) {
        (void)usleep(1000);
    }
    CHECK(world_descriptors() <= before);
    world_stop();
}

static void test_leaving_while_opening_leaves_nothing(void)
{
    struct raw_client client[WORLD_SESSIONS];
    uint8_t bytes[256];
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};

    world_start();
    slow_backend_hold(&world.slow, true, false);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    for (int i = 0; i < WORLD_SESSIONS; i++) {
        CHECK(raw_connect(&client[i], world.directory));
        CHECK(page_create(&client[i].page_fd, &client[i].page) == 0);
        CHECK(raw_gate_send(&client[i], bytes, size, &client[i].page_fd, 1));
    }
    CHECK(slow_backend_wait_held(&world.slow));
    CHECK(is_quiet(&client[0]));
    for (int i = 0; i < WORLD_SESSIONS; i++) {
        raw_close(&client[i]);
    }
    world_pass_gate();
    slow_backend_hold(&world.slow, false, false);
    world_connect(&client[0]); /* there is a place again */
    world_wait_until(slow_backend_pins, 1);
    raw_close(&client[0]);
    world_stop();
}

static void test_a_page_that_cannot_be_pinned_is_no_session(void)
{
    struct raw_client client;
    struct wire_gate_reply reply;

    world_start();
    slow_backend_refuse(&world.slow, true);
    CHECK(raw_connect(&client, world.directory));
    CHECK(raw_open_session(&client, &reply));
    CHECK(reply.error.status == WIRE_RESOURCE_EXHAUSTED);
    CHECK(strcmp(reply.error.detail, "no page can be pinned") == 0);
    slow_backend_refuse(&world.slow, false);
    CHECK(raw_open_session(&client, &reply));
    CHECK(reply.error.status == WIRE_OK);
    raw_close(&client);
    world_stop();
}

static void test_the_end_finds_workers_at_work(void)
{
    struct raw_client adding;
    struct raw_client opening;
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};
    uint8_t bytes[256];

    world_start();
    world_connect(&adding);
    slow_backend_hold(&world.slow, true, false);
    (void)world_post_add(&adding, 4096);
    CHECK(slow_backend_wait_held(&world.slow));
    CHECK(raw_connect(&opening, world.directory));
    CHECK(page_create(&opening.page_fd, &opening.page) == 0);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    CHECK(raw_gate_send(&opening, bytes, size, &opening.page_fd, 1));
    CHECK(is_quiet(&opening));
    world_stop();
    raw_close(&adding);
    raw_close(&opening);
}

int main(void)
{
    world_init();
    test_answers_wait_and_keep_their_order();
    test_others_are_not_held_up();
    test_regions_grow();
    test_handles_come_without_descriptors();
    test_handles_are_of_one_user_at_a_time();
    test_trimming_ends_when_all_is_unmapped();
    test_leaving_while_mapping_leaves_nothing();
    test_leaving_while_opening_leaves_nothing();
    test_a_page_that_cannot_be_pinned_is_no_session();
    test_the_end_finds_workers_at_work();
    return 0;
}

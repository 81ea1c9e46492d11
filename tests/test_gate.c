/* The real daemon's gate against clients that misuse it: a status and a sentence, and it goes on. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "daemon.h"
#include "raw_client.h"
#include "sealed.h"

#define LARGE_REGION (UINT64_C(2) << 30)
#define STATS_SECONDS 0.2 /* below what freeing so much takes */

static struct daemon daemon_;
static struct raw_client client;

static const char *const arguments[] = {
    "--threads=1", "--max-sessions=3", "--max-regions=4", "--region-bytes=1M", NULL};

static void start(void)
{
    cr_assert(daemon_start(&daemon_, arguments));
    cr_assert(raw_connect(&client, daemon_.directory));
}

/* Whatever was done to it: it still serves. */
static void stop(void)
{
    struct raw_client honest;
    raw_close(&client);
    for (int tries = 0; tries < 2000 && !raw_open(&honest, daemon_.directory); tries++) {
        raw_close(&honest); /* slots of the test's own sessions come free in a moment */
        (void)usleep(5000);
    }
    cr_assert(honest.gate >= 0 && raw_add_plan(&honest) != 0);
    raw_close(&honest);
    cr_assert(daemon_stop(&daemon_));
}

TestSuite(gate, .init = start, .fini = stop);

static void open_session(void)
{
    struct wire_gate_reply reply;
    cr_assert(raw_open_session(&client, &reply));
    cr_assert_eq(reply.error.status, WIRE_OK, "%s", reply.error.detail);
}

static void expect(const struct wire_gate_reply *reply, enum wire_status status, const char *part)
{
    cr_expect_eq(reply->error.status, status, "%s: %s", wire_status_name(reply->error.status),
        reply->error.detail);
    cr_expect_not_null(strstr(reply->error.detail, part), "%s", reply->error.detail);
}

Test(gate, opening_tells_limits_version_and_device)
{
    static const uint8_t zero[WIRE_TOKEN_BYTES];
    open_session();
    cr_expect_eq(client.session.major, WIRE_MAJOR);
    cr_expect_eq(client.session.minor, WIRE_MINOR);
    cr_expect_not(client.session.device.has_uuid);
    cr_expect_eq(client.session.device.kind, WIRE_DEVICE_CPU);
    cr_expect_eq(client.session.limits.regions, 4);
    cr_expect_eq(client.session.limits.region_bytes, 1U << 20);
    cr_expect_neq(client.session.limits.workspace_bytes, 0);
    cr_expect_neq(client.session.id, 0);
    cr_expect_neq(memcmp(client.session.token, zero, sizeof zero), 0);
}

Test(gate, opening_needs_exactly_one_descriptor)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};
    struct wire_gate_reply reply;
    int many[8] = {0};
    cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "0 descriptors instead of 1");
    cr_assert(raw_gate_call(&client, &request, many, 2, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "2 descriptors instead of 1");
    cr_assert(raw_gate_call(&client, &request, many, 8, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "came with 8 descriptors instead of 1");
    open_session();
}

Test(gate, the_page_must_be_sealed_memory_of_its_size)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR};
    struct wire_gate_reply reply;
    int small = sealed_create("small", 4096);
    int open_size = memfd_create("unsealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    int file = open("/dev/null", O_RDWR | O_CLOEXEC);
    cr_assert(small >= 0 && file >= 0 && ftruncate(open_size, sizeof(struct page)) == 0);
    cr_assert(raw_gate_call(&client, &request, &small, 1, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "control page");
    cr_assert(raw_gate_call(&client, &request, &open_size, 1, &reply));
    expect(&reply, WIRE_UNSUPPORTED_MEMORY, "control page");
    cr_assert(raw_gate_call(&client, &request, &file, 1, &reply));
    expect(&reply, WIRE_UNSUPPORTED_MEMORY, "control page");
    open_session();
}

Test(gate, another_major_version_is_told_both_numbers)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR + 1};
    struct wire_gate_reply reply;
    cr_assert_eq(page_create(&client.page_fd, &client.page), 0);
    cr_assert(raw_gate_call(&client, &request, &client.page_fd, 1, &reply));
    expect(&reply, WIRE_VERSION_MISMATCH, "version 2");
}

Test(gate, a_client_of_an_older_minor_version_is_served)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR, .minor = 0};
    struct wire_gate_reply reply;
    cr_assert_eq(page_create(&client.page_fd, &client.page), 0);
    cr_assert(raw_gate_call(&client, &request, &client.page_fd, 1, &reply));
    cr_assert_eq(reply.error.status, WIRE_OK, "%s", reply.error.detail);
    cr_expect_eq(reply.session.minor, 0);
    cr_expect_neq(raw_add_region(&client, 4096), 0);
}

Test(gate, garbage_is_answered)
{
    struct wire_gate_reply reply;
    unsigned seed = 20240117;
    for (int round = 0; round < 200; round++) {
        uint8_t bytes[1200];
        size_t size = 1 + (size_t)rand_r(&seed) % sizeof bytes;
        for (size_t i = 0; i < size; i++) {
            bytes[i] = (uint8_t)rand_r(&seed);
        }
        cr_assert(raw_gate_send(&client, bytes, size, NULL, 0));
        cr_assert(raw_gate_receive(&client, &reply), "round %d", round);
        cr_expect_neq(reply.error.status, WIRE_OK);
        cr_expect_neq(reply.error.detail[0], '\0');
    }
    open_session();
}

Test(gate, a_packet_too_large_is_answered)
{
    static uint8_t bytes[WIRE_MAX_MESSAGE_BYTES + 1];
    struct wire_gate_reply reply;
    cr_assert(raw_gate_send(&client, bytes, sizeof bytes, NULL, 0));
    cr_assert(raw_gate_receive(&client, &reply));
    expect(&reply, WIRE_PROTOCOL_ERROR, "more than 65536 bytes");
}

Test(gate, an_empty_packet_ends_the_connection)
{
    cr_assert(raw_gate_send(&client, "", 0, NULL, 0));
    cr_assert(raw_gate_ends(&client));
}

Test(gate, regions_come_after_the_session)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = 1};
    struct wire_gate_reply reply;
    cr_assert_eq(raw_add_region(&client, 4096), 0);
    cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "opened first");
}

Test(gate, a_connection_opens_one_session)
{
    struct wire_gate_reply reply;
    open_session();
    cr_assert(raw_open_session(&client, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "has a session");
}

Test(gate, sessions_past_the_limit_are_refused_and_their_slots_come_back)
{
    struct raw_client other[3];
    struct wire_gate_reply reply;
    open_session();
    for (int i = 0; i < 3; i++) {
        cr_assert(raw_connect(&other[i], daemon_.directory));
        cr_assert(raw_open_session(&other[i], &reply));
        cr_expect_eq(reply.error.status, i < 2 ? WIRE_OK : WIRE_RESOURCE_EXHAUSTED);
    }
    expect(&reply, WIRE_RESOURCE_EXHAUSTED, "3 sessions");
    raw_close(&other[0]);
    for (int tries = 0; tries < 10000 && reply.error.status != WIRE_OK; tries++) {
        cr_assert(raw_open_session(&other[2], &reply));
        (void)usleep(1000);
    }
    cr_expect_eq(reply.error.status, WIRE_OK, "the slot did not come free");
    raw_close(&other[1]);
    raw_close(&other[2]);
}

Test(gate, a_region_must_be_sealed_memory_of_the_size_it_claims)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = 8192};
    struct wire_gate_reply reply;
    int sealed = sealed_create("region", 4096);
    int open_size = memfd_create("unsealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    cr_assert(sealed >= 0 && ftruncate(open_size, 8192) == 0);
    open_session();
    cr_assert(raw_gate_call(&client, &request, &sealed, 1, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "8192");
    cr_assert(raw_gate_call(&client, &request, &open_size, 1, &reply));
    expect(&reply, WIRE_UNSUPPORTED_MEMORY, "lacks F_SEAL");
    request.bytes = 0;
    cr_assert(raw_gate_call(&client, &request, &sealed, 1, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "bytes is 0");
    cr_assert_neq(raw_add_region(&client, 8192), 0);
}

Test(gate, regions_are_capped_in_number_and_bytes)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = UINT64_MAX};
    struct wire_gate_reply reply;
    int fd = sealed_create("region", 4096);
    open_session();
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_RESOURCE_EXHAUSTED, "may have 1048576");
    cr_assert_neq(raw_add_region(&client, 1U << 20), 0);
    request.bytes = 4096;
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_RESOURCE_EXHAUSTED, "has 1048576 in regions");
    request = (struct wire_gate_request){.kind = WIRE_GATE_DROP_REGION, .region = 1};
    cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
    cr_assert_eq(reply.error.status, WIRE_OK, "%s", reply.error.detail);
    for (int i = 0; i < 4; i++) {
        cr_assert_neq(raw_add_region(&client, 4096), 0);
    }
    request = (struct wire_gate_request){.kind = WIRE_GATE_ADD_REGION, .bytes = 4096};
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_RESOURCE_EXHAUSTED, "4 regions");
}

Test(gate, a_processor_has_no_use_for_memory_of_a_gpu)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 4096};
    struct wire_gate_reply reply;
    int fd = sealed_create("region", 4096);
    open_session();
    cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
    expect(&reply, WIRE_UNSUPPORTED_MEMORY, "processor");
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "1 descriptors instead of 0");
    request.memory = WIRE_MEMORY_CUDA_VMM;
    request.reserve = 8192;
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_UNSUPPORTED_MEMORY, "processor");
    request.memory = WIRE_MEMORY_SHM;
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "never grows");
    request = (struct wire_gate_request){
        .kind = WIRE_GATE_EXTEND_REGION, .region = 1, .offset = 4096, .bytes = 4096};
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_NOT_FOUND, "no region 1");
    cr_assert_eq(raw_add_region(&client, 4096), 1);
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "never grows");
    cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "0 descriptors instead of 1");
}

static unsigned mappings_of_regions(void)
{
    char path[64];
    char line[512];
    unsigned count = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/maps", (int)daemon_.pid);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        count += strstr(line, "raw region") != NULL;
    }
    (void)fclose(file);
    return count;
}

Test(gate, trimming_ends_when_what_was_dropped_is_unmapped)
{
    struct wire_gate_request drop = {.kind = WIRE_GATE_DROP_REGION};
    struct wire_gate_request trim = {.kind = WIRE_GATE_TRIM};
    struct wire_gate_reply reply;
    cr_assert(raw_gate_call(&client, &trim, NULL, 0, &reply));
    expect(&reply, WIRE_INVALID_ARGUMENT, "opened first");
    open_session();
    for (int round = 0; round < 100; round++) {
        drop.region = raw_add_region(&client, 1 << 18);
        uint32_t kept = raw_add_region(&client, 1 << 18);
        cr_assert(drop.region != 0 && kept != 0);
        cr_expect_eq(mappings_of_regions(), 2);
        cr_assert(raw_gate_call(&client, &drop, NULL, 0, &reply));
        cr_assert(raw_gate_call(&client, &trim, NULL, 0, &reply));
        cr_assert_eq(reply.error.status, WIRE_OK, "%s", reply.error.detail);
        cr_expect_eq(mappings_of_regions(), 1);
        drop.region = kept;
        cr_assert(raw_gate_call(&client, &drop, NULL, 0, &reply));
        cr_assert(raw_gate_call(&client, &trim, NULL, 0, &reply));
        cr_expect_eq(mappings_of_regions(), 0);
    }
}

Test(gate, only_regions_of_the_own_session_are_dropped)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION};
    struct wire_gate_reply reply;
    struct raw_client other;
    open_session();
    cr_assert(raw_open(&other, daemon_.directory));
    uint32_t region = raw_add_region(&other, 4096);
    cr_assert_neq(region, 0);
    static const uint32_t foreign[] = {0, 5, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        request.region = foreign[i];
        cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
        expect(&reply, WIRE_NOT_FOUND, "no region");
    }
    request.region = region;
    cr_assert(raw_gate_call(&client, &request, NULL, 0, &reply));
    expect(&reply, WIRE_NOT_FOUND, "no region");
    struct wire_stats stats;
    cr_assert(raw_stats(&other, &stats));
    cr_expect_eq(stats.session.regions, 1);
    cr_expect_eq(stats.session.region_bytes, 4096);
    raw_close(&other);
}

Test(gate, a_client_that_reads_no_replies_loses_its_session)
{
    uint8_t bytes[64] = {0};
    open_session();
    bool alive = true;
    for (int i = 0; i < 100000 && alive; i++) {
        alive = raw_gate_send(&client, bytes, sizeof bytes, NULL, 0);
    }
    cr_expect_not(alive, "the daemon kept a client that never reads");
}

/* How many descriptors the daemon has open. */
static int open_descriptors(void)
{
    char path[64];
    int count = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/fd", (int)daemon_.pid);
    DIR *directory = opendir(path);
    cr_assert_not_null(directory);
    while (readdir(directory) != NULL) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

Test(gate, no_descriptor_stays_open)
{
    static const uint8_t garbage[16] = {0xff};
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = 4096};
    struct wire_gate_reply reply;
    int ends[2];
    cr_assert_eq(pipe(ends), 0);
    int kinds[] = {sealed_create("region", 4096), ends[0], ends[1], open("/dev/null", O_RDWR)};
    open_session();
    int before = open_descriptors();
    for (int round = 0; round < 100; round++) {
        cr_assert(raw_gate_call(&client, &request, kinds, 1 + (size_t)round % 4, &reply));
        cr_assert(raw_gate_send(&client, garbage, sizeof garbage, kinds, 4));
        cr_assert(raw_gate_receive(&client, &reply));
        cr_expect_neq(reply.error.status, WIRE_OK);
    }
    for (int tries = 0; tries < 5000 && open_descriptors() > before; tries++) {
        (void)usleep(1000);
    }
    cr_expect_leq(open_descriptors(), before);
}

/* Pages of dozens of closed sessions wait, and so do their sockets, however soon their places are free:
 * one more is refused meanwhile, or its connection dropped. */
static void open_when_there_is_room(struct wire_gate_reply *reply)
{
    for (int tries = 0; tries < 2000; tries++) {
        cr_assert(raw_connect(&client, daemon_.directory));
        bool answered = raw_open_session(&client, reply);
        if (answered && (reply->error.status != WIRE_RESOURCE_EXHAUSTED ||
                            strstr(reply->error.detail, "not yet unmapped") == NULL)) {
            return;
        }
        raw_close_gate(&client);
        (void)usleep(5000);
    }
    cr_assert_fail("no room within ten seconds");
}

Test(gate, a_session_that_was_closed_takes_no_room)
{
    static const char *const one[] = {"--threads=1", "--max-sessions=1", NULL};
    raw_close(&client);
    (void)daemon_end(&daemon_, SIGTERM);
    cr_assert(daemon_restart(&daemon_, one));
    for (int round = 0; round < 300; round++) {
        struct wire_gate_reply reply;
        open_when_there_is_room(&reply);
        cr_assert_eq(reply.error.status, WIRE_OK, "round %d: %s", round, reply.error.detail);
        raw_close_gate(&client);
        raw_close(&client);
    }
    cr_assert(raw_connect(&client, daemon_.directory));
}

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The time of the slowest of the calls of get_stats within a second. */
static double slowest_stats(struct raw_client *asker)
{
    double slowest = 0;
    double last = seconds();
    for (double end = last + 1; last < end;) {
        struct wire_stats stats;
        cr_assert(raw_stats(asker, &stats));
        double now = seconds();
        slowest = now - last > slowest ? now - last : slowest;
        last = now;
    }
    return slowest;
}

/* By how many seconds the asker is held up at most while a session leaves a large region behind. */
static double delay_by_unmapping(struct raw_client *asker)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = LARGE_REGION};
    struct wire_gate_reply reply;
    cr_assert(raw_connect(&client, daemon_.directory));
    open_session();
    int fd = sealed_create("large", LARGE_REGION);
    cr_assert(fd >= 0);
    cr_assert(raw_gate_call(&client, &request, &fd, 1, &reply));
    cr_assert_eq(reply.error.status, WIRE_OK, "%s", reply.error.detail);
    double before = slowest_stats(asker);
    (void)close(fd); /* the daemon's mapping is what is left of it */
    (void)usleep(100000);
    raw_close_gate(&client);
    double during = slowest_stats(asker);
    raw_close(&client);
    return during - before;
}

Test(gate, unmapping_much_memory_holds_nobody_up)
{
    static const char *const large[] = {"--threads=1", "--region-bytes=8G", NULL};
    struct sysinfo info;
    struct raw_client asker;
    cr_assert_eq(sysinfo(&info), 0);
    if (info.freeram * info.mem_unit < 2 * LARGE_REGION) {
        cr_skip_test("too little memory is free");
    }
    raw_close(&client);
    (void)daemon_end(&daemon_, SIGTERM);
    cr_assert(daemon_restart(&daemon_, large));
    cr_assert(raw_open(&asker, daemon_.directory));
    double delay = delay_by_unmapping(&asker);
    for (int tries = 1; tries < 5 && delay >= STATS_SECONDS; tries++) {
        delay =
            delay_by_unmapping(&asker); /* who else uses the machine does not do so every time */
    }
    cr_expect_lt(delay, STATS_SECONDS, "%.1f ms", delay * 1e3);
    raw_close(&asker);
}

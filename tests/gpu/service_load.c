/* Many trainers, many clients one after another, and what a call costs. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "chain.h"
#include "check.h"
#include "device.h"
#include "service.h"

#define MIB ((size_t)1 << 20)
#define LOAD_MS 4000 /* of each; they begin within a second or so */

static const struct set_extents small = {1, 128, 4, 64};

/* Calls per second of so many trainers together, each of them right. */
static void load(const struct daemon *daemon, uint64_t trainers)
{
    enum { MOST = 8 };
    struct process processes[MOST];
    double rate = 0;
    uint64_t all = 0;
    for (uint64_t i = 0; i < trainers; i++) {
        processes[i] = service_trainer(daemon, "load", 1 + i, LOAD_MS);
    }
    for (uint64_t i = 0; i < trainers; i++) {
        service_say(&processes[i]);
    }
    for (uint64_t i = 0; i < trainers; i++) {
        char line[128];
        uint64_t calls = 0;
        double seconds = 0;
        service_line(&processes[i], line, sizeof line);
        CHECK(sscanf(line, "calls %" SCNu64 " seconds %lf", &calls, &seconds) == 2 && seconds > 0);
        rate += (double)calls / seconds;
        all += calls;
        service_succeed(&processes[i], "a trainer");
    }
    (void)printf("  %" PRIu64 " trainers: %" PRIu64 " calls, %.0f a second\n", trainers, all, rate);
}

static void eight_trainers(void)
{
    struct daemon daemon;
    service_start(&daemon);
    struct attnd *observer = service_open(&daemon);
    load(&daemon, 1);
    load(&daemon, 2);
    load(&daemon, 8);
    struct attnd_counters all = service_stats(observer).daemon;
    CHECK(all.failed == 0);
    (void)printf("  groups %" PRIu64 ", a request ran with %.2f others\n", all.groups,
        (double)all.group_members / (double)all.requests - 1);
    attnd_close(observer);
    service_stop(&daemon);
}

static int count_descriptors(pid_t pid)
{
    char path[64];
    int count = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *directory = opendir(path);
    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

static void open_use_and_close(const struct daemon *daemon, uint32_t seed)
{
    struct attnd *client = service_open(daemon);
    struct set set;
    set_alloc(&set, &small);
    const struct chain chain = {client, &set, NULL, seed, 4, true, false};
    OK(chain_enqueue(&chain));
    CU(cudaDeviceSynchronize());
    attnd_close(client);
    set_free(&set);
}

/* Whether the daemon keeps nothing of clients that have gone. */
static bool becomes_quiet(struct attnd *observer)
{
    for (int tries = 0; tries < 400; tries++) {
        struct attnd_stats stats = service_stats(observer);
        if (stats.clients == 1 && stats.daemon.regions == 0 && stats.daemon.plans == 0) {
            return true;
        }
        device_sleep_ms(5);
    }
    return false;
}

static void opening_and_closing_leaves_nothing(void)
{
    enum { CYCLES = 200 };
    struct daemon daemon;
    service_start(&daemon);
    struct attnd *observer = service_open(&daemon);
    for (uint32_t i = 0; i < 5; i++) {
        open_use_and_close(&daemon, i);
    }
    CHECK(becomes_quiet(observer));
    size_t before = device_free_bytes();
    int here = count_descriptors(getpid());
    int there = count_descriptors(daemon.pid);
    for (uint32_t i = 0; i < CYCLES; i++) {
        open_use_and_close(&daemon, i);
    }
    CHECK(becomes_quiet(observer));
    CHECK(device_free_bytes() + 16 * MIB >= before);
    CHECK(count_descriptors(getpid()) == here);
    CHECK(count_descriptors(daemon.pid) == there);
    attnd_close(observer);
    service_stop(&daemon);
}

static int compare(const void *a, const void *b)
{
    const float *x = a;
    const float *y = b;
    return (*x > *y) - (*x < *y);
}

/* Between every two calls the device notes the time; one call and one kernel of the trainer each. */
static void latency(void)
{
    enum { CALLS = 2000 };

    static cudaEvent_t events[CALLS + 1];
    static float us[CALLS];
    struct daemon daemon;
    struct set set;
    cudaStream_t stream = NULL;
    CU(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&set, &small);
    const struct chain warm = {client, &set, stream, 1, 100, false, false};
    OK(chain_enqueue(&warm));
    struct work_tensors work = set_work(&set, false);
    for (int i = 0; i <= CALLS; i++) {
        CU(cudaEventCreate(&events[i]));
    }
    CU(cudaEventRecord(events[0], stream));
    for (int i = 0; i < CALLS; i++) {
        OK(set_forward(&set, client, stream, NULL));
        work_stir(stream, &work, set.count, (uint32_t)i);
        CU(cudaEventRecord(events[i + 1], stream));
    }
    CU(cudaStreamSynchronize(stream));
    double sum = 0;
    for (int i = 0; i < CALLS; i++) {
        CU(cudaEventElapsedTime(&us[i], events[i], events[i + 1]));
        us[i] *= 1000;
        sum += (double)us[i];
    }
    qsort(us, CALLS, sizeof *us, compare);
    (void)printf("  dependent calls: mean %.1f us, p50 %.1f us, p99 %.1f us\n", sum / CALLS,
        (double)us[CALLS / 2], (double)us[CALLS * 99 / 100]);
    attnd_close(client);
    service_stop(&daemon);
}

/* Calls of 9 TFLOP, one behind the other: what slices, turns and waits leave of the kernels' rate. */
static void large_calls(void)
{
    enum { CALLS = 16 };
    const struct set_extents huge = {8, 16384, 16, 128};
    const double flops = 4.0 * 8 * 16 * 16384.0 * 16384.0 * 128 / 2; /* causal */
    struct daemon daemon;
    struct set set;
    cudaStream_t stream = NULL;
    attnd_ticket ticket = 0;
    CU(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&set, &huge);
    set_fill(&set, stream, 1);
    OK(set_forward(&set, client, stream, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    uint64_t begin = device_now_ns();
    for (int i = 0; i < CALLS; i++) {
        OK(set_forward(&set, client, stream, NULL));
    }
    CU(cudaStreamSynchronize(stream));
    double ordered = (double)(device_now_ns() - begin) * 1e-9 / CALLS;
    (void)printf(
        "  large calls: %.1f ms each, %.0f TFLOP/s\n", ordered * 1e3, flops / ordered * 1e-12);
    CHECK(ordered < 1);
    attnd_close(client);
    service_stop(&daemon);
}

const struct service_test service_load_tests[] = {
    {"load_eight_trainers", eight_trainers, false},
    {"load_opening_and_closing_leaves_nothing", opening_and_closing_leaves_nothing, false},
    {"load_latency", latency, false},
    {"load_large_calls", large_calls, false},
    {NULL, NULL, false},
};

/* The real daemon and real client processes: exact results, and what the others see of one that is
 * bad, dead or stopped. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attnd.h"
#include "daemon.h"
#include "service_process.h"

#define CLIENTS 8
#define SUBMISSIONS 150 /* of each */
#define LONG_MS 300000  /* for a client's whole life, also under sanitizers */
#define LINE_MS 60000
#define LOOKS 100

static struct daemon start_daemon(const char *const *arguments)
{
    struct daemon daemon;
    cr_assert(daemon_start(&daemon, arguments));
    return daemon;
}

static struct process start(
    const struct daemon *daemon, const char *mode, uint64_t seed, uint64_t count)
{
    struct process process;
    cr_assert(process_start(&process, daemon->directory, mode, seed, count));
    return process;
}

static struct attnd *open_client(const struct daemon *daemon)
{
    struct attnd *client = NULL;
    struct attnd_open_options options = {.size = sizeof options, .address = daemon->directory};
    cr_assert_eq(attnd_open(&options, &client), ATTND_OK, "%s", attnd_message());
    return client;
}

static struct attnd_stats get_stats(struct attnd *client)
{
    struct attnd_stats stats = {.size = sizeof stats};
    cr_assert_eq(attnd_get_stats(client, &stats), ATTND_OK, "%s", attnd_message());
    return stats;
}

static void expect_success(struct process *process, const char *who)
{
    int status = process_wait(process, LONG_MS);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: waitpid status %#x", who,
        (unsigned)status);
}

static void expect_line(struct process *process, const char *who)
{
    char line[128];
    cr_assert(process_read_line(process, line, sizeof line, LINE_MS), "%s says nothing", who);
}

static int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether within a second, or as long as so many looks take on a busy machine, only `client` is left,
 * with nothing in shared memory or under way. */
static bool is_alone_within_a_second(struct attnd *client)
{
    int64_t begin = now_ms();
    struct attnd_stats stats;
    int looks = 0;
    do {
        stats = get_stats(client);
        if (stats.clients == 1 && stats.daemon.regions == 0 && stats.daemon.region_bytes == 0 &&
            stats.daemon.plans == 0 && stats.daemon.in_flight == 0) {
            return true;
        }
        (void)poll(NULL, 0, 10);
    } while (++looks < LOOKS || now_ms() - begin < 1000);
    cr_log_error("clients %" PRIu64 " regions %" PRIu64 " plans %" PRIu64 " in_flight %" PRIu64,
        stats.clients, stats.daemon.regions, stats.daemon.plans, stats.daemon.in_flight);
    return false;
}

Test(service_clients, eight_at_once_get_the_kernels_bits_in_shared_groups)
{
    struct daemon daemon = start_daemon(NULL);
    struct process clients[CLIENTS];
    for (uint64_t i = 0; i < CLIENTS; i++) {
        clients[i] = start(&daemon, "verify", 1000 + i, SUBMISSIONS);
    }
    for (int i = 0; i < CLIENTS; i++) {
        expect_success(&clients[i], "a client");
    }
    struct attnd *observer = open_client(&daemon);
    struct attnd_counters all = get_stats(observer).daemon;
    cr_expect_geq(all.requests, CLIENTS * SUBMISSIONS);
    cr_expect_eq(all.failed, 0);
    cr_expect_gt(all.group_members, all.requests, "no two requests ran together");
    cr_expect_lt(all.groups, all.requests);
    cr_expect(is_alone_within_a_second(observer));
    attnd_close(observer);
    cr_expect(daemon_stop(&daemon));
}

Test(service_clients, requests_without_sense_harm_nobody)
{
    struct daemon daemon = start_daemon(NULL);
    struct process others[3];
    struct process bad = start(&daemon, "spoil", 2000, 60);
    for (uint64_t i = 0; i < 3; i++) {
        others[i] = start(&daemon, "verify", 2001 + i, SUBMISSIONS);
    }
    expect_success(&bad, "the client with bad requests");
    for (int i = 0; i < 3; i++) {
        expect_success(&others[i], "another client");
    }
    struct attnd *observer = open_client(&daemon);
    cr_expect_eq(get_stats(observer).daemon.failed, 0, "a bad request came to the kernels");
    attnd_close(observer);
    cr_expect(daemon_stop(&daemon));
}

Test(service_clients, a_killed_client_is_gone_within_a_second)
{
    struct daemon daemon = start_daemon(NULL);
    struct attnd *observer = open_client(&daemon);
    struct process victims[2];
    struct process others[3];
    for (uint64_t i = 0; i < 3; i++) {
        others[i] = start(&daemon, "verify", 3000 + i, SUBMISSIONS);
    }
    for (uint64_t i = 0; i < 2; i++) {
        victims[i] = start(&daemon, "endless", 3010 + i, 0);
        expect_line(&victims[i], "a client");
    }
    process_kill(&victims[0]); /* while the others work */
    for (int i = 0; i < 3; i++) {
        expect_success(&others[i], "another client");
    }
    expect_line(&victims[1], "the client that was left");
    cr_expect_gt(get_stats(observer).daemon.regions, 0);
    process_kill(&victims[1]);
    cr_expect(is_alone_within_a_second(observer));
    attnd_close(observer);
    cr_expect(daemon_stop(&daemon));
}

Test(service_clients, a_stopped_client_holds_up_nobody)
{
    struct daemon daemon = start_daemon(NULL);
    struct process stopped = start(&daemon, "endless", 4000, 0);
    struct process others[3];
    expect_line(&stopped, "the client");
    (void)kill(stopped.pid, SIGSTOP);
    for (uint64_t i = 0; i < 3; i++) {
        others[i] = start(&daemon, "verify", 4001 + i, SUBMISSIONS);
    }
    for (int i = 0; i < 3; i++) {
        expect_success(&others[i], "another client");
    }
    (void)kill(stopped.pid, SIGCONT);
    for (int i = 0; i < 20; i++) { /* more than it may have said before the stop */
        expect_line(&stopped, "the client, continued,");
    }
    process_kill(&stopped);
    cr_expect(daemon_stop(&daemon));
}

Test(service_clients, sigterm_lets_accepted_requests_end)
{
    static const char *const arguments[] = {"--in-flight", "512", "--drain-timeout", "120", NULL};
    struct daemon daemon = start_daemon(arguments);
    struct process clients[3];
    for (uint64_t i = 0; i < 3; i++) {
        clients[i] = start(&daemon, "drain", 5000 + i, 40);
    }
    uint64_t in_flight = 0;
    for (int i = 0; i < 3; i++) {
        char line[128];
        uint64_t count = 0;
        cr_assert(process_read_line(&clients[i], line, sizeof line, LINE_MS));
        cr_assert_eq(sscanf(line, "submitted %" SCNu64, &count), 1);
        in_flight += count;
    }
    int status = daemon_end(&daemon, SIGTERM);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the daemon's waitpid status %#x",
        (unsigned)status);
    cr_expect_gt(in_flight, 0, "nothing was under way at SIGTERM");
    for (int i = 0; i < 3; i++) {
        expect_success(&clients[i], "a client");
    }
    cr_expect(daemon_stop(&daemon));
}

static int count_descriptors(pid_t pid)
{
    char path[64];
    int count = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *directory = opendir(path);
    cr_assert(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

static void open_use_and_close(const struct daemon *daemon)
{
    struct attnd *client = open_client(daemon);
    void *memory = NULL;
    cr_assert_eq(attnd_alloc(client, 4096, &memory), ATTND_OK, "%s", attnd_message());
    int64_t shape[] = {1, 2, 2, 4};
    DLTensor in = {.data = memory,
        .device = {kDLCPU, 0},
        .ndim = 4,
        .dtype = {kDLFloat, 32, 1},
        .shape = shape};
    DLTensor out = in;
    out.byte_offset = 1024;
    attnd_ticket ticket = 0;
    cr_assert_eq(attnd_forward(client, NULL, &in, &in, &in, &out, NULL, NULL, &ticket), ATTND_OK,
        "%s", attnd_message());
    cr_assert_eq(attnd_wait(client, ticket, ATTND_FOREVER), ATTND_OK, "%s", attnd_message());
    attnd_close(client);
}

Test(service_clients, opening_and_closing_leaves_nothing_in_the_daemon)
{
    struct daemon daemon = start_daemon(NULL);
    struct attnd *observer = open_client(&daemon);
    open_use_and_close(&daemon);
    cr_assert(is_alone_within_a_second(observer));
    int here = count_descriptors(getpid());
    int there = count_descriptors(daemon.pid); /* and some that are still to be closed, perhaps */
    for (int i = 0; i < 200; i++) {
        open_use_and_close(&daemon);
    }
    cr_expect(is_alone_within_a_second(observer));
    cr_expect_eq(count_descriptors(getpid()), here);
    for (int looks = 0; looks < 10 * LOOKS && count_descriptors(daemon.pid) > there; looks++) {
        (void)poll(NULL, 0, 10);
    }
    cr_expect_leq(count_descriptors(daemon.pid), there);
    attnd_close(observer);
    cr_expect(daemon_stop(&daemon));
}

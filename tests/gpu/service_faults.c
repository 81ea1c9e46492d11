/* Trainers and daemons that die or stop, and what the others see of it. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "chain.h"
#include "check.h"
#include "device.h"
#include "service.h"

#define MIB ((size_t)1 << 20)
#define SECOND UINT64_C(1000000000)
#define SLACK (256 * MIB) /* contexts of other processes come and go */

static const struct set_extents usual = {2, 256, 4, 64};

static double seconds_since(uint64_t begin)
{
    return (double)(device_now_ns() - begin) / (double)SECOND;
}

/* Waits until so much memory is free and `clients` are left. Prints how long after `begin` that was. */
static void expect_cleanup(struct attnd *observer, uint64_t clients, size_t free_bytes,
    uint64_t begin, double most_seconds)
{
    while (service_stats(observer).clients != clients || device_free_bytes() < free_bytes) {
        if (seconds_since(begin) > most_seconds) {
            (void)fprintf(stderr, "clients %" PRIu64 ", %zu MiB free, not %zu\n",
                service_stats(observer).clients, device_free_bytes() / MIB, free_bytes / MIB);
            _Exit(1);
        }
        device_sleep_ms(5);
    }
    (void)printf("  all was released after %.2f s\n", seconds_since(begin));
}

static void idle_trainer_is_killed(void)
{
    struct daemon daemon;
    service_start(&daemon);
    struct attnd *observer = service_open(&daemon);
    struct process first = service_trainer(&daemon, "hold", 1, 64); /* starts what stays */
    service_say(&first);
    size_t before = device_free_bytes();
    struct process victim = service_trainer(&daemon, "hold", 2, 8192);
    service_say(&victim);
    CHECK(device_free_bytes() + 8192 * MIB <= before);
    uint64_t begin = device_now_ns();
    process_kill(&victim);
    expect_cleanup(observer, 2, before - SLACK, begin, 2);
    begin = device_now_ns();
    process_kill(&first);
    expect_cleanup(observer, 1, before - SLACK, begin, 2);
    CHECK(service_stats(observer).daemon.regions == 0);
    attnd_close(observer);
    service_stop(&daemon);
}

/* While the daemon's kernels run over its memory. */
static void trainers_are_killed_inside_kernels(void)
{
    enum { OTHERS = 3, ROUNDS = 3 };
    struct daemon daemon;
    struct process others[OTHERS];
    service_start(&daemon);
    struct attnd *observer = service_open(&daemon);
    for (uint64_t i = 0; i < OTHERS; i++) {
        others[i] = service_trainer(&daemon, "endless", 10 + i, 0);
        service_say(&others[i]);
    }
    size_t before = device_free_bytes();
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct process victims[] = {service_trainer(&daemon, "heavy", 100 + round, 0),
            service_trainer(&daemon, "spin", 200 + round, 0)};
        service_say(&victims[0]);
        service_say(&victims[1]);
        device_sleep_ms(50 + 37 * (int)round);
        uint64_t begin = device_now_ns();
        process_kill(&victims[0]);
        process_kill(&victims[1]);
        expect_cleanup(observer, OTHERS + 1, before - SLACK, begin, 3);
        uint64_t since = device_now_ns();
        for (size_t i = 0; i < OTHERS; i++) {
            service_goes_on(&others[i], since);
        }
    }
    for (size_t i = 0; i < OTHERS; i++) {
        process_kill(&others[i]);
    }
    attnd_close(observer);
    service_stop(&daemon);
}

static void stopped_trainer_holds_up_nobody(void)
{
    struct daemon daemon;
    struct process others[2];
    service_start(&daemon);
    struct process stopped = service_trainer(&daemon, "heavy", 1, 0);
    service_say(&stopped);
    CHECK(kill(stopped.pid, SIGSTOP) == 0);
    for (uint64_t i = 0; i < 2; i++) {
        others[i] = service_trainer(&daemon, "chain", 2 + i, 400);
    }
    service_succeed(&others[0], "another trainer");
    service_succeed(&others[1], "another trainer");
    CHECK(kill(stopped.pid, SIGCONT) == 0);
    service_goes_on(&stopped, device_now_ns());
    process_kill(&stopped);
    service_stop(&daemon);
}

/* Its calls wait in stream order for a kernel that does not end. */
static void stuck_trainer_holds_up_nobody(void)
{
    struct daemon daemon;
    service_start(&daemon);
    struct process stuck = service_trainer(&daemon, "spin", 1, 0);
    service_say(&stuck);
    struct attnd *client = service_open(&daemon);
    struct set set;
    set_alloc(&set, &usual);
    attnd_ticket ticket = 0;
    for (int i = 0; i < 20; i++) {
        set_fill(&set, NULL, 1);
        OK(set_forward(&set, client, NULL, &ticket));
        OK(attnd_wait(client, ticket, 20 * (int64_t)SECOND));
    }
    process_kill(&stuck);
    attnd_close(client);
    service_stop(&daemon);
}

/* A kernel of its own faults: the others, the daemon too, see nothing. */
static void trainer_loses_its_context(void)
{
    struct daemon daemon;
    char line[256];
    service_start(&daemon);
    struct process other = service_trainer(&daemon, "endless", 1, 0);
    service_say(&other);
    for (uint64_t i = 0; i < 3; i++) {
        struct process faulty = service_trainer(&daemon, "fault", 2 + i, 0);
        service_line(&faulty, line, sizeof line);
        (void)printf("  %s\n", line);
        service_succeed(&faulty, "the trainer that lost its context");
        service_goes_on(&other, device_now_ns());
    }
    process_kill(&other);
    service_stop(&daemon);
}

/* Every trainer gets a status, its streams come free, its device still works. */
static void daemon_is_killed(void)
{
    enum { TRAINERS = 4 };
    struct daemon daemon;
    struct process trainers[TRAINERS];
    char line[300];
    service_start(&daemon);
    for (uint64_t i = 0; i < TRAINERS; i++) {
        trainers[i] = service_trainer(&daemon, "orphan", 1 + i, 0);
        service_say(&trainers[i]);
    }
    device_sleep_ms(300);
    uint64_t begin = device_now_ns();
    CHECK(WIFSIGNALED(daemon_end(&daemon, SIGKILL)));
    for (size_t i = 0; i < TRAINERS; i++) {
        int status = 0;
        int waited = 0;
        int later = 0;
        int sentence = 0;
        service_line(&trainers[i], line, sizeof line);
        CHECK(sscanf(line, "status %d waited %d later %d %n", &status, &waited, &later,
                  &sentence) == 3);
        (void)printf("  after %.2f s: %s\n", seconds_since(begin), line);
        CHECK(status == ATTND_DISCONNECTED || status == ATTND_LANE_POISONED);
        CHECK(waited != ATTND_TIMED_OUT && waited != ATTND_INVALID_ARGUMENT);
        CHECK(later == ATTND_DISCONNECTED);
        CHECK(strlen(line + sentence) > 20); /* that says what happened */
        CHECK(seconds_since(begin) < 10);
    }
    for (size_t i = 0; i < TRAINERS; i++) {
        service_succeed(&trainers[i], "a trainer without its daemon");
    }
    CHECK(daemon_restart(&daemon, (const char *const[]){"--device", "cuda:0", NULL}));
    struct process again = service_trainer(&daemon, "chain", 9, 100);
    service_succeed(&again, "a trainer of the next daemon");
    service_stop(&daemon);
}

static void sigterm_lets_accepted_calls_end(void)
{
    enum { TRAINERS = 3 };
    struct daemon daemon;
    struct process trainers[TRAINERS];
    uint64_t in_flight = 0;
    service_start(&daemon);
    for (uint64_t i = 0; i < TRAINERS; i++) {
        trainers[i] = service_trainer(&daemon, "drain", 1 + i, 40);
    }
    for (size_t i = 0; i < TRAINERS; i++) {
        char line[128];
        uint64_t count = 0;
        service_line(&trainers[i], line, sizeof line);
        CHECK(sscanf(line, "submitted %" SCNu64, &count) == 1);
        in_flight += count;
    }
    CHECK(in_flight > 0);
    int status = daemon_end(&daemon, SIGTERM);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (size_t i = 0; i < TRAINERS; i++) {
        service_succeed(&trainers[i], "a trainer");
    }
    (void)printf("  %" PRIu64 " calls were under way\n", in_flight);
    service_stop(&daemon);
}

const struct service_test service_fault_tests[] = {
    {"fault_idle_trainer_is_killed", idle_trainer_is_killed, false},
    {"fault_trainers_are_killed_inside_kernels", trainers_are_killed_inside_kernels, true},
    {"fault_stopped_trainer_holds_up_nobody", stopped_trainer_holds_up_nobody, true},
    {"fault_stuck_trainer_holds_up_nobody", stuck_trainer_holds_up_nobody, true},
    {"fault_trainer_loses_its_context", trainer_loses_its_context, true},
    {"fault_daemon_is_killed", daemon_is_killed, true},
    {"fault_sigterm_lets_accepted_calls_end", sigterm_lets_accepted_calls_end, false},
    {NULL, NULL, false},
};

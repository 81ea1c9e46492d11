/* libattnd against the real daemon: results, order, limits, and what is left behind. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "attnd.h"
#include "client_set.h"
#include "daemon.h"
#include "service_case.h"

#define STREAM(number) ((void *)(uintptr_t)(number))
#define MS INT64_C(1000000)

static struct daemon daemon_;
static struct attnd *client;

static void start(const char *const *arguments)
{
    cr_assert(daemon_start(&daemon_, arguments));
    client = client_open(&daemon_);
}

static void start_default(void)
{
    start(NULL);
}

static void stop(void)
{
    attnd_close(client);
    cr_expect(daemon_stop(&daemon_));
}

TestSuite(client_service, .init = start_default, .fini = stop);
TestSuite(client_limits, .fini = stop);

#define OK(call) cr_assert_eq((call), ATTND_OK, "%s", attnd_message())

static void expect_failure(enum attnd_status got, enum attnd_status status, const char *sentence)
{
    cr_expect_eq(got, status, "%s: %s", attnd_status_name(got), attnd_message());
    cr_expect(strstr(attnd_message(), sentence), "\"%s\" lacks \"%s\"", attnd_message(), sentence);
}

/* A request that keeps the daemon busy: 4096 rows for a tenth of a second or longer. */
static void submit_long(struct client_set *set, int64_t rows, void *stream, attnd_ticket *ticket)
{
    client_set_alloc(set, client, 1, rows, 4, 64);
    OK(client_set_forward(set, client, stream, NULL, ticket));
}

/* ---- Results ------------------------------------------------------------------------------------ */

static void *host_memory(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes / 64 + 1) * 64);
    cr_assert_not_null(memory);
    return memory;
}

/* Whether a drawn request leaves the same bytes through the daemon and through the kernels. */
static bool results_agree(uint64_t seed, bool shared)
{
    struct rng rng = {seed};
    struct service_case drawn;
    void *memory = NULL;
    attnd_ticket ticket;
    case_draw(&drawn, &rng, 70);
    if (shared) {
        OK(attnd_alloc(client, drawn.bytes, &memory));
    } else {
        memory = host_memory(drawn.bytes);
    }
    case_place(&drawn, &rng, memory);
    OK(attnd_submit(client, NULL, &drawn.request, 1, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    case_run_directly(&drawn);
    bool agree = case_equal(&drawn);
    case_finish(&drawn);
    if (shared) {
        attnd_free(client, memory);
    } else {
        free(memory);
    }
    return agree;
}

Test(client_service, results_are_those_of_the_kernels_bit_for_bit)
{
    for (uint64_t seed = 1; seed <= 150; seed++) {
        cr_expect(results_agree(seed, true), "seed %llu", (unsigned long long)seed);
    }
}

Test(client_service, tensors_in_any_host_memory_give_the_same_bits)
{
    for (uint64_t seed = 1; seed <= 150; seed++) {
        cr_expect(results_agree(seed, false), "seed %llu", (unsigned long long)seed);
    }
}

Test(client_service, one_request_may_mix_shared_and_other_memory)
{
    struct client_set shared;
    struct client_set mixed;
    client_set_alloc(&shared, client, 2, 33, 3, 16);
    client_set_alloc(&mixed, client, 2, 33, 3, 16);
    OK(client_set_forward(&shared, client, NULL, NULL, NULL));
    OK(client_set_backward(&shared, client, NULL, NULL, NULL));
    unsigned char *elsewhere = host_memory(client_set_bytes(2, 33, 3, 16));
    memcpy(elsewhere, mixed.memory, client_set_bytes(2, 33, 3, 16));
    for (size_t i = 0; i < CLIENT_TENSORS; i += 2) {
        mixed.tensor[i].data = elsewhere + i * mixed.bytes;
    }
    attnd_ticket ticket;
    OK(client_set_forward(&mixed, client, NULL, NULL, NULL));
    OK(client_set_backward(&mixed, client, NULL, NULL, &ticket));
    OK(attnd_wait(client, ticket, 0)); /* it has ended: such a call blocks */
    for (size_t i = 0; i < CLIENT_DLSE; i++) {
        cr_expect_eq(
            memcmp(shared.tensor[i].data, mixed.tensor[i].data, shared.bytes), 0, "tensor %zu", i);
    }
    free(elsewhere);
}

Test(client_service, arrays_of_requests_are_all_computed)
{
    struct rng rng = {77};
    struct service_case drawn[32];
    struct attnd_request requests[32];
    for (int round = 0; round < 4; round++) {
        size_t count = (size_t)rng_between(&rng, 2, 32);
        for (size_t i = 0; i < count; i++) {
            void *memory;
            case_draw(&drawn[i], &rng, 40);
            OK(attnd_alloc(client, drawn[i].bytes, &memory));
            case_place(&drawn[i], &rng, memory);
            requests[i] = drawn[i].request;
        }
        attnd_ticket ticket;
        OK(attnd_submit(client, NULL, requests, count, &ticket));
        OK(attnd_wait(client, ticket, ATTND_FOREVER));
        for (size_t i = 0; i < count; i++) {
            case_run_directly(&drawn[i]);
            cr_expect(case_equal(&drawn[i]), "request %zu of %zu", i, count);
            attnd_free(client, drawn[i].memory);
            case_finish(&drawn[i]);
        }
    }
}

/* Each forward reads as q what the one before wrote as out. */
static void run_chain(struct client_set *sets, size_t count, bool wait_between)
{
    attnd_ticket ticket;
    for (size_t i = 0; i < count; i++) {
        if (i > 0) {
            sets[i].tensor[CLIENT_Q] = sets[i - 1].tensor[CLIENT_OUT];
        }
        OK(client_set_forward(&sets[i], client, STREAM(3), NULL, &ticket));
        if (wait_between) {
            OK(attnd_wait(client, ticket, ATTND_FOREVER));
        }
    }
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
}

Test(client_service, a_stream_runs_its_requests_in_order)
{
    enum { LINKS = 200 }; /* more than a stream holds at a time */

    static struct client_set chain[LINKS];
    size_t bytes = client_set_bytes(1, 24, 2, 16);
    unsigned char *memory;
    OK(attnd_alloc(client, LINKS * bytes, (void **)&memory));
    for (size_t i = 0; i < LINKS; i++) {
        client_set_init(&chain[i], memory + i * bytes, 1, 24, 2, 16);
    }
    run_chain(chain, LINKS, true);
    float *last = client_set_data(&chain[LINKS - 1], CLIENT_OUT);
    float *expected = host_memory(bytes);
    memcpy(expected, last, chain[0].bytes);
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < LINKS; i++) {
            memset(client_set_data(&chain[i], CLIENT_OUT), 0xFF, chain[i].bytes);
        }
        run_chain(chain, LINKS, false);
        cr_expect_eq(memcmp(expected, last, chain[0].bytes), 0, "round %d", round);
    }
    free(expected);
}

Test(client_service, more_streams_than_lanes_all_get_their_turn)
{
    enum { STREAMS = 40, EACH = 5 };

    struct client_set set[STREAMS];
    attnd_ticket ticket[STREAMS][EACH];
    for (int round = 0; round < EACH; round++) {
        for (size_t i = 0; i < STREAMS; i++) {
            if (round == 0) {
                client_set_alloc(&set[i], client, 1, 16, 1, 8);
            }
            OK(client_set_forward(&set[i], client, STREAM(i), NULL, &ticket[i][round]));
        }
    }
    for (size_t i = 0; i < STREAMS; i++) {
        for (int round = 0; round < EACH; round++) {
            OK(attnd_wait(client, ticket[i][round], ATTND_FOREVER));
        }
        cr_expect_eq(memcmp(client_set_data(&set[i], CLIENT_OUT),
                         client_set_data(&set[0], CLIENT_OUT), set[0].bytes),
            0, "stream %zu", i);
    }
}

Test(client_service, tensors_without_elements_are_computed)
{
    float *memory;
    attnd_ticket ticket;
    int64_t no_rows[] = {1, 0, 2, 8};
    int64_t rows[] = {1, 4, 2, 8};
    DLTensor empty = {
        .device = {kDLCPU, 0}, .ndim = 4, .dtype = {kDLFloat, 32, 1}, .shape = no_rows};
    OK(attnd_forward(client, NULL, &empty, &empty, &empty, &empty, NULL, NULL, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    OK(attnd_alloc(client, 4096, (void **)&memory));
    DLTensor q = empty;
    q.shape = rows;
    q.data = memory;
    DLTensor out = q;
    out.data = memory + 64;
    memset(memory, 0xFF, 4096);
    memset(memory, 0, 64 * sizeof(float));
    OK(attnd_forward(client, NULL, &q, &empty, &empty, &out, NULL, NULL, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    for (int i = 0; i < 64; i++) {
        cr_expect_eq(memory[64 + i], 0.0F, "no key is seen, so element %d is 0", i);
    }
}

/* ---- Tickets and time --------------------------------------------------------------------------- */

Test(client_service, a_wait_ends_in_time_and_the_ticket_stays_valid)
{
    struct client_set set;
    attnd_ticket ticket;
    submit_long(&set, 4096, NULL, &ticket);
    expect_failure(attnd_wait(client, ticket, 0), ATTND_TIMED_OUT, "not ended");
    expect_failure(attnd_wait(client, ticket, 5 * MS), ATTND_TIMED_OUT, "not ended");
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    OK(attnd_wait(client, ticket, 0));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
}

Test(client_service, tickets_that_nobody_gave_are_refused)
{
    struct client_set set;
    attnd_ticket ticket;
    client_set_alloc(&set, client, 1, 8, 1, 8);
    OK(client_set_forward(&set, client, NULL, NULL, &ticket));
    const attnd_ticket wrong[] = {0, ticket + 1, ticket + (1 << 10), ticket | 31 << 5, UINT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        expect_failure(attnd_wait(client, wrong[i], 0), ATTND_INVALID_ARGUMENT, "ticket");
    }
    expect_failure(attnd_wait(client, ticket, -2), ATTND_INVALID_ARGUMENT, "timeout_ns is -2");
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
}

Test(client_service, requests_that_nobody_waits_for_are_computed_too)
{
    struct client_set set;
    client_set_alloc(&set, client, 1, 16, 2, 8);
    for (int i = 0; i < 500; i++) {
        OK(client_set_forward(&set, client, STREAM(i % 3), NULL, NULL));
    }
    attnd_free(client, set.memory); /* waits for them */
    cr_expect_eq(client_stats(client).client.requests, 500);
    cr_expect_eq(client_stats(client).client.failed, 0);
    cr_expect_eq(client_stats(client).client.regions, 0);
}

/* ---- Refusals ----------------------------------------------------------------------------------- */

Test(client_service, what_is_refused_runs_nothing_and_writes_nothing)
{
    struct client_set set;
    attnd_ticket ticket = 42;
    client_set_alloc(&set, client, 1, 16, 2, 8);
    OK(client_set_forward(&set, client, NULL, NULL, NULL));
    attnd_ticket last;
    OK(client_set_forward(&set, client, NULL, NULL, &last));
    OK(attnd_wait(client, last, ATTND_FOREVER));
    memset(client_set_data(&set, CLIENT_OUT), 0xEE, set.bytes);

    DLTensor bad = set.tensor[CLIENT_K];
    int64_t shape[] = {1, 16, 3, 8};
    bad.shape = shape;
    const DLTensor *t = set.tensor;
    struct attnd_request requests[2];
    for (size_t i = 0; i < 2; i++) {
        requests[i] = (struct attnd_request){.size = sizeof requests[i],
            .direction = ATTND_FORWARD,
            .q = &t[CLIENT_Q],
            .k = i == 0 ? &t[CLIENT_K] : &bad,
            .v = &t[CLIENT_V],
            .out = &t[i == 0 ? CLIENT_OUT : CLIENT_DOUT]};
    }
    expect_failure(attnd_submit(client, NULL, requests, 2, &ticket), ATTND_INVALID_ARGUMENT,
        "requests[1].v->shape[2] (heads_kv) is 2, but k->shape[2] is 3");
    expect_failure(attnd_forward(client, NULL, &t[CLIENT_Q], &bad, &t[CLIENT_V], &t[CLIENT_OUT],
                       NULL, NULL, &ticket),
        ATTND_INVALID_ARGUMENT, "v->shape[2]");
    expect_failure(attnd_forward(client, NULL, &t[CLIENT_Q], &t[CLIENT_K], &t[CLIENT_V],
                       &t[CLIENT_Q], NULL, NULL, &ticket),
        ATTND_INVALID_ARGUMENT, "out overlaps q");
    expect_failure(
        attnd_submit(client, NULL, requests, 0, &ticket), ATTND_INVALID_ARGUMENT, "count is 0");
    expect_failure(
        attnd_submit(client, NULL, requests, 33, &ticket), ATTND_INVALID_ARGUMENT, "count is 33");
    expect_failure(
        attnd_submit(client, NULL, NULL, 1, &ticket), ATTND_INVALID_ARGUMENT, "requests is NULL");
    requests[1].size--;
    expect_failure(attnd_submit(client, NULL, requests, 2, &ticket), ATTND_INVALID_ARGUMENT,
        "requests[1].size");
    expect_failure(attnd_backward(client, NULL, &t[CLIENT_Q], &t[CLIENT_K], &t[CLIENT_V],
                       &t[CLIENT_OUT], &t[CLIENT_LSE], NULL, NULL, &ticket),
        ATTND_INVALID_ARGUMENT, "gradients is NULL");

    cr_expect_eq(ticket, 42);
    cr_expect_eq(client_stats(client).client.requests, 2);
    for (size_t i = 0; i < set.bytes; i++) {
        cr_assert_eq(((unsigned char *)client_set_data(&set, CLIENT_OUT))[i], 0xEE);
    }
}

Test(client_service, a_tensor_may_not_reach_beyond_its_shared_memory)
{
    struct client_set set;
    client_set_alloc(&set, client, 1, 16, 2, 32);
    size_t bytes = (client_set_bytes(1, 16, 2, 32) + 4095) / 4096 * 4096;
    set.tensor[CLIENT_DV].data = set.memory + bytes - 64;
    expect_failure(client_set_backward(&set, client, NULL, NULL, NULL), ATTND_INVALID_ARGUMENT,
        "dv reaches beyond");
    set.tensor[CLIENT_DV].data = set.memory;
    set.tensor[CLIENT_DV].byte_offset = bytes - 64;
    expect_failure(client_set_backward(&set, client, NULL, NULL, NULL), ATTND_INVALID_ARGUMENT,
        "dv reaches beyond");
}

/* ---- Limits ------------------------------------------------------------------------------------- */

Test(client_limits, shared_memory_ends_at_the_daemons_limits)
{
    void *memory = NULL;
    void *first;
    start((const char *const[]){"--max-regions=3", "--region-bytes=4M", NULL});
    expect_failure(
        attnd_alloc(client, (size_t)5 << 20, &memory), ATTND_RESOURCE_EXHAUSTED, "5242880 bytes");
    expect_failure(attnd_alloc(client, SIZE_MAX, &memory), ATTND_RESOURCE_EXHAUSTED, "bytes");
    cr_expect_null(memory);
    OK(attnd_alloc(client, 0, &first));
    cr_expect_not_null(first);
    OK(attnd_alloc(client, 1, &memory));
    cr_expect_eq((uintptr_t)memory % 4096, 0);
    cr_expect_eq(*(char *)memory, 0);
    OK(attnd_alloc(client, (size_t)3 << 20, &memory));
    expect_failure(attnd_alloc(client, 1, &memory), ATTND_RESOURCE_EXHAUSTED, "allows 3");
    attnd_free(client, first);
    attnd_free(client, NULL);
    expect_failure(attnd_alloc(client, (size_t)1 << 20, &memory), ATTND_RESOURCE_EXHAUSTED,
        "1048576 bytes of memory are wanted");
    OK(attnd_alloc(client, 1, &memory));
    cr_expect_eq(client_stats(client).client.regions, 3);
}

Test(client_limits, what_is_given_back_is_there_again_at_once)
{
    start((const char *const[]){"--max-regions=2", "--region-bytes=4M", NULL});
    for (int round = 0; round < 300; round++) {
        struct client_set set;
        void *memory = NULL;
        OK(attnd_alloc(client, (size_t)4 << 20, &memory));
        client_set_init(&set, memory, 1, 16, 1, 8);
        for (int i = 0; i < 8; i++) {
            OK(client_set_forward(&set, client, STREAM(i), NULL, NULL));
        }
        attnd_free(client, memory);
    }
    struct attnd_stats stats = {.size = sizeof stats};
    OK(attnd_get_stats(client, &stats));
    cr_expect_eq(stats.client.failed, 0);
    cr_expect_leq(stats.client.regions, 2);
}

Test(client_limits, staging_fits_into_what_shared_memory_is_left)
{
    start((const char *const[]){"--max-regions=2", "--region-bytes=4M", NULL});
    struct client_set small;
    struct client_set large;
    attnd_ticket ticket;
    void *in_small = host_memory(client_set_bytes(1, 32, 2, 32));
    void *in_large = host_memory(client_set_bytes(1, 1024, 2, 32));
    client_set_init(&small, in_small, 1, 32, 2, 32);
    client_set_init(&large, in_large, 1, 1024, 2, 32);
    for (int i = 0; i < 3; i++) {
        OK(client_set_forward(&small, client, NULL, NULL, &ticket));
        OK(client_set_forward(&large, client, NULL, NULL, &ticket));
        OK(client_set_backward(&large, client, NULL, NULL, &ticket));
        OK(attnd_wait(client, ticket, 0));
    }
    struct client_set vast;
    void *in_vast = host_memory(client_set_bytes(1, 8192, 2, 32));
    client_set_init(&vast, in_vast, 1, 8192, 2, 32);
    expect_failure(client_set_forward(&vast, client, NULL, NULL, &ticket), ATTND_RESOURCE_EXHAUSTED,
        "bytes of memory");
    OK(client_set_forward(&small, client, NULL, NULL, &ticket));
    free(in_small);
    free(in_large);
    free(in_vast);
}

Test(client_limits, more_shapes_than_the_daemon_keeps_are_all_computed)
{
    start((const char *const[]){"--max-plans=4", NULL});
    struct client_set set[12];
    attnd_ticket ticket;
    for (int round = 0; round < 6; round++) {
        for (int64_t i = 0; i < 12; i++) {
            if (round == 0) {
                client_set_alloc(&set[i], client, 1, 8 + i, 1, 8);
            }
            OK(client_set_forward(&set[i], client, STREAM(i % 2), NULL, &ticket));
        }
        cr_expect_leq(client_stats(client).client.plans, 4);
    }
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    struct attnd_request requests[5];
    for (size_t i = 0; i < 5; i++) {
        const DLTensor *t = set[i].tensor;
        requests[i] = (struct attnd_request){.size = sizeof requests[i],
            .direction = ATTND_FORWARD,
            .q = &t[CLIENT_Q],
            .k = &t[CLIENT_K],
            .v = &t[CLIENT_V],
            .out = &t[CLIENT_OUT]};
    }
    OK(attnd_submit(client, NULL, requests, 4, NULL));
    expect_failure(attnd_submit(client, NULL, requests, 5, NULL), ATTND_RESOURCE_EXHAUSTED,
        "requests[4]: the submissions under way use 4 different shapes");
    OK(attnd_submit(client, NULL, requests, 4, NULL));
}

Test(client_limits, past_the_requests_in_flight_a_submission_blocks)
{
    start((const char *const[]){"--in-flight=8", NULL});
    struct client_set set;
    client_set_alloc(&set, client, 1, 64, 2, 16);
    const DLTensor *t = set.tensor;
    struct attnd_request requests[9];
    for (size_t i = 0; i < 9; i++) {
        requests[i] = (struct attnd_request){.size = sizeof requests[i],
            .direction = ATTND_FORWARD,
            .q = &t[CLIENT_Q],
            .k = &t[CLIENT_K],
            .v = &t[CLIENT_V],
            .out = &t[CLIENT_OUT]};
    }
    expect_failure(
        attnd_submit(client, NULL, requests, 9, NULL), ATTND_RESOURCE_EXHAUSTED, "count is 9");
    for (int i = 0; i < 200; i++) {
        OK(attnd_submit(client, STREAM(i % 5), requests, (size_t)(1 + i % 8), NULL));
    }
    attnd_free(client, set.memory);
    cr_expect_eq(client_stats(client).client.requests, 25 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8));
    cr_expect_eq(client_stats(client).client.failed, 0);
}

Test(client_limits, a_client_too_many_is_told_so)
{
    start((const char *const[]){"--max-sessions=2", NULL});
    struct attnd *second = client_open(&daemon_);
    struct attnd *third = NULL;
    struct attnd_open_options options = {.size = sizeof options, .address = daemon_.directory};
    expect_failure(attnd_open(&options, &third), ATTND_RESOURCE_EXHAUSTED, "2");
    cr_expect_null(third);
    attnd_close(second);
    enum attnd_status status = ATTND_AGAIN;
    for (int tries = 0; tries < 2000 && status != ATTND_OK; tries++) {
        (void)usleep(10000); /* the daemon gives the place back when its engine has let go of it */
        status = attnd_open(&options, &third);
    }
    OK(status);
    attnd_close(third);
}

Test(client_limits, a_workspace_too_large_is_refused_with_numbers)
{
    start((const char *const[]){"--workspace=1M", NULL});
    struct client_set set;
    int64_t length = 40000;
    client_set_alloc(&set, client, 1, length, 16, 8);
    enum attnd_status status = client_set_backward(&set, client, NULL, NULL, NULL);
    expect_failure(status, ATTND_RESOURCE_EXHAUSTED, "1048576");
}

/* ---- The end of the daemon ---------------------------------------------------------------------- */

static int64_t now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 * MS + now.tv_nsec;
}

static void expect_every_call_to_fail(struct client_set *set, enum attnd_status status)
{
    struct attnd_stats stats = {.size = sizeof stats};
    attnd_ticket ticket;
    void *memory;
    int64_t begin = now_ns();
    cr_expect_eq(client_set_forward(set, client, NULL, NULL, &ticket), status);
    cr_expect_str_not_empty(attnd_message());
    cr_expect_eq(client_set_backward(set, client, STREAM(9), NULL, &ticket), status);
    cr_expect_eq(attnd_alloc(client, 100, &memory), status);
    cr_expect_eq(attnd_get_stats(client, &stats), status);
    attnd_free(client, set->memory);
    cr_expect_lt(now_ns() - begin, 4000 * MS);
}

Test(client_service, every_call_fails_soon_after_the_daemon_was_killed)
{
    struct client_set busy;
    struct client_set set;
    attnd_ticket early;
    attnd_ticket late;
    client_set_alloc(&set, client, 1, 16, 2, 8);
    OK(client_set_forward(&set, client, STREAM(1), NULL, &early));
    OK(attnd_wait(client, early, ATTND_FOREVER));
    submit_long(&busy, 4096, NULL, &late);
    (void)daemon_end(&daemon_, SIGKILL);
    int64_t begin = now_ns();
    expect_failure(attnd_wait(client, late, ATTND_FOREVER), ATTND_DISCONNECTED, "gone");
    cr_expect_lt(now_ns() - begin, 4000 * MS);
    OK(attnd_wait(client, early, ATTND_FOREVER)); /* what had ended, had ended */
    expect_every_call_to_fail(&set, ATTND_DISCONNECTED);
    begin = now_ns();
    attnd_close(client);
    client = NULL;
    cr_expect_lt(now_ns() - begin, 4000 * MS);
}

Test(client_limits, a_draining_daemon_ends_what_it_accepted_and_says_why_no_more)
{
    start((const char *const[]){"--drain-timeout=300", NULL});
    struct client_set busy;
    struct client_set set;
    attnd_ticket accepted;
    attnd_ticket refused;
    client_set_alloc(&set, client, 1, 16, 2, 8);
    OK(client_set_forward(&set, client, NULL, NULL, NULL)); /* its plan is known */
    submit_long(&busy, 6144, STREAM(1), &accepted);
    cr_assert_eq(client_stats(client).client.in_flight, 1, "it has arrived");
    cr_assert_eq(kill(daemon_.pid, SIGTERM), 0);
    enum attnd_status status = ATTND_OK;
    for (int tries = 0; tries < 1000 && status == ATTND_OK; tries++) {
        (void)usleep(1000);
        OK(client_set_forward(&set, client, STREAM(2), NULL, &refused));
        status = attnd_wait(client, refused, ATTND_FOREVER);
    }
    /* The sentence is a message, which a busy machine may carry later than a call waits for it. */
    for (int tries = 0; tries < 10000 && !strstr(attnd_message(), "shutting down"); tries++) {
        (void)usleep(1000);
        status = attnd_wait(client, refused, 0);
    }
    expect_failure(status, ATTND_DRAINING, "shutting down");
    expect_failure(attnd_wait(client, refused, 0), ATTND_DRAINING, "shutting down");
    OK(attnd_wait(client, accepted, ATTND_FOREVER));
    cr_expect_eq(daemon_end(&daemon_, SIGTERM), 0);
}

Test(client_service, a_new_client_finds_the_next_daemon)
{
    struct client_set set;
    (void)daemon_end(&daemon_, SIGKILL);
    cr_assert(daemon_restart(&daemon_, NULL));
    struct attnd *next = client_open(&daemon_);
    attnd_ticket ticket;
    client_set_alloc(&set, next, 1, 16, 2, 8);
    OK(client_set_forward(&set, next, NULL, NULL, &ticket));
    OK(attnd_wait(next, ticket, ATTND_FOREVER));
    attnd_close(next);
}

Test(client_service, a_stopped_daemon_times_calls_out_and_none_of_it_sticks)
{
    struct attnd *hasty = NULL;
    struct attnd_open_options options = {
        .size = sizeof options, .address = daemon_.directory, .timeout_ns = 1000 * MS};
    struct attnd_stats stats = {.size = sizeof stats};
    void *memory = NULL;
    OK(attnd_open(&options, &hasty));
    cr_assert_eq(kill(daemon_.pid, SIGSTOP), 0);
    expect_failure(attnd_alloc(hasty, 100, &memory), ATTND_TIMED_OUT, "1.000 s");
    expect_failure(attnd_get_stats(hasty, &stats), ATTND_TIMED_OUT, "1.000 s");
    struct attnd *other = NULL;
    expect_failure(attnd_open(&options, &other), ATTND_DISCONNECTED, "does not answer");
    cr_assert_eq(kill(daemon_.pid, SIGCONT), 0);
    OK(attnd_alloc(hasty, 100, &memory));
    for (int tries = 0; tries < 1000 && client_stats(hasty).client.regions != 1; tries++) {
        (void)usleep(10000);
    }
    cr_expect_eq(client_stats(hasty).client.regions, 1, "the late one was given back");
    attnd_close(hasty);
}

/* ---- What is left behind ------------------------------------------------------------------------ */

static size_t entries(const char *path)
{
    DIR *directory = opendir(path);
    size_t count = 0;
    cr_assert_not_null(directory);
    while (readdir(directory)) {
        count++;
    }
    (void)closedir(directory);
    return count;
}

/* Mappings of shared memory: what the C library keeps of its own is not counted. */
static size_t mappings(void)
{
    char line[512];
    size_t count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    cr_assert_not_null(maps);
    while (fgets(line, sizeof line, maps)) {
        count += strstr(line, "memfd:attnd") != NULL;
    }
    (void)fclose(maps);
    return count;
}

static void use_a_client_fully(int round)
{
    struct attnd *used = client_open(&daemon_);
    struct client_set set;
    struct client_set staged;
    void *memory = host_memory(client_set_bytes(1, 16, 2, 8));
    client_set_alloc(&set, used, 1, 16, 2, 8);
    client_set_init(&staged, memory, 1, 16, 2, 8);
    cr_expect_geq(mappings(), 2);
    for (int i = 0; i < 10; i++) {
        OK(client_set_forward(&set, used, STREAM(i), NULL, NULL));
    }
    OK(client_set_forward(&staged, used, NULL, NULL, NULL));
    if (round % 2 == 0) {
        attnd_free(used, set.memory);
    }
    attnd_close(used);
    free(memory);
}

Test(client_service, close_leaves_no_descriptor_thread_or_mapping)
{
    use_a_client_fully(0);
    attnd_close(client);
    client = NULL;
    size_t descriptors = entries("/proc/self/fd");
    size_t threads = entries("/proc/self/task");
    size_t mapped = mappings();
    cr_expect_eq(mapped, 0);
    for (int round = 0; round < 60; round++) {
        use_a_client_fully(round);
    }
    cr_expect_eq(entries("/proc/self/fd"), descriptors);
    cr_expect_eq(entries("/proc/self/task"), threads);
    cr_expect_eq(mappings(), mapped);
}

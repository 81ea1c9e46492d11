/*
 * One client process of the service tests: draws requests, has the daemon compute them and compares
 * every byte with the same kernels run here.
 *
 *     service_client ADDRESS MODE SEED COUNT
 *
 * MODE: verify   COUNT submissions, then the client's counters as a line on stdout
 *       endless  the same without end; a line on stdout for each submission
 *       spoil    COUNT times a request that makes no sense, between good ones
 *       drain    COUNT submissions at once, then a line on stdout; they must all end well, and later
 *                ones must be refused
 * Exit status 0: all was as it should be; 1: it was not, stderr says what; 2: the client itself failed.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attnd.h"
#include "service_case.h"
#include "service_spoil.h"

#define MOST_CASES 6 /* of a submission */
#define PENDING 5    /* submissions at a time */
#define STREAMS 4
#define REFUSAL_TRIES 2000
#define WAIT_NS INT64_C(60000000000)

struct submission {
    size_t cases;
    struct service_case drawn[MOST_CASES];
    uint8_t *memory;
    bool staged; /* in memory that the library knows nothing of */
    attnd_ticket ticket;
};

struct client {
    struct attnd *attnd;
    struct rng rng;
    uint64_t seed;
    uint64_t requests;
    int64_t largest; /* sequence length */
    /* One in so many submissions lies in memory that the library does not know: 0: none. Such a
     * submission has ended when the call returns. */
    int64_t staged_one_in;
};

static void fail(const struct client *client, const char *what)
{
    (void)fprintf(stderr, "service_client: seed %" PRIu64 ", after %" PRIu64 " requests: %s: %s\n",
        client->seed, client->requests, what, attnd_message());
    exit(1);
}

static void require(const struct client *client, enum attnd_status status, const char *what)
{
    if (status != ATTND_OK) {
        (void)fprintf(stderr, "service_client: %s\n", attnd_status_name(status));
        fail(client, what);
    }
}

/* ---- Submissions --------------------------------------------------------------------------- */

static void draw_submission(struct client *client, struct submission *submission)
{
    size_t bytes = 0;
    submission->cases = (size_t)rng_between(&client->rng, 1, MOST_CASES);
    if (rng_one_in(&client->rng, 2)) {
        submission->cases = 1;
    }
    for (size_t i = 0; i < submission->cases; i++) {
        case_draw(&submission->drawn[i], &client->rng, client->largest);
        bytes += submission->drawn[i].bytes;
    }
    submission->staged =
        client->staged_one_in != 0 && rng_one_in(&client->rng, client->staged_one_in);
    void *memory = NULL;
    if (submission->staged) {
        memory = aligned_alloc(64, bytes);
    } else {
        require(client, attnd_alloc(client->attnd, bytes, &memory), "attnd_alloc");
    }
    submission->memory = memory;
    uint8_t *place = memory;
    for (size_t i = 0; i < submission->cases; i++) {
        case_place(&submission->drawn[i], &client->rng, place);
        place += submission->drawn[i].bytes;
    }
}

static enum attnd_status submit(struct client *client, struct submission *submission)
{
    struct attnd_request requests[MOST_CASES];
    for (size_t i = 0; i < submission->cases; i++) {
        requests[i] = submission->drawn[i].request;
    }
    void *stream = (void *)(uintptr_t)rng_between(&client->rng, 0, STREAMS - 1);
    return attnd_submit(client->attnd, stream, requests, submission->cases, &submission->ticket);
}

static void release(struct client *client, struct submission *submission)
{
    for (size_t i = 0; i < submission->cases; i++) {
        case_finish(&submission->drawn[i]);
    }
    if (submission->staged) {
        free(submission->memory);
    } else {
        attnd_free(client->attnd, submission->memory);
    }
}

static void check(struct client *client, struct submission *submission)
{
    require(client, attnd_wait(client->attnd, submission->ticket, WAIT_NS), "attnd_wait");
    for (size_t i = 0; i < submission->cases; i++) {
        case_run_directly(&submission->drawn[i]);
        if (!case_equal(&submission->drawn[i])) {
            fail(client, "the service's result differs from the kernels'");
        }
        client->requests++;
    }
    release(client, submission);
}

/* ---- Modes --------------------------------------------------------------------------------- */

/* Keeps several submissions going; count 0: for ever, with a line for each. */
static void verify(struct client *client, uint64_t count)
{
    static struct submission pending[PENDING];
    for (uint64_t i = 0; count == 0 || i < count + PENDING; i++) {
        struct submission *submission = &pending[i % PENDING];
        if (i >= PENDING) {
            check(client, submission);
            if (count == 0) {
                (void)puts("checked");
                (void)fflush(stdout);
            }
        }
        if (count == 0 || i < count) {
            draw_submission(client, submission);
            require(client, submit(client, submission), "attnd_submit");
        }
    }
}

static void check_counters(struct client *client)
{
    struct attnd_stats stats = {.size = sizeof stats};
    require(client, attnd_get_stats(client->attnd, &stats), "attnd_get_stats");
    if (stats.client.requests != client->requests || stats.client.failed != 0 ||
        stats.client.in_flight != 0 || stats.client.groups > stats.client.requests ||
        stats.client.group_members < stats.client.requests) {
        (void)fprintf(stderr,
            "service_client: requests %" PRIu64 " failed %" PRIu64 " in_flight %" PRIu64
            " groups %" PRIu64 " group_members %" PRIu64 "\n",
            stats.client.requests, stats.client.failed, stats.client.in_flight, stats.client.groups,
            stats.client.group_members);
        fail(client, "the counters are wrong");
    }
    (void)printf("requests %" PRIu64 " groups %" PRIu64 " group_members %" PRIu64 "\n",
        stats.client.requests, stats.client.groups, stats.client.group_members);
}

static void spoil(struct client *client, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (!spoil_and_submit(client->attnd, &client->rng, (size_t)i)) {
            fail(client, "a request that makes no sense");
        }
        verify(client, 2);
    }
}

/* SIGTERM may come later than this; until then requests are taken and must be computed. */
static void require_refusal(struct client *client)
{
    static struct submission late;
    client->staged_one_in = 1; /* attnd_alloc() may be refused just as well */
    for (int tries = 0; tries < REFUSAL_TRIES; tries++) {
        draw_submission(client, &late);
        enum attnd_status status = submit(client, &late);
        if (status == ATTND_OK) {
            status = attnd_wait(client->attnd, late.ticket, WAIT_NS);
        }
        if (status == ATTND_DRAINING || status == ATTND_DISCONNECTED) {
            release(client, &late);
            return;
        }
        require(client, status, "a request before SIGTERM");
        check(client, &late);
    }
    fail(client, "requests are still taken");
}

static void drain(struct client *client, uint64_t count)
{
    struct submission *submissions = calloc(count, sizeof *submissions);
    if (submissions == NULL) {
        exit(2);
    }
    for (uint64_t i = 0; i < count; i++) {
        draw_submission(client, &submissions[i]);
    }
    for (uint64_t i = 0; i < count; i++) {
        require(client, submit(client, &submissions[i]), "attnd_submit");
    }
    /* Its answer comes after the daemon has taken what was sent before. */
    struct attnd_stats stats = {.size = sizeof stats};
    require(client, attnd_get_stats(client->attnd, &stats), "attnd_get_stats");
    (void)printf("submitted %" PRIu64 "\n", stats.client.in_flight);
    (void)fflush(stdout);
    for (uint64_t i = 0; i < count; i++) {
        check(client, &submissions[i]);
    }
    require_refusal(client);
    free(submissions);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        (void)fprintf(stderr, "usage: service_client ADDRESS MODE SEED COUNT\n");
        return 2;
    }
    const char *mode = argv[2];
    uint64_t count = strtoull(argv[4], NULL, 10);
    struct client client = {.seed = strtoull(argv[3], NULL, 10), .largest = 40, .staged_one_in = 6};
    client.rng.state = client.seed;
    struct attnd_open_options options = {
        .size = sizeof options, .address = argv[1], .name = "service_client"};
    require(&client, attnd_open(&options, &client.attnd), "attnd_open");
    if (strcmp(mode, "verify") == 0) {
        verify(&client, count);
        check_counters(&client);
    } else if (strcmp(mode, "endless") == 0) {
        verify(&client, 0);
    } else if (strcmp(mode, "spoil") == 0) {
        spoil(&client, count);
        check_counters(&client);
    } else if (strcmp(mode, "drain") == 0) {
        client.largest = 200;
        client.staged_one_in = 0;
        drain(&client, count);
    } else {
        (void)fprintf(stderr, "service_client: no mode %s\n", mode);
        return 2;
    }
    attnd_close(client.attnd);
    return 0;
}

/* Many threads on one client of the real daemon, also for ThreadSanitizer. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "attnd.h"
#include "check.h"
#include "client_set.h"
#include "daemon.h"

#define THREADS 6
#define ROUNDS 60

struct work {
    struct attnd *client;
    int number;
    const float *expected; /* out of a set of 1, 8 + number, 2, 8 */
};

static void expect_same(const struct client_set *set, const float *expected)
{
    CHECK(memcmp(client_set_data(set, CLIENT_OUT), expected, set->bytes) == 0);
}

/* The same keys by number, in memory that is overwritten at once. */
static enum attnd_status forward_with_lengths(
    struct client_set *set, struct attnd *client, void *stream, attnd_ticket *ticket)
{
    int32_t keys = (int32_t)set->shape[1];
    int64_t batch = 1;
    const DLTensor lengths = {
        .data = &keys, .device = {kDLCPU, 0}, .ndim = 1, .dtype = {kDLInt, 32, 1}, .shape = &batch};
    struct attnd_options options = ATTND_OPTIONS_INIT;
    options.seqlens_k = &lengths;
    enum attnd_status status = client_set_forward(set, client, stream, &options, ticket);
    keys = 0;
    return status;
}

/* Its own shapes and stream, shared and other memory in turn, with lengths and without. */
static void *trainer(void *context)
{
    const struct work *work = context;
    struct attnd *client = work->client;
    void *host = NULL;
    CHECK(posix_memalign(&host, 64, client_set_bytes(1, 8 + work->number, 2, 8)) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        struct client_set set;
        attnd_ticket ticket;
        if (round % 4 == 3) {
            client_set_init(&set, host, 1, 8 + work->number, 2, 8);
        } else {
            client_set_alloc(&set, client, 1, 8 + work->number, 2, 8);
        }
        void *stream = (void *)(uintptr_t)(work->number % 4); /* some share one */
        CHECK((round % 2 == 0 ? client_set_forward(&set, client, stream, NULL, &ticket)
                              : forward_with_lengths(&set, client, stream, &ticket)) == ATTND_OK);
        CHECK(attnd_wait(client, ticket, ATTND_FOREVER) == ATTND_OK);
        expect_same(&set, work->expected);
        CHECK(client_set_backward(&set, client, stream, NULL, &ticket) == ATTND_OK);
        if (round % 3 == 0) {
            CHECK(attnd_wait(client, ticket, ATTND_FOREVER) == ATTND_OK);
        }
        if (set.memory != host) {
            attnd_free(client, set.memory);
        }
        CHECK(attnd_wait(client, ticket, 0) == ATTND_OK);
        CHECK(attnd_wait(client, ticket + (UINT64_C(1) << 40), 0) == ATTND_INVALID_ARGUMENT);
        CHECK(strstr(attnd_message(), "ticket"));
        if (round % 16 == 0) {
            CHECK(client_stats(client).client.failed == 0);
        }
    }
    free(host);
    return NULL;
}

static float *compute_alone(struct attnd *client, int number)
{
    struct client_set set;
    attnd_ticket ticket;
    client_set_alloc(&set, client, 1, 8 + number, 2, 8);
    CHECK(client_set_forward(&set, client, NULL, NULL, &ticket) == ATTND_OK);
    CHECK(attnd_wait(client, ticket, ATTND_FOREVER) == ATTND_OK);
    float *expected = malloc(set.bytes);
    CHECK(expected);
    memcpy(expected, client_set_data(&set, CLIENT_OUT), set.bytes);
    attnd_free(client, set.memory);
    return expected;
}

int main(void)
{
    struct daemon daemon;
    struct work work[THREADS];
    pthread_t thread[THREADS];
    CHECK(daemon_start(&daemon, (const char *const[]){"--max-plans=8", NULL}));
    struct attnd *client = client_open(&daemon);
    float *expected[THREADS];
    for (int i = 0; i < THREADS; i++) {
        expected[i] = compute_alone(client, i);
        work[i] = (struct work){client, i, expected[i]};
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&thread[i], NULL, trainer, &work[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(thread[i], NULL) == 0);
        free(expected[i]);
    }
    attnd_close(client);
    CHECK(daemon_stop(&daemon));
    return 0;
}

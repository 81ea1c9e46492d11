#include "gpu_case.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#define PATIENCE_MS 10000

struct daemon gpu_daemon;
struct attnd *gpu_client;

void gpu_start(const char *const *arguments)
{
    struct attnd_open_options options = {.size = sizeof options, .address = gpu_daemon.directory};
    CHECK(daemon_start(&gpu_daemon, arguments));
    OK(attnd_open(&options, &gpu_client));
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
}

void gpu_stop(void)
{
    attnd_close(gpu_client);
    gpu_client = NULL;
    CHECK(fake_cuda_registered() == 0);
    CHECK(daemon_stop(&gpu_daemon));
}

bool gpu_eventually(bool (*condition)(void *context), void *context)
{
    bool holds = condition(context);
    for (int waited = 0; !holds && waited < PATIENCE_MS; waited += 2) {
        (void)poll(NULL, 0, 2);
        holds = condition(context);
    }
    return holds;
}

void gpu_hold(void *context)
{
    const struct gpu_gate *gate = context;
    while (!atomic_load(&gate->open)) {
        (void)poll(NULL, 0, 1);
    }
}

static struct attnd_counters counters(void)
{
    struct attnd_stats stats = {.size = sizeof stats};
    OK(attnd_get_stats(gpu_client, &stats));
    return stats.client;
}

uint64_t gpu_regions(void)
{
    return counters().regions;
}

uint64_t gpu_region_bytes(void)
{
    return counters().region_bytes;
}

bool gpu_has_regions(void *count)
{
    return gpu_regions() == *(const uint64_t *)count;
}

void gpu_ok(enum attnd_status got, const char *call, const char *file, int line)
{
    if (got != ATTND_OK) {
        (void)fprintf(stderr, "%s:%d: %s: %s: %s\n", file, line, call, attnd_status_name(got),
            attnd_message());
    }
    CHECK(got == ATTND_OK);
}

bool gpu_says(enum attnd_status got, enum attnd_status status, const char *sentence)
{
    bool so = got == status && strstr(attnd_message(), sentence);
    if (!so) {
        (void)fprintf(stderr, "%s and \"%s\" were expected, but got %s: %s\n",
            attnd_status_name(status), sentence, attnd_status_name(got), attnd_message());
    }
    return so;
}

static void describe(struct client_case *made)
{
    *made = (struct client_case){.options = ATTND_OPTIONS_INIT};
    made->shape = (struct case_shape){.direction = ATTND_FORWARD,
        .dtype = {kDLFloat, 16, 1},
        .batch = 2,
        .rows_q = 33,
        .rows_k = 47,
        .heads_q = 4,
        .heads_kv = 2,
        .dim = 24,
        .dim_v = 24,
        .rows = true};
}

size_t gpu_call_bytes(void)
{
    struct client_case made;
    struct rng rng = {1};
    describe(&made);
    client_case_init(&made, &rng);
    size_t bytes = made.bytes;
    client_case_finish(&made);
    return bytes;
}

void gpu_mark(struct client_case *made, int ordinal)
{
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        made->tensor[role].device = (DLDevice){kDLCUDA, ordinal};
    }
}

struct client_case *gpu_call(void *memory)
{
    static struct rng rng = {77};

    struct client_case *made = malloc(sizeof *made);
    CHECK(made);
    describe(made);
    client_case_init(made, &rng);
    if (!memory) {
        memory = fake_cuda_alloc(0, FAKE_MALLOC, made->bytes);
    }
    client_case_place(made, memory);
    gpu_mark(made, 0);
    return made;
}

enum attnd_status gpu_submit(struct client_case *made, void *stream, attnd_ticket *ticket)
{
    return attnd_submit(gpu_client, stream, &made->request, 1, ticket);
}

void gpu_run(struct client_case *made, void *stream)
{
    OK(gpu_submit(made, stream, NULL));
    fake_cuda_synchronize(stream);
    CHECK(client_case_equal(made));
}

void gpu_finish_call(struct client_case *made, bool memory)
{
    if (memory) {
        fake_cuda_free(made->memory);
    }
    client_case_finish(made);
    free(made);
}

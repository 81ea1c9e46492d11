#include "gpu_case.h"

#include <criterion/criterion.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_MS 10000

struct daemon gpu_daemon;
struct attnd *gpu_client;

void gpu_start(const char *const *arguments)
{
    struct attnd_open_options options = {.size = sizeof options, .address = gpu_daemon.directory};
    cr_assert(daemon_start(&gpu_daemon, arguments));
    OK(attnd_open(&options, &gpu_client));
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
}

void gpu_stop(void)
{
    attnd_close(gpu_client);
    gpu_client = NULL;
    cr_expect_eq(fake_cuda_registered(), 0, "host memory is left registered");
    cr_expect(daemon_stop(&gpu_daemon));
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

void gpu_expect(enum attnd_status got, enum attnd_status status, const char *sentence)
{
    cr_expect_eq(got, status, "%s: %s", attnd_status_name(got), attnd_message());
    cr_expect(strstr(attnd_message(), sentence), "\"%s\" lacks \"%s\"", attnd_message(), sentence);
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
    cr_assert_not_null(made);
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
    cr_assert(client_case_equal(made));
}

void gpu_finish_call(struct client_case *made, bool memory)
{
    if (memory) {
        fake_cuda_free(made->memory);
    }
    client_case_finish(made);
    free(made);
}

/*
 * A trainer with a GPU, for the tests of the service: gpu_trainer ADDRESS MODE SEED COUNT.
 *
 * Prints a line when it has come so far that the test may go on, and ends with status 0 if all was well.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "chain.h"
#include "device.h"
#include "pieces.h"

#define CHAIN_CALLS 60
#define HEAVY_PENDING 8
#define PIECE_BYTES ((size_t)2 << 20)
#define SECOND UINT64_C(1000000000)

struct trainer {
    struct attnd *client;
    cudaStream_t stream;
    uint32_t seed;
    uint64_t count;
};

static const struct set_extents usual = {2, 256, 4, 64};
static const struct set_extents huge = {8, 16384, 16, 128};

static void say(const char *line)
{
    (void)puts(line);
    (void)fflush(stdout);
}

static void require(const struct trainer *trainer, enum attnd_status status, const char *what)
{
    if (status != ATTND_OK) {
        (void)fprintf(stderr, "gpu_trainer %" PRIu32 ": %s: %s: %s\n", trainer->seed, what,
            attnd_status_name(status), attnd_message());
        exit(1);
    }
}

static void wait_for(const struct trainer *trainer, attnd_ticket ticket)
{
    require(trainer, attnd_wait(trainer->client, ticket, ATTND_FOREVER), "attnd_wait");
}

static void check_chain_beside(const struct trainer *trainer, struct set *set, struct set *other,
    uint32_t calls, bool backward)
{
    enum attnd_status status = ATTND_OK;
    const struct chain chain = {.client = trainer->client,
        .set = set,
        .stream = trainer->stream,
        .seed = trainer->seed,
        .calls = calls,
        .backward = backward};
    bool same = chain_agrees(&chain, other, &status);
    require(trainer, status, "a chain");
    if (!same) {
        (void)fprintf(
            stderr, "gpu_trainer %" PRIu32 ": the order of calls was broken\n", trainer->seed);
        exit(1);
    }
}

/* Of sets of the usual extents. */
static void check_chain(
    const struct trainer *trainer, struct set *set, uint32_t calls, bool backward)
{
    struct set other;
    set_alloc(&other, &usual);
    check_chain_beside(trainer, set, &other, calls, backward);
    set_free(&other);
}

/* ---- Modes --------------------------------------------------------------------------------- */

static void run_chain(struct trainer *trainer)
{
    struct set set;
    set_alloc(&set, &usual);
    check_chain(trainer, &set, (uint32_t)trainer->count, true);
    set_free(&set);
}

/* The same in memory of the virtual memory API, and in no other. */
static void run_pieces(struct trainer *trainer)
{
    struct set sets[2];
    struct pieces pieces;
    size_t bytes = set_bytes(&usual);
    pieces_init(&pieces, PIECE_BYTES, 2 * bytes);
    pieces_grow(&pieces, 2 * bytes);
    set_init(&sets[0], &usual, pieces.base);
    set_init(&sets[1], &usual, pieces.base + bytes);
    check_chain_beside(trainer, &sets[0], &sets[1], (uint32_t)trainer->count, true);
    pieces_finish(&pieces);
}

/* One call over cudaMalloc memory; the line says what came of it. */
static void run_try(struct trainer *trainer)
{
    struct set set;
    attnd_ticket ticket = 0;
    set_alloc(&set, &usual);
    set_fill(&set, trainer->stream, trainer->seed);
    enum attnd_status status = set_forward(&set, trainer->client, trainer->stream, &ticket);
    if (status == ATTND_OK) {
        status = attnd_wait(trainer->client, ticket, ATTND_FOREVER);
    }
    (void)printf("%s %s\n", attnd_status_name(status), status == ATTND_OK ? "" : attnd_message());
    set_free(&set);
}

/* Something is done that was begun then: lines wait in a pipe for longer than what they are about. */
static void say_done(uint64_t begun_ns)
{
    (void)printf("done %" PRIu64 "\n", begun_ns);
    (void)fflush(stdout);
}

static void run_endless(struct trainer *trainer)
{
    struct set set;
    set_alloc(&set, &usual);
    for (;; trainer->seed++) {
        uint64_t begun = device_now_ns();
        check_chain(trainer, &set, CHAIN_CALLS, true);
        say_done(begun);
    }
}

/* Whether the chain in lockstep, in other memory, ends as it did under load. */
static void check_loaded(const struct trainer *trainer, const struct chain *loaded)
{
    struct set set;
    struct chain slow = *loaded;
    set_alloc(&set, &usual);
    slow.set = &set;
    slow.lockstep = true;
    require(trainer, chain_enqueue(&slow), "a call in lockstep");
    CU(cudaStreamSynchronize(trainer->stream));
    size_t bytes = 3 * set.pitch; /* q, k and v */
    if (!chain_is_sound(&set) || work_differences(loaded->set->memory, set.memory, bytes) != 0) {
        (void)fprintf(
            stderr, "gpu_trainer %" PRIu32 ": the order of calls was broken\n", trainer->seed);
        exit(1);
    }
    set_free(&set);
}

/* Calls for `count` milliseconds, as fast as they go; the line says how many. */
static void run_load(struct trainer *trainer)
{
    struct set set;
    set_alloc(&set, &usual);
    check_chain(trainer, &set, CHAIN_CALLS, true);
    say("ready");
    struct chain chain = {.client = trainer->client,
        .set = &set,
        .stream = trainer->stream,
        .seed = trainer->seed,
        .calls = CHAIN_CALLS,
        .backward = true};
    uint64_t begin = device_now_ns();
    uint64_t calls = 0;
    while (device_now_ns() - begin < trainer->count * (SECOND / 1000)) {
        require(trainer, chain_enqueue(&chain), "a call");
        calls += CHAIN_CALLS;
    }
    CU(cudaStreamSynchronize(trainer->stream));
    double seconds = (double)(device_now_ns() - begin) / (double)SECOND;
    check_loaded(trainer, &chain); /* the last of many that are alike */
    (void)printf("calls %" PRIu64 " seconds %.6f\n", calls, seconds);
}

/* The daemon's kernels run over this process's memory at any time. */
static void run_heavy(struct trainer *trainer)
{
    struct set set;
    attnd_ticket tickets[HEAVY_PENDING] = {0};
    uint64_t begun[HEAVY_PENDING] = {0};
    set_alloc(&set, &huge);
    set_fill(&set, trainer->stream, trainer->seed);
    for (uint64_t i = 0; trainer->count == 0 || i < trainer->count; i++) {
        attnd_ticket *ticket = &tickets[i % HEAVY_PENDING];
        if (i >= HEAVY_PENDING) {
            wait_for(trainer, *ticket);
            say_done(begun[i % HEAVY_PENDING]);
        }
        begun[i % HEAVY_PENDING] = device_now_ns();
        require(trainer, set_forward(&set, trainer->client, trainer->stream, ticket), "a call");
    }
}

/* A kernel of its own that does not end in time, and a call that waits for it. */
static void run_spin(struct trainer *trainer)
{
    struct set set;
    set_alloc(&set, &usual);
    check_chain(trainer, &set, 2, false);
    work_spin(trainer->stream, 600 * SECOND);
    require(trainer, set_forward(&set, trainer->client, trainer->stream, NULL), "a call");
    say("running");
    device_sleep_ms(600000);
}

/* Memory of `count` MiB that the daemon has mapped. */
static void run_hold(struct trainer *trainer)
{
    struct set set;
    void *memory = NULL;
    CU(cudaMalloc(&memory, (size_t)trainer->count << 20));
    set_init(&set, &usual, memory);
    check_chain(trainer, &set, 2, false);
    say("held");
    device_sleep_ms(600000);
}

/* Works until the daemon dies, and must then come free. */
static void run_orphan(struct trainer *trainer)
{
    struct set set;
    set_alloc(&set, &usual);
    const struct chain chain = {.client = trainer->client,
        .set = &set,
        .stream = trainer->stream,
        .seed = trainer->seed,
        .calls = CHAIN_CALLS,
        .backward = true};
    attnd_ticket ticket = 0; /* of a call that was taken, one of the last 64 */
    enum attnd_status status = chain_enqueue(&chain);
    require(trainer, set_forward(&set, trainer->client, trainer->stream, &ticket), "a call");
    say("running");
    while (status == ATTND_OK) {
        attnd_ticket next = 0;
        status = set_forward(&set, trainer->client, trainer->stream, &next);
        ticket = status == ATTND_OK ? next : ticket;
        status = status == ATTND_OK ? chain_enqueue(&chain) : status;
    }
    char sentence[256];
    (void)snprintf(sentence, sizeof sentence, "%s", attnd_message());
    CU(cudaStreamSynchronize(trainer->stream));
    enum attnd_status waited = attnd_wait(trainer->client, ticket, 20 * (int64_t)SECOND);
    enum attnd_status later = set_forward(&set, trainer->client, trainer->stream, NULL);
    (void)printf(
        "status %d waited %d later %d %s\n", (int)status, (int)waited, (int)later, sentence);
    (void)fflush(stdout);
    CU(cudaDeviceSynchronize());
    work_fill(trainer->stream, set_data(&set, SET_Q), set.count, 1); /* the device still works */
    CU(cudaStreamSynchronize(trainer->stream));
}

/* Loses its context with calls under way; the library must say so and let go. */
static void run_fault(struct trainer *trainer)
{
    struct set set;
    attnd_ticket ticket = 0;
    set_alloc(&set, &usual);
    check_chain(trainer, &set, CHAIN_CALLS, true);
    work_fault(trainer->stream);
    enum attnd_status status = set_forward(&set, trainer->client, trainer->stream, &ticket);
    if (status == ATTND_OK) {
        status = attnd_wait(trainer->client, ticket, 2 * (int64_t)SECOND);
    }
    if (cudaStreamSynchronize(trainer->stream) == cudaSuccess) {
        (void)fprintf(stderr, "gpu_trainer: the fault did no harm\n");
        exit(1);
    }
    enum attnd_status later = set_forward(&set, trainer->client, trainer->stream, NULL);
    (void)printf("status %s later %s\n", attnd_status_name(status), attnd_status_name(later));
    (void)fflush(stdout);
    if (later == ATTND_OK) {
        exit(1);
    }
}

static void submit_all(struct trainer *trainer, struct set *set, attnd_ticket *tickets)
{
    for (uint64_t i = 0; i < trainer->count; i++) {
        require(trainer, set_forward(set, trainer->client, trainer->stream, &tickets[i]), "a call");
    }
}

/* `count` accepted calls, which must end well; then waits to be refused. */
static void run_drain(struct trainer *trainer)
{
    struct set set;
    attnd_ticket *tickets = calloc(trainer->count, sizeof *tickets);
    struct attnd_stats stats = {.size = sizeof stats};
    set_alloc(&set, &huge);
    set_fill(&set, trainer->stream, trainer->seed);
    submit_all(trainer, &set, tickets);
    require(trainer, attnd_get_stats(trainer->client, &stats), "attnd_get_stats");
    (void)printf("submitted %" PRIu64 "\n", stats.client.in_flight);
    (void)fflush(stdout);
    for (uint64_t i = 0; i < trainer->count; i++) {
        wait_for(trainer, tickets[i]);
    }
    free(tickets);
    enum attnd_status status = ATTND_OK;
    for (int tries = 0; tries < 2000 && status == ATTND_OK; tries++) {
        attnd_ticket late = 0;
        status = set_forward(&set, trainer->client, trainer->stream, &late);
        status = status == ATTND_OK ? attnd_wait(trainer->client, late, ATTND_FOREVER) : status;
    }
    if (status != ATTND_DRAINING && status != ATTND_DISCONNECTED) {
        require(trainer, status != ATTND_OK ? status : ATTND_INTERNAL, "calls are still taken");
    }
    CU(cudaStreamSynchronize(trainer->stream));
}

/* The handle of an allocation, for whoever wants to misuse it. */
static void run_export(struct trainer *trainer)
{
    cudaIpcMemHandle_t handle;
    void *memory = NULL;
    CU(cudaMalloc(&memory, (size_t)trainer->count));
    CU(cudaMemset(memory, 0x7b, (size_t)trainer->count));
    CU(cudaDeviceSynchronize());
    CU(cudaIpcGetMemHandle(&handle, memory));
    for (size_t i = 0; i < sizeof handle; i++) {
        (void)printf("%02x", (unsigned)(unsigned char)handle.reserved[i]);
    }
    say("");
    device_sleep_ms(600000);
}

/* What the daemon would see through the handle in the environment. */
static void run_peek(struct trainer *trainer)
{
    (void)trainer;
    cudaIpcMemHandle_t handle;
    void *memory = NULL;
    unsigned char byte = 0;
    const char *digits = getenv("GPU_TRAINER_HANDLE");
    for (size_t i = 0; digits != NULL && i < sizeof handle; i++) {
        const char pair[3] = {digits[2 * i], digits[2 * i + 1], '\0'};
        handle.reserved[i] = (char)strtoul(pair, NULL, 16);
    }
    cudaError_t error = cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) {
        (void)printf("refused: %s\n", cudaGetErrorString(error));
        return;
    }
    CU(cudaMemcpy(&byte, memory, 1, cudaMemcpyDeviceToHost));
    (void)printf("opened %02x\n", byte);
}

struct mode {
    const char *name;
    void (*run)(struct trainer *trainer);
    bool alone; /* without a client */
};

static const struct mode modes[] = {
    {"chain", run_chain, false},
    {"pieces", run_pieces, false},
    {"try", run_try, false},
    {"endless", run_endless, false},
    {"load", run_load, false},
    {"heavy", run_heavy, false},
    {"spin", run_spin, false},
    {"hold", run_hold, false},
    {"orphan", run_orphan, false},
    {"fault", run_fault, false},
    {"drain", run_drain, false},
    {"export", run_export, true},
    {"peek", run_peek, true},
};

static const struct mode *find_mode(const char *name)
{
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, name) == 0) {
            return &modes[i];
        }
    }
    (void)fprintf(stderr, "gpu_trainer: no mode %s\n", name);
    exit(2);
}

/* Before it touches the GPU, root becomes whom the environment names. It then is as other processes of
 * that user are, but for its program, which need not be theirs to run. */
static void become_user(void)
{
    const char *uid = getenv("GPU_TRAINER_UID");
    if (uid == NULL) {
        return;
    }
    uid_t user = (uid_t)strtoul(uid, NULL, 10);
    if (setresgid(user, user, user) != 0 || setresuid(user, user, user) != 0 ||
        prctl(PR_SET_DUMPABLE, 1) != 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
        (void)fprintf(stderr, "gpu_trainer: cannot be user %s\n", uid);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        (void)fprintf(stderr, "usage: gpu_trainer ADDRESS MODE SEED COUNT\n");
        return 2;
    }
    const struct mode *mode = find_mode(argv[2]);
    struct trainer trainer = {
        .seed = (uint32_t)strtoul(argv[3], NULL, 10), .count = strtoull(argv[4], NULL, 10)};
    struct attnd_open_options options = {
        .size = sizeof options, .address = argv[1], .name = "gpu_trainer"};
    become_user();
    device_require("gpu_trainer");
    CU(cudaStreamCreateWithFlags(&trainer.stream, cudaStreamNonBlocking));
    if (!mode->alone) {
        require(&trainer, attnd_open(&options, &trainer.client), "attnd_open");
    }
    mode->run(&trainer);
    attnd_close(trainer.client);
    return 0;
}

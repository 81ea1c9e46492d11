/* libattnd and device memory: what it registers, notices to be freed, and refuses. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "gpu_case.h"

#define CASES 60

static void start(void)
{
    gpu_start(NULL);
}

TestSuite(client_gpu_memory, .init = start, .fini = gpu_stop, .timeout = 60);

/* Lengths may also lie in the host's memory, shared or not. */
static void spread_lengths(struct client_case *made, struct rng *rng, char *shared)
{
    for (enum wire_role role = WIRE_CU_SEQLENS_Q; role <= WIRE_SEQLENS_K; role++) {
        DLTensor *tensor = &made->tensor[role];
        int64_t place = rng_between(rng, 0, 2);
        if (tensor->ndim == 0 || place == 0) {
            continue;
        }
        tensor->device = (DLDevice){place == 1 ? kDLCPU : kDLCUDAHost, 0};
        tensor->data = client_case_twin(made, role);
        if (place == 1) {
            tensor->data = shared + made->offset[role];
            memcpy(tensor->data, client_case_twin(made, role),
                (size_t)made->extents[role][0] * sizeof(int32_t));
        }
    }
}

Test(client_gpu_memory, calls_of_all_features_leave_the_kernels_own_bytes)
{
    struct rng rng = {4711};
    void *stream = fake_cuda_stream();
    for (int i = 0; i < CASES; i++) {
        struct client_case *made = malloc(sizeof *made);
        cr_assert_not_null(made);
        client_case_draw(made, &rng);
        client_case_init(made, &rng);
        void *shared;
        OK(attnd_alloc(gpu_client, made->bytes, &shared));
        char *memory = fake_cuda_alloc(0, FAKE_MALLOC, made->bytes + 4096);
        client_case_place(made, memory + 64 * rng_between(&rng, 0, 60));
        gpu_mark(made, 0);
        spread_lengths(made, &rng, shared);
        gpu_run(made, stream);
        attnd_free(gpu_client, shared);
        fake_cuda_free(memory);
        client_case_finish(made);
        free(made);
    }
}

Test(client_gpu_memory, an_allocation_is_registered_once_however_many_tensors_it_holds)
{
    size_t bytes = gpu_call_bytes();
    char *memory = fake_cuda_alloc(0, FAKE_MALLOC, 4 * bytes);
    for (size_t i = 0; i < 8; i++) {
        struct client_case *made = gpu_call(memory + i % 4 * bytes);
        gpu_run(made, NULL);
        gpu_finish_call(made, false);
    }
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), 4 * bytes);
    cr_expect_eq(fake_cuda_exported(), 1);
}

Test(client_gpu_memory, an_address_that_is_given_away_again_is_other_memory)
{
    void *before = NULL;
    for (int i = 0; i < 10; i++) {
        struct client_case *made = gpu_call(NULL);
        cr_expect(!before || made->memory == before, "the fake driver gives the same address");
        before = made->memory;
        gpu_run(made, NULL);
        gpu_finish_call(made, true);
    }
}

Test(client_gpu_memory, what_is_freed_is_let_go_by_itself)
{
    struct client_case *first = gpu_call(NULL);
    struct client_case *second = gpu_call(NULL);
    uint64_t none = 0;
    gpu_run(first, NULL);
    gpu_run(second, NULL);
    cr_expect_eq(gpu_regions(), 2);
    gpu_finish_call(first, true);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}));
    gpu_run(second, NULL);
    gpu_finish_call(second, true);
    cr_expect(gpu_eventually(gpu_has_regions, &none));
}

Test(client_gpu_memory, what_is_freed_too_early_stays_until_its_requests_have_ended)
{
    struct client_case *made = gpu_call(NULL);
    void *stream = fake_cuda_stream();
    attnd_ticket ticket;
    static struct gpu_gate gate;
    fake_cuda_launch(stream, gpu_hold, &gate);
    OK(gpu_submit(made, stream, &ticket));
    fake_cuda_free(made->memory);
    (void)usleep(300000);
    cr_expect_eq(gpu_regions(), 1);
    OK(attnd_trim(gpu_client, ATTND_FOREVER));
    cr_expect_eq(gpu_regions(), 1);
    atomic_store(&gate.open, true);
    OK(attnd_wait(gpu_client, ticket, ATTND_FOREVER));
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){0}));
    fake_cuda_synchronize(stream);
    client_case_finish(made);
    free(made);
}

Test(client_gpu_memory, trimming_releases_what_is_idle)
{
    struct client_case *made = gpu_call(NULL);
    gpu_run(made, NULL);
    cr_expect_eq(gpu_regions(), 1);
    OK(attnd_trim(gpu_client, ATTND_FOREVER));
    cr_expect_eq(gpu_regions(), 0);
    OK(attnd_trim(gpu_client, 1000000000));
    gpu_run(made, NULL);
    cr_expect_eq(gpu_regions(), 1);
    cr_assert(gpu_says(attnd_trim(gpu_client, -2), ATTND_INVALID_ARGUMENT, "timeout_ns is -2"));
    cr_assert_eq(kill(gpu_daemon.pid, SIGSTOP), 0);
    cr_assert(gpu_says(attnd_trim(gpu_client, 50000000), ATTND_TIMED_OUT, "0.050 s"));
    cr_assert_eq(kill(gpu_daemon.pid, SIGCONT), 0);
    OK(attnd_trim(gpu_client, ATTND_FOREVER));
    gpu_run(made, NULL);
    gpu_finish_call(made, true);
}

#define IDLE 12

Test(client_gpu_memory, trimming_takes_its_time_once_and_loses_nothing)
{
    struct client_case *made[IDLE];
    for (int i = 0; i < IDLE; i++) {
        made[i] = gpu_call(NULL);
        gpu_run(made[i], NULL);
    }
    int none = 0; /* room for a few messages: some cannot be sent */
    cr_assert_eq(setsockopt(gpu_client->gate.fd, SOL_SOCKET, SO_SNDBUF, &none, sizeof none), 0);
    cr_assert_eq(kill(gpu_daemon.pid, SIGSTOP), 0);
    int64_t begin = clock_now_ns();
    cr_assert(gpu_says(attnd_trim(gpu_client, 300000000), ATTND_TIMED_OUT, "0.300 s"));
    cr_expect_lt(clock_now_ns() - begin, 3 * CLOCK_SECOND_NS);
    cr_expect_gt(gpu_client->memory.regions, 0, "the daemon does not know of all yet");
    cr_expect_lt(gpu_client->memory.regions, IDLE);
    cr_assert_eq(kill(gpu_daemon.pid, SIGCONT), 0);
    OK(attnd_trim(gpu_client, ATTND_FOREVER));
    cr_expect_eq(gpu_regions(), 0);
    cr_expect_eq(gpu_client->memory.regions, 0);
    cr_expect_eq(gpu_client->memory.bytes, 0);
    for (int i = 0; i < IDLE; i++) {
        gpu_finish_call(made[i], true);
    }
}

static bool are_all_being_withdrawn(void *unused)
{
    (void)unused;
    struct devices *devices = &gpu_client->devices;
    (void)pthread_mutex_lock(&devices->mutex);
    bool all = devices->table.count == 0 && !devices->retired;
    (void)pthread_mutex_unlock(&devices->mutex);
    return all;
}

Test(client_gpu_memory, trimming_waits_for_what_is_let_go_of_meanwhile)
{
    struct client_case *made[IDLE];
    for (int i = 0; i < IDLE; i++) {
        made[i] = gpu_call(NULL);
        gpu_run(made[i], NULL);
    }
    cr_assert_eq(kill(gpu_daemon.pid, SIGSTOP), 0);
    for (int i = 0; i < IDLE; i++) {
        gpu_finish_call(made[i], true);
    }
    cr_expect(gpu_eventually(are_all_being_withdrawn, NULL));
    cr_assert_eq(kill(gpu_daemon.pid, SIGCONT), 0);
    OK(attnd_trim(gpu_client, ATTND_FOREVER));
    cr_expect_eq(gpu_regions(), 0);
    cr_expect_eq(gpu_client->memory.regions, 0);
}

static bool has_exported(void *count)
{
    return fake_cuda_exported() == *(const size_t *)count;
}

static void *submit_new(void *made)
{
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    gpu_run(made, NULL);
    return NULL;
}

Test(client_gpu_memory, trimming_waits_for_no_registration_past_its_time)
{
    struct client_case *made[2] = {gpu_call(NULL), gpu_call(NULL)};
    pthread_t thread;
    gpu_run(made[0], NULL);
    gpu_client->timeout_ns = 30 * CLOCK_SECOND_NS;
    cr_assert_eq(kill(gpu_daemon.pid, SIGSTOP), 0);
    cr_assert_eq(pthread_create(&thread, NULL, submit_new, made[1]), 0);
    cr_expect(gpu_eventually(has_exported, &(size_t){2}));
    int64_t begin = clock_now_ns();
    cr_assert(gpu_says(attnd_trim(gpu_client, 50000000), ATTND_TIMED_OUT, "0.050 s"));
    cr_expect_lt(clock_now_ns() - begin, 10 * CLOCK_SECOND_NS);
    cr_assert_eq(kill(gpu_daemon.pid, SIGCONT), 0);
    (void)pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++) {
        gpu_finish_call(made[i], true);
    }
}

/* ---- Pieces ------------------------------------------------------------------------------------- */

#define PIECES 8

static char *range;

static void map_pieces(enum fake_memory kind, int first, int count)
{
    if (!range) {
        range = fake_cuda_reserve(PIECES);
    }
    for (int i = first; i < first + count; i++) {
        fake_cuda_map(0, kind, range + (uint64_t)i * FAKE_PIECE_BYTES);
    }
}

static void free_piece(int index)
{
    fake_cuda_free(range + (uint64_t)index * FAKE_PIECE_BYTES);
}

/* A call that lies across the end of a piece. */
static void run_across(int piece)
{
    size_t bytes = gpu_call_bytes();
    uint64_t end = (uint64_t)(piece + 1) * FAKE_PIECE_BYTES;
    struct client_case *made = gpu_call(range + end - bytes / 64 / 2 * 64);
    gpu_run(made, NULL);
    gpu_finish_call(made, false);
}

Test(client_gpu_memory, a_run_of_pieces_is_one_region_that_grows)
{
    map_pieces(FAKE_MAPPED, 0, 3);
    run_across(1);
    cr_expect_eq(gpu_regions(), 1, "from the beginning of the run");
    cr_expect_eq(gpu_region_bytes(), 3 * FAKE_PIECE_BYTES);
    run_across(0);
    cr_expect_eq(gpu_region_bytes(), 3 * FAKE_PIECE_BYTES);
    map_pieces(FAKE_MAPPED, 3, 5);
    run_across(2);
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), 4 * FAKE_PIECE_BYTES);
    run_across(6);
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), 8 * FAKE_PIECE_BYTES);
    cr_expect_eq(fake_cuda_exported(), 8);
}

Test(client_gpu_memory, a_piece_that_changed_makes_its_run_another_one)
{
    map_pieces(FAKE_MAPPED, 0, 4);
    run_across(2);
    free_piece(1);
    map_pieces(FAKE_MAPPED, 1, 1);
    run_across(0);
    run_across(1);
    run_across(2);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}));
    free_piece(0);
    run_across(2);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){0}), "a part of it was freed");
    run_across(2);
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), 3 * FAKE_PIECE_BYTES);
    map_pieces(FAKE_MAPPED, 0, 1);
    run_across(0);
    run_across(2);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}));
    cr_expect_eq(gpu_region_bytes(), 4 * FAKE_PIECE_BYTES);
}

Test(client_gpu_memory, reservations_side_by_side_do_not_get_into_each_others_way)
{
    range = fake_cuda_reserve(PIECES);
    fake_cuda_split(range + PIECES / 2 * FAKE_PIECE_BYTES);
    map_pieces(FAKE_MAPPED, 0, 4);
    run_across(1);
    run_across(2);
    cr_expect_eq(gpu_region_bytes(), 4 * FAKE_PIECE_BYTES);
    map_pieces(FAKE_MAPPED, 4, 4);
    run_across(4);
    cr_expect_eq(gpu_regions(), 2, "the first is full");
    run_across(5);
    run_across(2);
    cr_expect_eq(gpu_regions(), 2);
    run_across(3);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}), "of both, as a tensor is");
    run_across(6);
    run_across(0);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}));
    cr_expect_eq(gpu_region_bytes(), 8 * FAKE_PIECE_BYTES);
}

static void change_first_piece(void)
{
    free_piece(0);
    map_pieces(FAKE_MAPPED, 0, 1);
}

Test(client_gpu_memory, a_piece_that_changes_while_it_is_shared_is_noticed)
{
    map_pieces(FAKE_MAPPED, 0, 3);
    fake_cuda_at_export(change_first_piece);
    run_across(1);
    for (int i = 0; i < 3; i++) {
        run_across(0);
    }
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}), "the first try's is let go of");
    cr_expect_eq(gpu_region_bytes(), 2 * FAKE_PIECE_BYTES, "as far as the tensors reach");
}

Test(client_gpu_memory, a_tensor_that_reaches_beyond_its_memory_is_refused)
{
    map_pieces(FAKE_MAPPED, 0, 1);
    size_t bytes = gpu_call_bytes();
    struct client_case *made = gpu_call(range);
    made->tensor[WIRE_LSE].data = range + FAKE_PIECE_BYTES - 64;
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_INVALID_ARGUMENT,
        "lse reaches 992 bytes beyond the device memory that it lies in"));
    gpu_finish_call(made, false);
    char *memory = fake_cuda_alloc(0, FAKE_MALLOC, bytes);
    made = gpu_call(memory);
    made->tensor[WIRE_LSE].data = memory + bytes - 64;
    cr_assert(
        gpu_says(gpu_submit(made, NULL, NULL), ATTND_INVALID_ARGUMENT, "lse reaches 992 bytes"));
    gpu_finish_call(made, false);
}

/* What the client counts: it does so a moment after the daemon. */
static bool has_booked(void *bytes)
{
    (void)pthread_mutex_lock(&gpu_client->mutex);
    bool equal = gpu_client->memory.bytes == *(const uint64_t *)bytes;
    (void)pthread_mutex_unlock(&gpu_client->mutex);
    return equal;
}

static size_t open_descriptors(void)
{
    size_t count = 0;
    for (int fd = 0; fd < 1024; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

Test(client_gpu_memory, pieces_do_not_wait_for_each_others_replies)
{
    map_pieces(FAKE_MAPPED, 0, PIECES);
    run_across(0);
    cr_expect_eq(fake_cuda_exported(), 2);
    size_t before = open_descriptors();
    gpu_client->timeout_ns = 50000000;
    cr_assert_eq(kill(gpu_daemon.pid, SIGSTOP), 0);
    struct client_case *made = gpu_call(range + (PIECES - 1) * FAKE_PIECE_BYTES);
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_TIMED_OUT, "0.050 s"));
    cr_expect_eq(fake_cuda_exported(), PIECES, "all are on their way");
    cr_expect_eq(open_descriptors(), before);
    cr_assert_eq(kill(gpu_daemon.pid, SIGCONT), 0);
    gpu_client->timeout_ns = 10 * CLOCK_SECOND_NS;
    gpu_run(made, NULL);
    gpu_finish_call(made, false);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}), "the one of unknown size is gone");
    cr_expect_eq(gpu_region_bytes(), PIECES * FAKE_PIECE_BYTES);
    cr_expect(gpu_eventually(has_booked, &(uint64_t){PIECES * FAKE_PIECE_BYTES}));
}

#define LONG_RUN 70 /* pieces: more than are on their way at a time */

Test(client_gpu_memory, a_long_run_of_pieces_is_one_region)
{
    range = fake_cuda_reserve(LONG_RUN);
    map_pieces(FAKE_MAPPED, 0, LONG_RUN);
    run_across(LONG_RUN - 2);
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), LONG_RUN * FAKE_PIECE_BYTES);
    for (int piece = 0; piece < LONG_RUN - 1; piece++) {
        run_across(piece);
    }
    cr_expect_eq(fake_cuda_exported(), LONG_RUN);
    free_piece(LONG_RUN / 2);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){0}));
    cr_expect(gpu_eventually(has_booked, &(uint64_t){0}));
}

Test(client_gpu_memory, a_piece_that_the_daemon_refuses_leaves_those_before_it)
{
    map_pieces(FAKE_MAPPED, 0, 5);
    map_pieces(FAKE_MAPPED_REFUSED, 5, 1);
    map_pieces(FAKE_MAPPED, 6, 2);
    size_t before = open_descriptors();
    struct client_case *made =
        gpu_call(range + 7 * FAKE_PIECE_BYTES - gpu_call_bytes() / 64 / 2 * 64);
    made->tensor[WIRE_Q].data = range; /* the region begins here */
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_UNSUPPORTED_MEMORY, "mmap of a piece"));
    cr_expect_eq(open_descriptors(), before);
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), 5 * FAKE_PIECE_BYTES);
    cr_expect_eq(gpu_client->memory.bytes, 5 * FAKE_PIECE_BYTES);
    for (int piece = 0; piece < 4; piece++) {
        run_across(piece);
    }
    cr_expect_eq(fake_cuda_exported(), 7, "what is there is not shared again");
    free_piece(5);
    map_pieces(FAKE_MAPPED, 5, 1);
    run_across(6);
    run_across(4);
    cr_expect_eq(gpu_regions(), 1);
    cr_expect_eq(gpu_region_bytes(), 8 * FAKE_PIECE_BYTES);
    cr_expect_eq(fake_cuda_exported(), 10);
    gpu_finish_call(made, false);
}

/* ---- What cannot be shared ---------------------------------------------------------------------- */

static void expect_refusal(void *memory, enum attnd_status status, const char *sentence)
{
    struct client_case *made = gpu_call(NULL);
    void *own = made->memory;
    made->tensor[WIRE_K].data = memory;
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), status, sentence));
    made->memory = own;
    gpu_finish_call(made, true);
}

Test(client_gpu_memory, what_cannot_be_shared_is_nobody_elses_trouble)
{
    map_pieces(FAKE_MAPPED_PRIVATE, 0, 1);
    map_pieces(FAKE_MAPPED, 1, 3);
    map_pieces(FAKE_MAPPED_PRIVATE, 4, 1);
    run_across(2);
    run_across(1);
    run_across(2);
    cr_expect(gpu_eventually(gpu_has_regions, &(uint64_t){1}));
    cr_expect_eq(gpu_region_bytes(), 3 * FAKE_PIECE_BYTES);
    struct client_case *made = gpu_call(range + 4 * FAKE_PIECE_BYTES - 64);
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_UNSUPPORTED_MEMORY,
        "create it with CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR"));
    gpu_finish_call(made, false);
}

static void *of_kind(enum fake_memory kind)
{
    return fake_cuda_alloc(0, kind, FAKE_PIECE_BYTES);
}

Test(client_gpu_memory, memory_that_cannot_be_shared_is_named)
{
    static char host[FAKE_PIECE_BYTES];

    expect_refusal(
        of_kind(FAKE_POOL), ATTND_UNSUPPORTED_MEMORY, "k lies in a memory pool (cudaMallocAsync)");
    expect_refusal(of_kind(FAKE_MANAGED), ATTND_UNSUPPORTED_MEMORY,
        "k lies in managed memory (cudaMallocManaged)");
    expect_refusal(
        of_kind(FAKE_PINNED), ATTND_INVALID_ARGUMENT, "k->data is no memory of a device");
    expect_refusal(host, ATTND_INVALID_ARGUMENT, "k->data is no memory of a device");
    map_pieces(FAKE_MAPPED_PRIVATE, 0, 1);
    expect_refusal(
        range, ATTND_UNSUPPORTED_MEMORY, "create it with CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR");
    expect_refusal(fake_cuda_alloc(1, FAKE_MALLOC, FAKE_PIECE_BYTES), ATTND_INVALID_ARGUMENT,
        "k->device.device_id is 0, but its memory is device 1's");
}

Test(client_gpu_memory, tensors_of_different_places_do_not_go_together)
{
    struct client_case *made = gpu_call(NULL);
    made->tensor[WIRE_V].device = (DLDevice){kDLCPU, 0};
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_INVALID_ARGUMENT,
        "v lies in the host's memory, but q in a device's"));
    gpu_mark(made, 0);
    made->tensor[WIRE_OUT].device.device_id = 1;
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_INVALID_ARGUMENT,
        "out->device.device_id is 1, but that of tensors before it is 0"));
    gpu_mark(made, 0);
    made->tensor[WIRE_K].device.device_type = kDLCUDAManaged;
    cr_assert(gpu_says(
        gpu_submit(made, NULL, NULL), ATTND_UNSUPPORTED_MEMORY, "k lies in managed memory"));
    gpu_mark(made, 0);
    made->tensor[WIRE_K].device.device_type = kDLROCM;
    cr_assert(
        gpu_says(gpu_submit(made, NULL, NULL), ATTND_UNSUPPORTED, "k->device is of DLPack type"));
    gpu_mark(made, 1);
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_INVALID_ARGUMENT,
        "device_id 1 is GPU-5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a01, but this client's daemon "
        "computes on GPU-5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a00"));
    gpu_mark(made, 0);
    struct attnd_request both[2] = {made->request, made->request};
    DLTensor moved = made->tensor[WIRE_Q];
    moved.device = (DLDevice){kDLCPU, 0};
    both[1].q = &moved;
    cr_assert(gpu_says(attnd_submit(gpu_client, NULL, both, 2, NULL), ATTND_INVALID_ARGUMENT,
        "requests[1].q lies in the host's memory"));
    cr_expect_eq(gpu_regions(), 0, "nothing has happened");
    gpu_run(made, NULL);
    gpu_finish_call(made, true);
}

/* ---- Beside it ---------------------------------------------------------------------------------- */

Test(client_gpu_memory, host_tensors_are_computed_as_ever)
{
    struct client_case *made = gpu_call(NULL);
    void *shared;
    OK(attnd_alloc(gpu_client, made->bytes, &shared));
    for (int i = 0; i < 2; i++) {
        client_case_place(made, i == 0 ? shared : malloc(made->bytes));
        for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
            made->tensor[role].device = (DLDevice){i == 0 ? kDLCPU : kDLCUDAHost, 0};
        }
        attnd_ticket ticket;
        OK(gpu_submit(made, NULL, &ticket));
        OK(attnd_wait(gpu_client, ticket, ATTND_FOREVER));
        cr_expect(client_case_equal(made));
    }
    free(made->memory);
    gpu_finish_call(made, false);
}

/* rows: 0, there are no keys; batch: 0, there is nothing at all */
static void run_empty(int64_t batch, int64_t rows_k)
{
    struct client_case made = {.options = ATTND_OPTIONS_INIT};
    struct rng rng = {5};
    made.shape = (struct case_shape){.direction = ATTND_FORWARD,
        .dtype = {kDLBfloat, 16, 1},
        .batch = batch,
        .rows_q = 4,
        .rows_k = rows_k,
        .heads_q = 2,
        .heads_kv = 2,
        .dim = 8,
        .dim_v = 8};
    client_case_init(&made, &rng);
    client_case_place(&made, fake_cuda_alloc(0, FAKE_MALLOC, made.bytes));
    gpu_mark(&made, 0);
    gpu_run(&made, NULL);
    client_case_finish(&made);
}

Test(client_gpu_memory, tensors_without_elements_need_no_memory)
{
    run_empty(2, 0);
    cr_expect_eq(gpu_regions(), 1, "that of the others");
    run_empty(0, 4);
    cr_expect_eq(gpu_regions(), 2, "they have to lie somewhere");
}

static void start_small(void)
{
    gpu_start((const char *const[]){"--max-regions=3", NULL});
}

TestSuite(client_gpu_limit, .init = start_small, .fini = gpu_stop, .timeout = 60);

Test(client_gpu_limit, what_is_idle_makes_room_for_what_is_wanted)
{
    struct client_case *made[6];
    for (int i = 0; i < 6; i++) {
        made[i] = gpu_call(NULL);
        gpu_run(made[i], NULL);
    }
    cr_expect_leq(gpu_regions(), 3);
    for (int i = 0; i < 6; i++) {
        gpu_run(made[i], NULL);
        gpu_finish_call(made[i], true);
    }
}

/* Three fit. Each new one takes the place of that which was not used for longest. */
Test(client_gpu_limit, the_least_recently_used_makes_room)
{
    struct client_case *made[5];
    for (int i = 0; i < 5; i++) {
        made[i] = gpu_call(NULL);
    }

    const struct {
        int use;
        bool is_known;
    } steps[] = {{0, false}, {1, false}, {2, false}, {0, true}, {3, false}, {0, true}, {2, true},
        {3, true}, {1, false}, {3, true}, {2, true}, {4, false}, {2, true}, {3, true}, {1, false}};

    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        size_t before = fake_cuda_exported();
        gpu_run(made[steps[i].use], NULL);
        cr_expect_eq(fake_cuda_exported() - before, !steps[i].is_known, "step %zu", i);
        cr_expect_leq(gpu_regions(), 3);
    }
    for (int i = 0; i < 5; i++) {
        gpu_finish_call(made[i], true);
    }
}

Test(client_gpu_limit, host_memory_gets_the_room_of_idle_device_memory)
{
    struct client_case *made[3];
    void *shared[3];
    for (int i = 0; i < 3; i++) {
        made[i] = gpu_call(NULL);
        gpu_run(made[i], NULL);
    }
    cr_expect_eq(gpu_regions(), 3);
    for (int i = 0; i < 3; i++) {
        OK(attnd_alloc(gpu_client, 4096, &shared[i]));
        gpu_finish_call(made[i], true);
    }
    cr_expect_eq(gpu_regions(), 3);
    cr_expect_eq(attnd_alloc(gpu_client, 4096, &shared[0]), ATTND_RESOURCE_EXHAUSTED);
}

Test(client_gpu_limit, what_one_call_needs_must_fit)
{
    struct client_case *made = gpu_call(NULL);
    size_t bytes = made->bytes;
    made->tensor[WIRE_Q].data = fake_cuda_alloc(0, FAKE_MALLOC, bytes);
    made->tensor[WIRE_K].data = fake_cuda_alloc(0, FAKE_MALLOC, bytes);
    made->tensor[WIRE_V].data = fake_cuda_alloc(0, FAKE_MALLOC, bytes);
    cr_assert(gpu_says(gpu_submit(made, NULL, NULL), ATTND_RESOURCE_EXHAUSTED,
        "3 pieces of memory that the daemon sees, and it allows 3"));
    gpu_finish_call(made, true);
}

/* The CUDA backend without a GPU: which device, which memory, when marks are written, what is fatal. */
#include "backend.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#include "check.h"
#include "fake_cudart.h"
#include "fake_gpu_kernels.h"
#include "log.h"
#include "page.h"
#include "sealed.h"

#define WORKSPACE (UINT64_C(1) << 20)
#define EXPORTER 4711
#define USER 1234
#define SHARED_BYTES 8192
#define PIECE FAKE_GRANULARITY

static struct backend *create_on(const char *device)
{
    struct wire_error error = {0};
    struct backend *backend = backend_cuda_create(device, WORKSPACE, &error);
    if (backend == NULL) {
        fprintf(stderr, "%s\n", error.detail);
    }
    CHECK(backend != NULL);
    return backend;
}

static struct backend *create(void)
{
    fake_cudart_init(FAKE_GPUS);
    fake_kernels = (struct fake_kernels){.families = 3};
    return create_on("0");
}

static void destroy(struct backend *backend)
{
    backend->ops->destroy(backend);
    struct fake_cudart_counts counts = fake_cudart_count();
    CHECK(counts.allocations == 0 && counts.imports == 0 && counts.reservations == 0);
    CHECK(counts.pieces == 0 && counts.handles == 0 && counts.registered == 0);
    CHECK(counts.pinned == 0 && counts.streams == 0);
}

static void refuses(const char *device, enum wire_status status, const char *words)
{
    struct wire_error error = {0};
    CHECK(backend_cuda_create(device, WORKSPACE, &error) == NULL);
    if (error.status != status || strstr(error.detail, words) == NULL) {
        fprintf(stderr, "device %s: %s\n", device, error.detail);
    }
    CHECK(error.status == status && strstr(error.detail, words) != NULL);
}

/* -- the device --------------------------------------------------------------------------------- */

static void finds_the_device_by_index_and_uuid(void)
{
    static const struct {
        const char *device;
        const char *name;
    } cases[] = {{"0", "Fake GPU 0"}, {"2", "Fake GPU 2"}, {"GPU-2", "Fake GPU 2"},
        {"GPU-117B7B7B-7b7b-7b7b-7b7b-7b7b7b7b7b7b", "Fake GPU 1"}};

    fake_kernels = (struct fake_kernels){.families = 3};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fake_cudart_init(FAKE_GPUS);
        struct backend *backend = create_on(cases[i].device);
        CHECK(strcmp(backend->device_name, cases[i].name) == 0);
        CHECK(backend->device_kind == WIRE_DEVICE_CUDA);
        CHECK(backend->device_uuid[0] == (i == 0 ? 0x10 : i == 3 ? 0x11 : 0x20));
        CHECK(backend->facts.capability == 86 && backend->facts.checks_exporter);
        CHECK(strstr(backend->facts.driver, "CUDA 13.0") != NULL);
        CHECK(backend->facts.mps == WIRE_MPS_OFF);
        destroy(backend);
    }
    refuses("3", WIRE_NOT_FOUND, "this machine shows 3");
    refuses("GPU-1", WIRE_NOT_FOUND, "more than one of the 3");
    refuses("GPU-3", WIRE_NOT_FOUND, "none of the 3");
    fake_cudart_init(-1);
    refuses("0", WIRE_NOT_FOUND, "no GPU that CUDA can use");
    fake_cudart_init(0);
    refuses("GPU-1", WIRE_NOT_FOUND, "no GPU that CUDA can use");
}

static void prepares_and_tries_the_families_that_fit(void)
{
    struct backend *backend = create();
    const char *why = NULL;
    const struct attn_problem problem = {0};
    CHECK(fake_kernels.prepares == 1 && fake_kernels.launches == 4);
    const struct attn_family *family = backend->ops->choose(backend, ATTN_FORWARD, &problem, &why);
    CHECK(family != NULL && strcmp(attn_family_name(family), "fake80") == 0);
    fake_kernels.unsupported = "not this one";
    CHECK(backend->ops->choose(backend, ATTN_FORWARD, &problem, &why) == NULL);
    CHECK(strcmp(why, "not this one") == 0);
    destroy(backend);

    fake_kernels = (struct fake_kernels){.families = 1};
    refuses("0", WIRE_UNSUPPORTED, "no kernels for compute capability 8.6");
    fake_kernels =
        (struct fake_kernels){.families = 2, .prepare_code = cudaErrorNoKernelImageForDevice};
    refuses("0", WIRE_INTERNAL, "kernel family fake80 does not run: attn_prepare");
    fake_kernels = (struct fake_kernels){.families = 2, .launch_code = cudaErrorInvalidValue};
    refuses("0", WIRE_INTERNAL, "kernel family fake80 does not run: attn_launch");
    fake_kernels = (struct fake_kernels){.families = 3};
    fake_cudart_fail("cudaStreamSynchronize", cudaErrorInvalidValue, false);
    refuses("0", WIRE_INTERNAL, "cudaStreamSynchronize");
    fake_cudart_fail("cudaHostAlloc", cudaErrorMemoryAllocation, false);
    refuses("0", WIRE_RESOURCE_EXHAUSTED, "cudaHostAlloc: out of memory");
}

/* As of compute capability 8.6, 8.9 and 12: the kernels would not start. */
static void takes_no_device_whose_blocks_are_too_small(void)
{
    fake_kernels = (struct fake_kernels){.families = 2};
    fake_cudart_init(1);
    fake_cudart_set_block((size_t)99 << 10);
    refuses("0", WIRE_UNSUPPORTED,
        "device: Fake GPU 0 has 99 KiB of shared memory for a block, but the kernels need 163");
    CHECK(fake_kernels.prepares == 0);
    fake_cudart_set_block((size_t)163 << 10);
    destroy(create_on("0"));
}

/* Whatever fails on the way, nothing is left behind. */
static void cleans_up_after_every_failure(void)
{
    static const char *const functions[] = {"cudaInitDevice", "cudaSetDevice",
        "cudaGetDeviceProperties", "cudaGetDriverEntryPointByVersion",
        "cuMemGetAllocationGranularity", "cudaHostAlloc", "cudaHostGetDevicePointer",
        "cudaStreamCreateWithFlags", "cudaMemsetAsync"};
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        struct wire_error error = {0};
        fake_cudart_init(1);
        fake_cudart_fail(functions[i], cudaErrorInvalidValue, false);
        struct backend *backend = backend_cuda_create("0", WORKSPACE, &error);
        struct fake_cudart_counts counts = fake_cudart_count();
        if (backend != NULL) {
            fprintf(stderr, "%s may fail\n", functions[i]);
        }
        CHECK(backend == NULL && error.status != WIRE_OK && error.detail[0] != '\0');
        CHECK(counts.allocations == 0 && counts.pinned == 0 && counts.streams == 0);
    }
}

/* -- memory ------------------------------------------------------------------------------------- */

static bool offer(struct backend *backend, const struct backend_offer *offered, void **base,
    enum wire_status expected, const char *words)
{
    struct wire_error error = {0};
    bool mapped = backend->ops->map(backend, offered, base, &error);
    if (error.status != expected || strstr(error.detail, words) == NULL) {
        fprintf(stderr, "status %d: %s\n", (int)error.status, error.detail);
    }
    CHECK(error.status == expected && strstr(error.detail, words) != NULL);
    CHECK(mapped == (expected == WIRE_OK));
    return mapped;
}

static struct backend_offer ipc_offer(int gpu, size_t bytes, int pid, void **memory)
{
    struct backend_offer offered = {
        .kind = WIRE_MEMORY_CUDA_IPC, .bytes = bytes, .fd = -1, .pid = pid, .uid = USER};
    *memory = fake_cudart_export(gpu, bytes, pid, offered.handle);
    return offered;
}

static void opens_handles_of_their_senders_alone(void)
{
    struct backend *backend = create();
    void *memory;
    void *base = NULL;
    void *again = NULL;
    struct backend_offer good = ipc_offer(0, 10000, EXPORTER, &memory);
    CHECK(offer(backend, &good, &base, WIRE_OK, "") && base == memory);
    CHECK(offer(backend, &good, &again, WIRE_OK, "") && again == memory);
    CHECK(fake_cudart_count().imports == 1 && fake_cudart_count().references == 2);
    backend->ops->unmap(backend, base, good.bytes);
    CHECK(fake_cudart_count().references == 1);
    backend->ops->unmap(backend, again, good.bytes);
    CHECK(fake_cudart_count().imports == 0);

    struct backend_offer bad = good;
    bad.pid = EXPORTER + 1; /* who has seen another's handle */
    (void)offer(backend, &bad, &base, WIRE_PERMISSION_DENIED, "handle: not of memory");
    bad.pid = 0; /* another PID namespace */
    (void)offer(backend, &bad, &base, WIRE_PERMISSION_DENIED, "PID namespace");
    bad = good;
    bad.handle[40] ^= 1;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "handle: cudaIpcOpenMemHandle");
    bad = good;
    bad.bytes = 10001;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT,
        "bytes is 10001, but the allocation has 10000");
    bad = ipc_offer(1, 10000, EXPORTER, &memory);
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "another GPU");
    CHECK(fake_cudart_count().imports == 0);
    destroy(backend);
}

/* Handles that hold no pid, or hold it where it may mean something else. */
static void believes_only_its_own_user_where_handles_say_nothing(int times)
{
    fake_cudart_init(1);
    fake_cudart_repeat_exporter(times);
    fake_kernels = (struct fake_kernels){.families = 2};
    struct backend *backend = create_on("0");
    void *memory;
    void *base = NULL;
    CHECK(!backend->facts.checks_exporter);
    struct backend_offer offered = ipc_offer(0, 4096, EXPORTER, &memory);
    offered.uid = geteuid() + 1;
    (void)offer(backend, &offered, &base, WIRE_PERMISSION_DENIED, "only the daemon's own user");
    offered.uid = geteuid();
    CHECK(offer(backend, &offered, &base, WIRE_OK, ""));
    backend->ops->unmap(backend, base, offered.bytes);
    destroy(backend);
}

static void reaches_shared_memory(void)
{
    struct backend *backend = create();
    void *base = NULL;
    int fd = sealed_create("test", SHARED_BYTES);
    int open_fd = memfd_create("open", MFD_CLOEXEC);
    CHECK(fd >= 0 && open_fd >= 0 && ftruncate(open_fd, SHARED_BYTES) == 0);
    struct backend_offer offered = {.kind = WIRE_MEMORY_SHM, .bytes = SHARED_BYTES, .fd = fd};
    CHECK(offer(backend, &offered, &base, WIRE_OK, ""));
    CHECK((uintptr_t)base >> 60 == 1 && fake_cudart_count().registered == 2); /* words as well */
    backend->ops->unmap(backend, base, offered.bytes);
    CHECK(fake_cudart_count().registered == 1);
    fake_cudart_fail("cudaHostRegister", cudaErrorMemoryAllocation, false);
    (void)offer(backend, &offered, &base, WIRE_RESOURCE_EXHAUSTED, "out of memory");
    fake_cudart_fail("cudaHostGetDevicePointer", cudaErrorInvalidValue, false);
    (void)offer(backend, &offered, &base, WIRE_INTERNAL, "cudaHostGetDevicePointer");
    offered.fd = open_fd;
    (void)offer(backend, &offered, &base, WIRE_UNSUPPORTED_MEMORY, "F_SEAL_SHRINK");
    close(fd);
    close(open_fd);
    destroy(backend);
}

static struct backend_offer piece_offer(int gpu, uint64_t bytes, uint64_t reserve)
{
    return (struct backend_offer){.kind = WIRE_MEMORY_CUDA_VMM,
        .bytes = bytes,
        .reserve = reserve,
        .fd = fake_cudart_export_piece(gpu, bytes),
        .pid = EXPORTER,
        .uid = USER};
}

static bool extend(struct backend *backend, void *base, uint64_t bytes,
    const struct backend_offer *piece, enum wire_status expected, const char *words)
{
    struct wire_error error = {0};
    bool done = backend->ops->extend(backend, base, bytes, piece, &error);
    if (error.status != expected || strstr(error.detail, words) == NULL) {
        fprintf(stderr, "status %d: %s\n", (int)error.status, error.detail);
    }
    CHECK(error.status == expected && strstr(error.detail, words) != NULL);
    return done;
}

static void put(int fd, uint64_t at, char value)
{
    CHECK(pwrite(fd, &value, 1, (off_t)at) == 1);
}

static void maps_pieces_side_by_side(void)
{
    struct backend *backend = create();
    struct backend_offer first = piece_offer(0, PIECE, 5 * PIECE);
    struct backend_offer second = piece_offer(0, 3 * PIECE, 0);
    struct backend_offer third = piece_offer(0, 2 * PIECE, 0);
    void *base = NULL;
    CHECK(offer(backend, &first, &base, WIRE_OK, ""));
    CHECK(extend(backend, base, PIECE, &second, WIRE_OK, ""));
    put(first.fd, PIECE - 1, 'a');
    put(second.fd, 0, 'b');
    put(second.fd, 3 * PIECE - 1, 'c');
    const volatile char *memory = base;
    CHECK(memory[PIECE - 1] == 'a' && memory[PIECE] == 'b' && memory[4 * PIECE - 1] == 'c');
    CHECK(fake_cudart_count().handles == 0 && fake_cudart_count().pieces == 2);

    (void)extend(backend, base, 4 * PIECE, &third, WIRE_RESOURCE_EXHAUSTED, "bytes: of the");
    (void)extend(backend, base, PIECE, &first, WIRE_INVALID_ARGUMENT, "only at its end");
    CHECK(extend(backend, base, 4 * PIECE, &first, WIRE_OK, ""));
    backend->ops->unmap(backend, base, 5 * PIECE);
    CHECK(fake_cudart_count().pieces == 0 && fake_cudart_count().reservations == 0);
    close(first.fd);
    close(second.fd);
    close(third.fd);
    destroy(backend);
}

static void refuses_pieces_that_are_not_what_they_should_be(void)
{
    struct backend *backend = create();
    void *base = NULL;
    struct backend_offer good = piece_offer(0, 2 * PIECE, 2 * PIECE);
    struct backend_offer bad = good;
    bad.bytes = 4 * PIECE; /* more than there is */
    bad.reserve = 8 * PIECE;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "bytes: more than");
    bad.bytes = PIECE + 1;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "not a multiple");
    bad.bytes = 0;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "not a multiple");
    bad = good;
    bad.reserve = PIECE;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "reserve");
    bad = good;
    bad.reserve = UINT64_MAX;
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "reserve");
    bad.reserve = 2 * FAKE_MEMORY; /* counts as what the GPU has */
    CHECK(offer(backend, &bad, &base, WIRE_OK, ""));
    backend->ops->unmap(backend, base, bad.bytes);
    bad.fd = sealed_create("no piece", 2 * PIECE);
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "descriptor: not of");
    close(bad.fd);
    bad = piece_offer(1, PIECE, PIECE);
    (void)offer(backend, &bad, &base, WIRE_INVALID_ARGUMENT, "descriptor: of other memory");
    close(bad.fd);
    fake_cudart_fail("cuMemSetAccess", cudaErrorInvalidValue, false);
    (void)offer(backend, &good, &base, WIRE_INTERNAL, "mem_set_access");
    fake_cudart_fail("cuMemAddressReserve", cudaErrorMemoryAllocation, false);
    (void)offer(backend, &good, &base, WIRE_RESOURCE_EXHAUSTED, "mem_address_reserve");
    close(good.fd);
    destroy(backend);
}

/* Nobody takes all addresses: 32 TiB a user, and a region counts as the GPU has at the most. */
static void bounds_the_addresses_of_a_user(void)
{
    struct backend *backend = create();
    struct backend_offer offered = piece_offer(0, PIECE, FAKE_MEMORY);
    void *base[4];
    void *none = NULL;
    for (size_t i = 0; i < 4; i++) {
        CHECK(offer(backend, &offered, &base[i], WIRE_OK, ""));
    }
    (void)offer(backend, &offered, &none, WIRE_RESOURCE_EXHAUSTED, "reserve: the user's regions");
    offered.uid++;
    CHECK(offer(backend, &offered, &none, WIRE_OK, ""));
    backend->ops->unmap(backend, none, PIECE);
    backend->ops->unmap(backend, base[3], PIECE);
    offered.uid--;
    CHECK(offer(backend, &offered, &base[3], WIRE_OK, ""));
    for (size_t i = 0; i < 4; i++) {
        backend->ops->unmap(backend, base[i], PIECE);
    }
    close(offered.fd);
    destroy(backend);
}

/* -- groups ------------------------------------------------------------------------------------- */

static struct page *make_page(void)
{
    struct page *page = NULL;
    int fd;
    CHECK(page_create(&fd, &page) == 0);
    close(fd);
    return page;
}

static struct group group_of(struct page *device, uint32_t lane, uint32_t value)
{
    struct group group = {.direction = ATTN_FORWARD, .family = attn_family_at(1), .members = 3};
    if (device != NULL) {
        group.marks = 1;
        group.mark[0] = (struct mark){.word = &device->lane[lane].done, .value = value};
    }
    return group;
}

static void marks_when_the_stream_comes_to_it(void)
{
    struct backend *backend = create();
    struct page *page = make_page();
    void *device = NULL;
    struct wire_error error;
    enum wire_status status = WIRE_INTERNAL;
    CHECK(backend->ops->pin_page(backend, page, &device, &error) && device != page);
    struct group first = group_of(device, 3, 17);
    struct group second = group_of(device, 4, 9);
    struct group third = group_of(NULL, 0, 0);
    first.mark[first.marks++] =
        (struct mark){.word = &((struct page *)device)->lane[30].done, .value = 1};
    fake_cudart_hold_streams(true);
    CHECK(backend->max_groups == 3);
    CHECK(backend->ops->submit(backend, &first) == WIRE_OK);
    CHECK(fake_kernels.slices == 3);
    void *stream = fake_kernels.stream;
    CHECK(backend->ops->submit(backend, &second) == WIRE_OK && fake_kernels.stream != stream);
    CHECK(backend->ops->submit(backend, &third) == WIRE_OK);
    CHECK(backend->ops->poll(backend, &status) == NULL);
    CHECK(atomic_load(&page->lane[3].done) == 0);
    fake_cudart_hold_streams(false);
    CHECK(atomic_load(&page->lane[3].done) == 17 && atomic_load(&page->lane[30].done) == 1);
    CHECK(atomic_load(&page->lane[4].done) == 9);
    struct group *ended[3];
    for (int i = 0; i < 3; i++) {
        ended[i] = backend->ops->poll(backend, &status);
        CHECK(ended[i] != NULL && status == WIRE_OK);
    }
    CHECK(ended[0] != ended[1] && ended[1] != ended[2] && ended[0] != ended[2]);
    CHECK(backend->ops->poll(backend, &status) == NULL);
    for (uint32_t i = 0; i < 1000; i++) { /* a place is used again and again */
        struct group next = group_of(device, 5, i);
        CHECK(backend->ops->submit(backend, &next) == WIRE_OK);
        CHECK(backend->ops->poll(backend, &status) == &next && status == WIRE_OK);
        CHECK(atomic_load(&page->lane[5].done) == i);
    }
    backend->ops->unpin_page(backend, page);
    page_unmap(page);
    destroy(backend);
}

static void a_group_that_is_not_launched_fails_without_marks(void)
{
    struct backend *backend = create();
    struct page *page = make_page();
    void *device = NULL;
    struct wire_error error;
    enum wire_status status = WIRE_OK;
    CHECK(backend->ops->pin_page(backend, page, &device, &error));
    struct group group = group_of(device, 0, 5);
    fake_kernels.launch_code = cudaErrorLaunchOutOfResources;
    fake_cudart_hold_streams(true);
    CHECK(backend->ops->submit(backend, &group) == WIRE_OK);
    CHECK(backend->ops->poll(backend, &status) == NULL); /* a part of it may run */
    fake_cudart_hold_streams(false);
    CHECK(backend->ops->poll(backend, &status) == &group && status == WIRE_RESOURCE_EXHAUSTED);
    CHECK(atomic_load(&page->lane[0].done) == 0);
    fake_kernels.launch_code = cudaErrorInvalidConfiguration;
    CHECK(backend->ops->submit(backend, &group) == WIRE_OK);
    CHECK(backend->ops->poll(backend, &status) == &group && status == WIRE_INTERNAL);
    fake_kernels.launch_code = 0;
    CHECK(backend->ops->submit(backend, &group) == WIRE_OK);
    CHECK(backend->ops->poll(backend, &status) == &group && status == WIRE_OK);
    CHECK(atomic_load(&page->lane[0].done) == 5);
    backend->ops->unpin_page(backend, page);
    page_unmap(page);
    destroy(backend);
}

/* -- the end of the process --------------------------------------------------------------------- */

static int exit_status_of(void (*run)(void))
{
    int status;
    (void)fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void launch_loses_the_device(void)
{
    struct backend *backend = create();
    struct group group = group_of(NULL, 0, 0);
    fake_kernels.launch_code = cudaErrorIllegalAddress;
    fake_cudart_lose(cudaErrorIllegalAddress);
    (void)backend->ops->submit(backend, &group);
}

static void launch_fails_and_the_device_is_gone_behind_it(void)
{
    struct backend *backend = create();
    struct group group = group_of(NULL, 0, 0);
    fake_kernels.launch_code = cudaErrorIllegalAddress;
    fake_cudart_fail("cudaStreamQuery", cudaErrorIllegalAddress, true);
    (void)backend->ops->submit(backend, &group);
}

static void running_group_loses_the_device(void)
{
    struct backend *backend = create();
    struct group group = group_of(NULL, 0, 0);
    enum wire_status status;
    fake_cudart_hold_streams(true);
    (void)backend->ops->submit(backend, &group);
    fake_cudart_lose(cudaErrorECCUncorrectable);
    for (int i = 0; i < 2000; i++) {
        if (backend->ops->poll(backend, &status) != NULL) {
            _exit(1);
        }
        usleep(1000);
    }
}

static void idle_device_is_lost(void)
{
    struct backend *backend = create();
    fake_cudart_fail("cudaStreamQuery", cudaErrorMpsClientTerminated, true);
    backend->ops->look(backend);
}

static void marks_can_not_be_enqueued(void)
{
    struct backend *backend = create();
    struct page *page = make_page(); /* which is not pinned */
    struct group group = group_of(page, 0, 1);
    (void)backend->ops->submit(backend, &group);
}

static void a_lost_device_ends_the_process(void)
{
    CHECK(exit_status_of(launch_loses_the_device) == 70);
    CHECK(exit_status_of(launch_fails_and_the_device_is_gone_behind_it) == 70);
    CHECK(exit_status_of(running_group_loses_the_device) == 70);
    CHECK(exit_status_of(idle_device_is_lost) == 70);
    CHECK(exit_status_of(marks_can_not_be_enqueued) == 70);
}

/* -- threads ------------------------------------------------------------------------------------ */

#define MAPPERS 4
#define ROUNDS 200

struct mapper {
    pthread_t thread;
    struct backend *backend;
    struct backend_offer ipc; /* the same for all */
    int fd;
};

static void *map_and_unmap(void *context)
{
    struct mapper *mapper = context;
    struct backend *backend = mapper->backend;
    struct page *page = make_page();
    struct backend_offer shared = {
        .kind = WIRE_MEMORY_SHM, .bytes = SHARED_BYTES, .fd = mapper->fd};
    struct backend_offer piece = piece_offer(0, PIECE, 4 * PIECE);
    for (int i = 0; i < ROUNDS; i++) {
        void *base[3];
        void *device;
        struct wire_error error = {0};
        CHECK(backend->ops->map(backend, &mapper->ipc, &base[0], &error));
        CHECK(backend->ops->map(backend, &shared, &base[1], &error));
        CHECK(backend->ops->map(backend, &piece, &base[2], &error));
        CHECK(backend->ops->pin_page(backend, page, &device, &error));
        CHECK(backend->ops->extend(backend, base[2], PIECE, &piece, &error));
        backend->ops->unpin_page(backend, page);
        backend->ops->unmap(backend, base[2], 2 * PIECE);
        backend->ops->unmap(backend, base[1], SHARED_BYTES);
        backend->ops->unmap(backend, base[0], mapper->ipc.bytes);
    }
    close(piece.fd);
    page_unmap(page);
    return NULL;
}

static void workers_map_while_groups_run(void)
{
    struct backend *backend = create();
    struct mapper mappers[MAPPERS];
    void *memory;
    struct backend_offer ipc = ipc_offer(0, 65536, EXPORTER, &memory);
    int fd = sealed_create("test", SHARED_BYTES);
    CHECK(fd >= 0);
    for (int i = 0; i < MAPPERS; i++) {
        mappers[i] = (struct mapper){.backend = backend, .ipc = ipc, .fd = fd};
        CHECK(pthread_create(&mappers[i].thread, NULL, map_and_unmap, &mappers[i]) == 0);
    }
    for (int i = 0; i < 5000; i++) {
        struct group group = group_of(NULL, 0, 0);
        enum wire_status status;
        CHECK(backend->ops->submit(backend, &group) == WIRE_OK);
        CHECK(backend->ops->poll(backend, &status) == &group && status == WIRE_OK);
        backend->ops->look(backend);
    }
    for (int i = 0; i < MAPPERS; i++) {
        CHECK(pthread_join(mappers[i].thread, NULL) == 0);
    }
    close(fd);
    destroy(backend);
}

int main(void)
{
    log_init(LOG_LEVEL_ERROR);
    finds_the_device_by_index_and_uuid();
    prepares_and_tries_the_families_that_fit();
    takes_no_device_whose_blocks_are_too_small();
    cleans_up_after_every_failure();
    opens_handles_of_their_senders_alone();
    believes_only_its_own_user_where_handles_say_nothing(0);
    believes_only_its_own_user_where_handles_say_nothing(2);
    reaches_shared_memory();
    maps_pieces_side_by_side();
    refuses_pieces_that_are_not_what_they_should_be();
    bounds_the_addresses_of_a_user();
    marks_when_the_stream_comes_to_it();
    a_group_that_is_not_launched_fails_without_marks();
    a_lost_device_ends_the_process();
    workers_map_while_groups_run();
    return 0;
}

/*
 * The CUDA backend on a GPU, with another process that owns the memory: handles and descriptors of all
 * kinds, marks, several groups at a time, and a fault that ends the daemon's process.
 */
#include "backend.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "check.h"
#include "device.h"
#include "log.h"
#include "page.h"
#include "sealed.h"

#define MIB (UINT64_C(1) << 20)
#define WORKSPACE (256 * MIB)
#define LEGACY_BYTES (7 * MIB / 2) /* no multiple of the driver's granularity */
#define PIECE_BYTES (4 * MIB)
#define LEGACY_FILL 0x5a
#define PIECE_FILL 0x3c

#define HEADS 4
#define ROWS 256
#define HEAD_DIM 64
#define TENSOR_BYTES ((size_t)HEADS * ROWS * HEAD_DIM * 2)
#define PROBLEM_BYTES (4 * TENSOR_BYTES)
#define PATIENCE_NS UINT64_C(20000000000)

/* -- the process that owns the memory ----------------------------------------------------------- */

struct message {
    uint8_t handle[WIRE_HANDLE_BYTES];
    int pid;
};

static void send_message(int socket, const struct message *message, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {.iov_base = (void *)(uintptr_t)message, .iov_len = sizeof *message};
    struct msghdr header = {.msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    CHECK(sendmsg(socket, &header, 0) == (ssize_t)sizeof *message);
}

static int receive_message(int socket, struct message *message)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec data = {.iov_base = message, .iov_len = sizeof *message};
    struct msghdr header = {.msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control};
    int fd = -1;
    CHECK(recvmsg(socket, &header, MSG_CMSG_CLOEXEC) == (ssize_t)sizeof *message);
    CHECK(CMSG_FIRSTHDR(&header) != NULL);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof fd);
    return fd;
}

static int export_piece(void)
{
    const struct driver *driver = device_driver();
    const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    const CUmemAccessDesc access = {
        .location = properties.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle;
    CUdeviceptr base = 0;
    int fd = -1;
    DRIVER(driver->mem_create(&handle, PIECE_BYTES, &properties, 0));
    DRIVER(driver->mem_reserve(&base, PIECE_BYTES, 0, 0, 0));
    DRIVER(driver->mem_map(base, PIECE_BYTES, 0, handle, 0));
    DRIVER(driver->mem_set_access(base, PIECE_BYTES, &access, 1));
    CU(cudaMemset((void *)base, PIECE_FILL, PIECE_BYTES));
    DRIVER(driver->mem_export(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    return fd;
}

static int run_exporter(int socket)
{
    cudaIpcMemHandle_t handle;
    void *memory = NULL;
    char end;
    CU(cudaMalloc(&memory, LEGACY_BYTES));
    CU(cudaMemset(memory, LEGACY_FILL, LEGACY_BYTES));
    CU(cudaIpcGetMemHandle(&handle, memory));
    struct message message = {.pid = (int)getpid()};
    memcpy(message.handle, handle.reserved, sizeof message.handle);
    int fd = export_piece();
    CU(cudaDeviceSynchronize());
    send_message(socket, &message, fd);
    (void)read(socket, &end, 1); /* until the other end is gone */
    return 0;
}

/* -- memory ------------------------------------------------------------------------------------- */

static struct backend *create(void)
{
    struct wire_error error = {0};
    struct backend *backend = backend_cuda_create("0", WORKSPACE, &error);
    if (backend == NULL) {
        (void)fprintf(stderr, "%s\n", error.detail);
    }
    CHECK(backend != NULL);
    return backend;
}

static void *map(struct backend *backend, const struct backend_offer *offer)
{
    struct wire_error error = {0};
    void *base = NULL;
    if (!backend->ops->map(backend, offer, &base, &error)) {
        (void)fprintf(stderr, "%s\n", error.detail);
        CHECK(false);
    }
    return base;
}

static void refuse(struct backend *backend, const struct backend_offer *offer, const char *what)
{
    struct wire_error error = {0};
    void *base = NULL;
    bool mapped = backend->ops->map(backend, offer, &base, &error);
    (void)printf("  %s: %s\n", what, mapped ? "ACCEPTED" : error.detail);
    CHECK(!mapped && error.status != WIRE_OK);
}

static void expect_fill(const void *memory, size_t bytes, unsigned char fill)
{
    unsigned char *copy = malloc(bytes);
    CHECK(copy != NULL);
    CU(cudaMemcpy(copy, memory, bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < bytes; i++) {
        CHECK(copy[i] == fill);
    }
    free(copy);
}

static void test_handles(struct backend *backend, const struct message *message)
{
    struct backend_offer offer = {.kind = WIRE_MEMORY_CUDA_IPC,
        .bytes = LEGACY_BYTES,
        .fd = -1,
        .pid = message->pid,
        .uid = geteuid()};
    memcpy(offer.handle, message->handle, sizeof offer.handle);
    void *base = map(backend, &offer);
    void *again = map(backend, &offer);
    CHECK(base == again);
    expect_fill(base, LEGACY_BYTES, LEGACY_FILL);
    backend->ops->unmap(backend, base, offer.bytes);
    expect_fill(again, LEGACY_BYTES, LEGACY_FILL);
    backend->ops->unmap(backend, again, offer.bytes);

    struct backend_offer bad = offer;
    bad.bytes = 64 * MIB;
    refuse(backend, &bad, "handle, more bytes than there are");
    bad = offer;
    bad.pid = (int)getpid();
    CHECK(backend->facts.checks_exporter);
    refuse(backend, &bad, "handle, another process's");
    bad = offer;
    memset(bad.handle + 12, 0xff, sizeof bad.handle - 12);
    refuse(backend, &bad, "handle, nonsense");
}

static void refuse_descriptor(
    struct backend *backend, struct backend_offer offer, int fd, const char *what)
{
    CHECK(fd >= 0);
    offer.fd = fd;
    refuse(backend, &offer, what);
    close(fd);
}

static void test_pieces(struct backend *backend, int fd)
{
    struct backend_offer offer = {.kind = WIRE_MEMORY_CUDA_VMM,
        .bytes = PIECE_BYTES,
        .reserve = 8 * PIECE_BYTES,
        .fd = fd,
        .uid = geteuid()};
    struct wire_error error = {0};
    int pair[2];
    void *base = map(backend, &offer);
    CHECK(backend->ops->extend(backend, base, PIECE_BYTES, &offer, &error));
    expect_fill(base, 2 * PIECE_BYTES, PIECE_FILL);
    backend->ops->unmap(backend, base, 2 * PIECE_BYTES);

    struct backend_offer bad = offer;
    bad.bytes = 2 * PIECE_BYTES;
    refuse(backend, &bad, "piece, twice the bytes there are");
    bad.bytes = PIECE_BYTES + 2 * MIB;
    refuse(backend, &bad, "piece, a little more than there is");
    bad.bytes = PIECE_BYTES / 2 + 1;
    refuse(backend, &bad, "piece, odd bytes");
    refuse_descriptor(backend, offer, open("/dev/null", O_RDWR | O_CLOEXEC), "piece, /dev/null");
    refuse_descriptor(backend, offer, sealed_create("no", PIECE_BYTES), "piece, a memfd");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    refuse_descriptor(backend, offer, pair[0], "piece, a socket");
    CHECK(close(pair[1]) == 0 && pipe2(pair, O_CLOEXEC) == 0);
    refuse_descriptor(backend, offer, pair[0], "piece, a pipe");
    close(pair[1]);
}

/* -- groups ------------------------------------------------------------------------------------- */

static struct attn_view view_of(void *memory, size_t tensor)
{
    return (struct attn_view){.data = (char *)memory + tensor * TENSOR_BYTES,
        .batch_stride = (int64_t)HEADS * ROWS * HEAD_DIM,
        .row_stride = (int64_t)HEADS * HEAD_DIM,
        .head_stride = HEAD_DIM,
        .column_stride = 1};
}

static struct attn_problem problem_in(void *memory)
{
    return (struct attn_problem){
        .dtype = ATTN_BF16,
        .batch = 1,
        .heads_q = HEADS,
        .heads_kv = HEADS,
        .head_dim_qk = HEAD_DIM,
        .head_dim_v = HEAD_DIM,
        .seqlen_q = ROWS,
        .seqlen_k = ROWS,
        .scale = 0.125F,
        .window_left = ATTN_UNBOUNDED,
        .window_right = 0,
        .alignment = ATTN_TOP_LEFT,
        .bias_dtype = ATTN_BF16,
        .q = view_of(memory, 0),
        .k = view_of(memory, 1),
        .v = view_of(memory, 2),
        .out = view_of(memory, 3),
    };
}

struct shot {
    struct group group;
    struct attn_problem problem;
};

/* The backend's workspace is cut by hand: a part for each group. */
static void aim(struct backend *backend, struct shot *shot, void *memory, unsigned part)
{
    const char *why = NULL;
    shot->problem = problem_in(memory);
    shot->group = (struct group){.id = 1, .direction = ATTN_FORWARD, .members = 1};
    shot->group.family = backend->ops->choose(backend, ATTN_FORWARD, &shot->problem, &why);
    if (shot->group.family == NULL) {
        (void)fprintf(stderr, "%s\n", why);
    }
    CHECK(shot->group.family != NULL);
    shot->group.slice[0] = (struct attn_slice){
        .problem = &shot->problem,
        .workspace = (char *)backend->workspace + part * (WORKSPACE / 4),
        .begin = 0,
        .end = attn_tile_count(shot->group.family, ATTN_FORWARD, &shot->problem),
    };
}

static struct group *await(struct backend *backend)
{
    enum wire_status status = WIRE_INTERNAL;
    uint64_t start = device_now_ns();
    struct group *group;
    while ((group = backend->ops->poll(backend, &status)) == NULL) {
        CHECK(device_now_ns() - start < PATIENCE_NS);
    }
    CHECK(status == WIRE_OK);
    return group;
}

static void fill_inputs(uint16_t *numbers)
{
    uint32_t state = 1;
    for (size_t i = 0; i < 3 * TENSOR_BYTES / 2; i++) {
        state = state * 1664525 + 1013904223;
        numbers[i] = (uint16_t)(0x3e00 | (state >> 16 & 0x81ff)); /* about +-0.125 to 0.5 */
    }
}

/* The same problem in device memory and in shared memory has the same bits. */
static void test_shared_memory(struct backend *backend, void *device)
{
    int fd = sealed_create("shared", PROBLEM_BYTES);
    struct shot shot;
    CHECK(fd >= 0);
    uint16_t *host = sealed_map(fd, PROBLEM_BYTES);
    uint16_t *copy = malloc(PROBLEM_BYTES);
    CHECK(host != NULL && copy != NULL);
    fill_inputs(host);
    CU(cudaMemcpy(device, host, PROBLEM_BYTES, cudaMemcpyHostToDevice));
    struct backend_offer offer = {.kind = WIRE_MEMORY_SHM, .bytes = PROBLEM_BYTES, .fd = fd};
    void *base = map(backend, &offer);
    aim(backend, &shot, base, 0);
    CHECK(backend->ops->submit(backend, &shot.group) == WIRE_OK);
    CHECK(await(backend) == &shot.group);
    aim(backend, &shot, device, 0);
    CHECK(backend->ops->submit(backend, &shot.group) == WIRE_OK);
    CHECK(await(backend) == &shot.group);
    CU(cudaMemcpy(copy, device, PROBLEM_BYTES, cudaMemcpyDeviceToHost));
    CHECK(memcmp(copy, host, PROBLEM_BYTES) == 0);
    const char *out = (const char *)host + 3 * TENSOR_BYTES;
    CHECK(memcmp(out, out + 2, TENSOR_BYTES - 2) != 0);
    backend->ops->unmap(backend, base, PROBLEM_BYTES);
    free(copy);
    close(fd);
}

static struct page *make_page(void)
{
    struct page *page = NULL;
    int fd;
    CHECK(page_create(&fd, &page) == 0);
    close(fd);
    return page;
}

/* Three groups at a time, each on its own lane; what poll returns has been marked. */
static void test_marks(struct backend *backend, void *device)
{
    static struct shot shots[3];
    struct page *page = make_page();
    struct page *device_page = NULL;
    struct wire_error error;
    CHECK(backend->max_groups == 3);
    CHECK(backend->ops->pin_page(backend, page, (void **)&device_page, &error));
    for (unsigned i = 0; i < 3; i++) {
        aim(backend, &shots[i], device, i);
        shots[i].group.marks = 1;
        shots[i].group.mark[0].word = &device_page->lane[i].done;
    }
    uint64_t start = device_now_ns();
    uint32_t rounds = 2000;
    for (unsigned i = 0; i < 3; i++) {
        shots[i].group.mark[0].value = 1;
        CHECK(backend->ops->submit(backend, &shots[i].group) == WIRE_OK);
    }
    for (uint32_t left = 3 * rounds; left > 0; left--) {
        struct group *group = await(backend);
        unsigned lane = (unsigned)((struct shot *)(void *)group - shots);
        uint32_t value = group->mark[0].value;
        CHECK(atomic_load(&page->lane[lane].done) == value);
        if (value < rounds) {
            group->mark[0].value++;
            CHECK(backend->ops->submit(backend, group) == WIRE_OK);
        }
    }
    double each = (double)(device_now_ns() - start) / (3.0 * rounds);
    (void)printf("  three groups at a time: %.1f us each\n", each / 1000);
    start = device_now_ns();
    for (uint32_t i = 0; i < rounds; i++) {
        CHECK(backend->ops->submit(backend, &shots[0].group) == WIRE_OK);
        CHECK(await(backend) == &shots[0].group);
    }
    each = (double)(device_now_ns() - start) / rounds;
    (void)printf("  one at a time: %.1f us each\n", each / 1000);
    backend->ops->unpin_page(backend, page);
    page_unmap(page);
}

/* -- processes ---------------------------------------------------------------------------------- */

static int run_fault(void)
{
    static struct shot shot;
    struct backend *backend = create();
    aim(backend, &shot, (void *)0x100000, 0);
    CHECK(backend->ops->submit(backend, &shot.group) == WIRE_OK);
    (void)await(backend); /* which does not return */
    return 1;
}

static pid_t start_self(const char *role, int socket)
{
    char number[16];
    (void)snprintf(number, sizeof number, "%d", socket);
    (void)fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl("/proc/self/exe", "gpu_backend", role, number, (char *)NULL);
        _exit(127);
    }
    return child;
}

static void test_fault(void)
{
    int status = 0;
    pid_t child = start_self("fault", -1);
    CHECK(waitpid(child, &status, 0) == child);
    (void)printf("  a fault on the device: exit status %d\n", WEXITSTATUS(status));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EX_SOFTWARE);
}

static int run_tests(void)
{
    struct message message;
    int pair[2];
    int status = 0;
    void *device = NULL;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    CHECK(fcntl(pair[0], F_SETFD, FD_CLOEXEC) == 0);
    pid_t exporter = start_self("exporter", pair[1]);
    close(pair[1]);
    int fd = receive_message(pair[0], &message);

    struct backend *backend = create();
    test_handles(backend, &message);
    test_pieces(backend, fd);
    CU(cudaMalloc(&device, PROBLEM_BYTES));
    test_shared_memory(backend, device);
    test_marks(backend, device);
    CU(cudaFree(device));
    backend->ops->destroy(backend);
    close(fd);
    close(pair[0]);
    CHECK(waitpid(exporter, &status, 0) == exporter && status == 0);
    test_fault();
    return 0;
}

int main(int argc, char **argv)
{
    log_init(LOG_LEVEL_INFO);
    if (argc == 3 && strcmp(argv[1], "exporter") == 0) {
        return run_exporter((int)strtol(argv[2], NULL, 10));
    }
    if (argc == 3 && strcmp(argv[1], "fault") == 0) {
        return run_fault();
    }
    if (!device_present()) {
        (void)printf("gpu_backend: skipped, this machine has no GPU\n");
        return SKIPPED;
    }
    return run_tests();
}

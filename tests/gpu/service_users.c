/*
 * Users side by side: memory of each, and a daemon that is somebody else than its trainers. Wants root,
 * who can be anybody.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "pieces.h"
#include "raw_client.h"
#include "service.h"

#define TRAINER_UID 65534
#define TRAINER_UID_TEXT "65534"
#define DAEMON_UID 65533
#define DAEMON_UID_TEXT "65533"
#define MIB ((uint64_t)1 << 20)
#define CALLS 60
#define FREED_MS 20000

/* Not every container's root can. */
static void require_root(void)
{
    if (geteuid() != 0 || syscall(SYS_setresuid, -1, TRAINER_UID, -1) != 0) {
        service_skip("only root can be another user");
    }
    CHECK(syscall(SYS_setresuid, -1, 0, -1) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
}

/* Processes of other users, which an MPS of one user lets wait for ever. */
static void require_processes_of_others(void)
{
    require_root();
    if (getenv("CUDA_MPS_PIPE_DIRECTORY") != NULL && getenv("GPU_MPS_MULTIUSER") == NULL) {
        service_skip("this MPS serves one user at a time");
    }
}

/* Its sockets are open to all, its directory is not. */
static void let_in(const struct daemon *daemon)
{
    CHECK(chmod(daemon->directory, 0755) == 0);
}

static void start(struct daemon *daemon, const char *ipc_users)
{
    const char *arguments[] = {"--device", "cuda:0", "--workspace", "1G", "--allow-uid",
        TRAINER_UID_TEXT, "--ipc-users", ipc_users, NULL};
    CHECK(daemon_start(daemon, arguments));
    let_in(daemon);
}

/* ---- What the gate takes from two users; both are this process ------------------------------ */

/* Connections have the user of whoever makes them; only this thread is another one meanwhile. */
static void open_as(struct raw_client *raw, const struct daemon *daemon, long uid)
{
    CHECK(syscall(SYS_setresuid, -1, uid, -1) == 0);
    bool opened = raw_open(raw, daemon->directory);
    CHECK(syscall(SYS_setresuid, -1, 0, -1) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
    CHECK(opened);
}

/* Whether the handle of this memory is taken; if not, it must be because of whose it is. */
static bool takes_handle(struct raw_client *raw, void *memory, uint32_t *region)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = 8 * MIB};
    struct wire_gate_reply reply = {0};
    cudaIpcMemHandle_t handle;
    CU(cudaIpcGetMemHandle(&handle, memory));
    memcpy(request.handle, handle.reserved, sizeof request.handle);
    CHECK(raw_gate_call(raw, &request, NULL, 0, &reply));
    *region = reply.region;
    if (reply.error.status != WIRE_OK) {
        (void)printf("  refused: %s\n", reply.error.detail);
        CHECK(reply.error.status == WIRE_PERMISSION_DENIED);
    }
    return reply.error.status == WIRE_OK;
}

static uint32_t add_piece(struct raw_client *raw, const struct pieces *pieces)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION,
        .memory = WIRE_MEMORY_CUDA_VMM,
        .bytes = pieces->piece,
        .reserve = pieces->reserved};
    struct wire_gate_reply reply = {0};
    int descriptor = -1;
    DRIVER(device_driver()->mem_export(
        &descriptor, pieces->handle[0], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    CHECK(raw_gate_call(raw, &request, &descriptor, 1, &reply));
    (void)close(descriptor);
    CHECK(reply.error.status == WIRE_OK && reply.region != 0);
    return reply.region;
}

/* Gone, and unmapped. */
static void drop(struct raw_client *raw, uint32_t region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = region};
    struct wire_gate_request trim = {.kind = WIRE_GATE_TRIM};
    struct wire_gate_reply reply = {0};
    CHECK(raw_gate_call(raw, &request, NULL, 0, &reply) && reply.error.status == WIRE_OK);
    CHECK(raw_gate_call(raw, &trim, NULL, 0, &reply) && reply.error.status == WIRE_OK);
}

static void take_turns_with_handles(void)
{
    struct daemon daemon;
    struct raw_client root = {0};
    struct raw_client other = {0};
    struct pieces pieces;
    void *memory = NULL;
    uint32_t region = 0;
    uint32_t second = 0;
    require_root();
    start(&daemon, "one");
    open_as(&root, &daemon, 0);
    open_as(&other, &daemon, TRAINER_UID);
    CU(cudaMalloc(&memory, 8 * MIB));
    pieces_init(&pieces, 2 * MIB, 4 * MIB);
    pieces_grow(&pieces, 2 * MIB);
    CHECK(takes_handle(&root, memory, &region));
    CHECK(!takes_handle(&other, memory, &second));
    drop(&other, add_piece(&other, &pieces));
    drop(&root, region);
    CHECK(takes_handle(&other, memory, &second));
    CHECK(!takes_handle(&root, memory, &region));
    drop(&root, add_piece(&root, &pieces));
    drop(&other, second);
    CHECK(takes_handle(&root, memory, &region));
    raw_close(&other);
    raw_close(&root);
    pieces_finish(&pieces);
    CU(cudaFree(memory));
    service_stop(&daemon);
}

/* ---- Trainers of other users ---------------------------------------------------------------- */

static struct process other_trainer(const struct daemon *daemon, const char *mode, uint64_t count)
{
    CHECK(setenv("GPU_TRAINER_UID", TRAINER_UID_TEXT, 1) == 0);
    struct process process = service_trainer(daemon, mode, 1, count);
    CHECK(unsetenv("GPU_TRAINER_UID") == 0);
    return process;
}

static void succeed_as_other(const struct daemon *daemon, const char *mode, uint64_t count)
{
    struct process process = other_trainer(daemon, mode, count);
    service_succeed(&process, mode);
}

/* Whether the other user's cudaMalloc memory is taken; if not, it must be because of whose it is. */
static bool computes_as_other(const struct daemon *daemon)
{
    char line[512];
    struct process process = other_trainer(daemon, "try", 0);
    service_line(&process, line, sizeof line);
    service_succeed(&process, "a trainer of another user");
    if (strncmp(line, "OK ", 3) != 0) {
        (void)printf("  refused: %s\n", line);
        CHECK(strncmp(line, "PERMISSION_DENIED ", 18) == 0);
        return false;
    }
    return true;
}

static void compute_side_by_side(void)
{
    struct daemon daemon;
    require_processes_of_others();
    start(&daemon, "one");
    struct process holder = service_trainer(&daemon, "hold", 1, 64);
    service_say(&holder);
    CHECK(!computes_as_other(&daemon));
    succeed_as_other(&daemon, "pieces", CALLS);
    process_kill(&holder);
    uint64_t deadline = device_now_ns() + FREED_MS * UINT64_C(1000000);
    while (!computes_as_other(&daemon)) {
        CHECK(device_now_ns() < deadline);
        device_sleep_ms(50);
    }
    succeed_as_other(&daemon, "chain", CALLS);
    service_stop(&daemon);

    start(&daemon, "any");
    holder = service_trainer(&daemon, "hold", 1, 64);
    service_say(&holder);
    succeed_as_other(&daemon, "chain", CALLS);
    process_kill(&holder);
    service_stop(&daemon);
}

/* As attnd@ runs: the daemon is one user, its trainers are another, and neither is root. */
static void compute_for_others(void)
{
    static const char *const arguments[] = {
        "--device", "cuda:0", "--workspace", "1G", "--allow-uid", TRAINER_UID_TEXT, NULL};
    struct daemon daemon;
    require_processes_of_others();
    if (system("setpriv --reuid " DAEMON_UID_TEXT " attnd --version >/dev/null 2>&1") != 0) {
        service_skip("another user cannot run attnd where it lies");
    }
    CHECK(setresuid(DAEMON_UID, DAEMON_UID, 0) == 0);
    bool started = daemon_start(&daemon, arguments);
    CHECK(setresuid(0, 0, 0) == 0);
    CHECK(started);
    let_in(&daemon);
    succeed_as_other(&daemon, "chain", CALLS);
    succeed_as_other(&daemon, "pieces", CALLS);
    service_stop(&daemon);
}

const struct service_test service_user_tests[] = {
    {"users_take_turns_with_handles", take_turns_with_handles, false},
    {"users_compute_side_by_side", compute_side_by_side, false},
    {"users_compute_with_a_daemon_of_its_own", compute_for_others, false},
    {NULL, NULL, false},
};

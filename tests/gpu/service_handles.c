/* Handles that a client has no right to: said to the gate as libattnd never would. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "device.h"
#include "dice.h"
#include "pieces.h"
#include "raw_client.h"
#include "sealed.h"
#include "service.h"
#include "set.h"

#define MIB ((uint64_t)1 << 20)

static const struct set_extents usual = {1, 128, 2, 64};

/* What the gate says to an offer; *region is its number, 0 if refused. */
static struct wire_error offer(struct raw_client *raw, struct wire_gate_request *request,
    const int *descriptor, uint32_t *region)
{
    struct wire_gate_reply reply = {0};
    CHECK(raw_gate_call(raw, request, descriptor, descriptor != NULL ? 1 : 0, &reply));
    CHECK((reply.error.status == WIRE_OK) == (reply.region != 0));
    *region = reply.region;
    return reply.error;
}

static struct wire_error offer_handle(
    struct raw_client *raw, const uint8_t *handle, uint64_t bytes, uint32_t *region)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC, .bytes = bytes};
    memcpy(request.handle, handle, sizeof request.handle);
    return offer(raw, &request, NULL, region);
}

static void drop(struct raw_client *raw, uint32_t region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = region};
    struct wire_gate_reply reply = {0};
    CHECK(raw_gate_call(raw, &request, NULL, 0, &reply) && reply.error.status == WIRE_OK);
}

static void expect_status(struct wire_error error, enum wire_status status, const char *what)
{
    if (error.status != status) {
        (void)fprintf(stderr, "%s: %s, not %s: %s\n", what, wire_status_name(error.status),
            wire_status_name(status), error.detail);
        _Exit(1);
    }
    if (status != WIRE_OK) {
        (void)printf("  %s: %s\n", what, error.detail);
    }
}

/* An allocation of this process and its handle. */
static void *own_handle(size_t bytes, uint8_t *handle)
{
    cudaIpcMemHandle_t made;
    void *memory = NULL;
    CU(cudaMalloc(&memory, bytes));
    CU(cudaIpcGetMemHandle(&made, memory));
    memcpy(handle, made.reserved, WIRE_HANDLE_BYTES);
    return memory;
}

static void read_handle(struct process *exporter, uint8_t *handle)
{
    char line[256];
    service_line(exporter, line, sizeof line);
    CHECK(strlen(line) == 2 * WIRE_HANDLE_BYTES);
    for (size_t i = 0; i < WIRE_HANDLE_BYTES; i++) {
        const char digits[3] = {line[2 * i], line[2 * i + 1], '\0'};
        handle[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
}

/* An honest client computes. */
static void expect_service(const struct daemon *daemon)
{
    struct attnd *client = service_open(daemon);
    struct set set;
    attnd_ticket ticket = 0;
    set_alloc(&set, &usual);
    set_fill(&set, NULL, 1);
    OK(set_forward(&set, client, NULL, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    attnd_close(client);
    set_free(&set);
}

/* What a third process finds behind the handle. */
static void peek(const struct daemon *daemon, const uint8_t *handle, char *line, size_t capacity)
{
    char digits[2 * WIRE_HANDLE_BYTES + 1];
    for (size_t i = 0; i < WIRE_HANDLE_BYTES; i++) {
        (void)snprintf(digits + 2 * i, 3, "%02x", handle[i]);
    }
    CHECK(setenv("GPU_TRAINER_HANDLE", digits, 1) == 0);
    struct process process = service_trainer(daemon, "peek", 1, 0);
    service_line(&process, line, capacity);
    service_succeed(&process, "the process that opens handles");
}

/* Says what the driver and the daemon make of a handle in which the sender has written its own pid. It
 * is no check: this driver opens the first one's memory. */
static void show_forged_pid(
    const struct daemon *daemon, struct raw_client *raw, const uint8_t *handle)
{
    char line[256];
    uint8_t forged[WIRE_HANDLE_BYTES];
    uint32_t region = 0;
    int own = (int)getpid();
    memcpy(forged, handle, sizeof forged);
    memcpy(forged + 8, &own, sizeof own);
    peek(daemon, handle, line, sizeof line);
    CHECK(strcmp(line, "opened 7b") == 0); /* with the true pid it is the victim's */
    peek(daemon, forged, line, sizeof line);
    (void)printf("  with my pid, to the driver: %s%s\n", line,
        strcmp(line, "opened 7b") == 0 ? ", the victim's memory" : "");
    struct wire_error error = offer_handle(raw, forged, 8 * MIB, &region);
    (void)printf(
        "  with my pid, to the daemon: %s\n", error.status == WIRE_OK ? "mapped" : error.detail);
}

static void of_another_process(void)
{
    struct daemon daemon;
    struct raw_client raw = {0};
    uint8_t handle[WIRE_HANDLE_BYTES];
    uint32_t region = 0;
    service_start(&daemon);
    struct process victim = service_trainer(&daemon, "export", 1, 8 * MIB);
    read_handle(&victim, handle);
    CHECK(raw_open(&raw, daemon.directory));
    expect_status(
        offer_handle(&raw, handle, 8 * MIB, &region), WIRE_PERMISSION_DENIED, "another's handle");
    show_forged_pid(&daemon, &raw, handle);
    expect_service(&daemon);
    raw_close(&raw);
    process_kill(&victim);
    service_stop(&daemon);
}

static void of_wrong_size(void)
{
    struct daemon daemon;
    struct raw_client raw = {0};
    uint8_t handle[WIRE_HANDLE_BYTES];
    uint32_t region = 0;
    service_start(&daemon);
    CHECK(raw_open(&raw, daemon.directory));
    void *memory = own_handle(8 * MIB, handle);
    const uint64_t sizes[] = {8 * MIB + 1, 10 * MIB, UINT64_C(1) << 40, UINT64_MAX, 0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct wire_error error = offer_handle(&raw, handle, sizes[i], &region);
        CHECK(error.status != WIRE_OK);
        (void)printf("  %llu bytes: %s\n", (unsigned long long)sizes[i], error.detail);
    }
    expect_status(offer_handle(&raw, handle, 8 * MIB, &region), WIRE_OK, "its true size");
    drop(&raw, region);
    expect_status(offer_handle(&raw, handle, 4096, &region), WIRE_OK, "less than its size");
    drop(&raw, region);
    expect_service(&daemon);
    raw_close(&raw);
    CU(cudaFree(memory));
    service_stop(&daemon);
}

/* A handle with any bit flipped opens the same memory or nothing. */
static void with_flipped_bits(void)
{
    struct daemon daemon;
    struct raw_client raw = {0};
    uint8_t handle[WIRE_HANDLE_BYTES];
    uint32_t region = 0;
    unsigned opened = 0;
    struct dice dice = {7};
    service_start(&daemon);
    CHECK(raw_open(&raw, daemon.directory));
    void *memory = own_handle(8 * MIB, handle);
    for (size_t bit = 0; bit < 8 * sizeof handle; bit++) {
        handle[bit / 8] ^= (uint8_t)(1U << bit % 8);
        if (offer_handle(&raw, handle, 8 * MIB, &region).status == WIRE_OK) {
            CHECK(bit / 8 < 8 || bit / 8 >= 12); /* the exporter's pid */
            opened++;
            drop(&raw, region);
        }
        handle[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    for (int i = 0; i < 200; i++) {
        uint8_t random[WIRE_HANDLE_BYTES];
        for (size_t j = 0; j < sizeof random; j++) {
            random[j] = (uint8_t)dice_next(&dice);
        }
        CHECK(offer_handle(&raw, random, 8 * MIB, &region).status != WIRE_OK);
    }
    (void)printf("  %u of %zu flipped bits mean nothing\n", opened, 8 * sizeof handle);
    expect_service(&daemon);
    raw_close(&raw);
    CU(cudaFree(memory));
    service_stop(&daemon);
}

static struct wire_error offer_descriptor(
    struct raw_client *raw, int descriptor, uint64_t bytes, uint64_t reserve, uint32_t *region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION,
        .memory = WIRE_MEMORY_CUDA_VMM,
        .bytes = bytes,
        .reserve = reserve};
    return offer(raw, &request, &descriptor, region);
}

static int export_piece(const struct pieces *pieces, size_t number)
{
    int descriptor = -1;
    DRIVER(device_driver()->mem_export(
        &descriptor, pieces->handle[number], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    return descriptor;
}

static struct wire_error extend(
    struct raw_client *raw, uint32_t region, uint64_t offset, uint64_t bytes, int descriptor)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_EXTEND_REGION, .region = region, .offset = offset, .bytes = bytes};
    struct wire_gate_reply reply = {0};
    CHECK(raw_gate_call(raw, &request, &descriptor, 1, &reply));
    return reply.error;
}

/* Descriptors that are no device memory, and pieces that do not fit. */
static void descriptors(void)
{
    struct daemon daemon;
    struct raw_client raw = {0};
    struct pieces pieces;
    uint32_t region = 0;
    service_start(&daemon);
    CHECK(raw_open(&raw, daemon.directory));
    pieces_init(&pieces, 2 * MIB, 64 * MIB);
    pieces_grow(&pieces, 6 * MIB);
    const int none[] = {open("/dev/null", O_RDWR | O_CLOEXEC), open("/proc/self/exe", O_RDONLY),
        sealed_create("no device memory", 2 * MIB)};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        CHECK(none[i] >= 0);
        struct wire_error error = offer_descriptor(&raw, none[i], 2 * MIB, 64 * MIB, &region);
        CHECK(error.status != WIRE_OK);
        (void)printf("  no device memory: %s\n", error.detail);
        (void)close(none[i]);
    }
    int first = export_piece(&pieces, 0);
    int second = export_piece(&pieces, 1);
    CHECK(offer_descriptor(&raw, first, 4 * MIB, 64 * MIB, &region).status != WIRE_OK);
    if (offer_descriptor(&raw, first, 2 * MIB, UINT64_MAX, &region).status == WIRE_OK) {
        drop(&raw, region); /* no more addresses were reserved than the device can fill */
    }
    expect_status(offer_descriptor(&raw, first, 2 * MIB, 4 * MIB, &region), WIRE_OK, "a piece");
    CHECK(extend(&raw, region, 4 * MIB, 2 * MIB, second).status != WIRE_OK); /* a hole */
    CHECK(extend(&raw, region, 0, 2 * MIB, second).status != WIRE_OK);       /* over the first */
    CHECK(extend(&raw, region + 1, 2 * MIB, 2 * MIB, second).status != WIRE_OK);
    expect_status(extend(&raw, region, 2 * MIB, 2 * MIB, second), WIRE_OK, "the next piece");
    CHECK(extend(&raw, region, 4 * MIB, 2 * MIB, second).status != WIRE_OK); /* past reserve */
    drop(&raw, region);
    (void)close(first);
    (void)close(second);
    expect_service(&daemon);
    raw_close(&raw);
    pieces_finish(&pieces);
    service_stop(&daemon);
}

const struct service_test service_handle_tests[] = {
    {"handle_of_another_process", of_another_process, false},
    {"handle_of_wrong_size", of_wrong_size, false},
    {"handle_with_flipped_bits", with_flipped_bits, false},
    {"handle_descriptors", descriptors, false},
    {NULL, NULL, false},
};

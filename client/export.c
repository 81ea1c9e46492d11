#include "export.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "retire.h"

#define BATCH 16 /* pieces on their way at a time, each with a descriptor */

/* Pieces that continue a region, which has them in its list already. */
struct batch {
    struct gate_message message[BATCH];
    size_t count;
    uint64_t bytes;
};

#define fail(error, status, ...) wire_fail(error, WIRE_##status, __VA_ARGS__)

static bool fail_as_thread(enum attnd_status status, struct wire_error *error)
{
    return wire_fail(error, (enum wire_status)status, "%.250s", attnd_message());
}

static bool ask(struct attnd *client, struct wire_gate_request *request, int fd, uint32_t *region,
    struct wire_error *error)
{
    struct wire_gate_reply reply = {0};
    enum attnd_status status = memory_book(client, 1, request->bytes);
    if (status != ATTND_OK) {
        return fail_as_thread(status, error);
    }
    status = gate_exchange(&client->gate, request, fd, &reply, client->timeout_ns);
    if (status == ATTND_OK && reply.error.status == WIRE_OK) {
        *region = reply.region;
        return true;
    }
    memory_unbook(client, 1, request->bytes);
    *error = reply.error;
    return status == ATTND_OK ? false : fail_as_thread(status, error);
}

/* Until the limits leave room, or there is nothing more to make room with. */
static bool ask_for_room(struct attnd *client, struct wire_gate_request *request, int fd,
    uint32_t *region, struct wire_error *error)
{
    while (!ask(client, request, fd, region, error)) {
        if (error->status != WIRE_RESOURCE_EXHAUSTED || !retire_for_room(client, request->bytes)) {
            return false;
        }
    }
    return true;
}

/* Makes what the request describes a region of the table; it is not held. */
static struct region *introduce(struct attnd *client, struct wire_gate_request *request, int fd,
    uint64_t base, uint64_t id, struct wire_error *error)
{
    struct devices *devices = &client->devices;
    struct region *region = calloc(1, sizeof *region);
    if (!region) {
        (void)fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
        return NULL;
    }
    region->kind = request->memory;
    region->base = (uint8_t *)(uintptr_t)base;
    region->bytes = request->bytes;
    region->reserve = request->reserve;
    retire_range(devices, base, base + request->bytes, region);
    if (!region_add_piece(region, base, id)) {
        (void)fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
        region_free(region);
        return NULL;
    }
    if (!ask_for_room(client, request, fd, &region->id, error)) {
        region_free(region);
        return NULL;
    }
    if (!region_insert(&devices->table, region)) {
        memory_withdraw(client, region);
        (void)fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
        return NULL;
    }
    return region;
}

static bool fail_export(const struct probe_wanted *wanted, struct wire_error *error)
{
    return fail(error, UNSUPPORTED_MEMORY,
        "%s lies in memory of CUDA's virtual memory API that cannot be shared; create it with "
        "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR",
        wanted->name);
}

/* A descriptor of the piece at `base`, or -1. */
static int export_piece(struct attnd *client, const struct probe_wanted *wanted, uint64_t base,
    struct probe_piece *piece, struct wire_error *error)
{
    /* Before it is exported: what comes there instead of it meanwhile is not taken for it. */
    if (!probe_next(client, wanted, base, piece)) {
        (void)fail(error, INVALID_ARGUMENT, "%s lies in memory that is being freed", wanted->name);
        return -1;
    }
    int fd = driver_export(&client->driver, base);
    if (fd < 0) {
        (void)fail_export(wanted, error);
    }
    return fd;
}

/* Or the region that this memory continues. */
static struct region *introduce_mapped(struct attnd *client, const struct probe_wanted *wanted,
    uint64_t base, struct wire_error *error)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_VMM};
    struct probe_piece piece;
    struct region *known;
    uint64_t begin = probe_begin_of_run(client, wanted, base, &known);
    if (known) {
        return known;
    }
    int fd = export_piece(client, wanted, begin, &piece, error);
    if (fd < 0 && begin != base) { /* what lies before may be of somebody who does not share */
        fd = export_piece(client, wanted, base, &piece, error);
    }
    if (fd < 0) {
        return NULL;
    }
    uint64_t wanted_bytes = wanted->end - piece.base;
    request.bytes = piece.bytes;
    request.reserve =
        probe_reserve(client, &piece, piece.bytes > wanted_bytes ? piece.bytes : wanted_bytes);
    struct region *region = introduce(client, &request, fd, piece.base, piece.memory.id, error);
    (void)close(fd);
    return region;
}

struct region *export_region(
    struct attnd *client, const struct probe_wanted *wanted, struct wire_error *error)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC};
    struct probe_piece piece = {0};
    if (!probe_first(client, wanted, &piece, error)) {
        return NULL;
    }
    if (driver_ipc_handle(&client->driver, piece.base, request.handle)) {
        request.bytes = piece.bytes;
        return introduce(client, &request, -1, piece.base, piece.memory.id, error);
    }
    if (driver_is_mapped(&client->driver, piece.base)) {
        return introduce_mapped(client, wanted, piece.base, error);
    }
    (void)fail(error, UNSUPPORTED_MEMORY,
        "%s lies in device memory that cannot be shared, perhaps another process's or a custom "
        "allocator's; use memory from cudaMalloc",
        wanted->name);
    return NULL;
}

/* Puts the next piece behind those of the batch. false with *error untouched: there is none. */
static bool add_to_batch(struct attnd *client, const struct probe_wanted *wanted,
    struct region *region, struct batch *batch, struct wire_error *error)
{
    uint64_t end = region_end(region) + batch->bytes;
    struct probe_piece piece;
    if (region->kind != WIRE_MEMORY_CUDA_VMM || !probe_next(client, wanted, end, &piece)) {
        return false;
    }
    enum attnd_status status = memory_book(client, 0, piece.bytes);
    if (status != ATTND_OK) {
        return fail_as_thread(status, error);
    }
    int fd = driver_export(&client->driver, end);
    if (fd >= 0 && region_add_piece(region, end, piece.memory.id)) {
        struct gate_message *message = &batch->message[batch->count++];
        *message = (struct gate_message){.request = {.kind = WIRE_GATE_EXTEND_REGION,
                                             .region = region->id,
                                             .offset = region->bytes + batch->bytes,
                                             .bytes = piece.bytes},
            .fd = fd};
        batch->bytes += piece.bytes;
        return true;
    }
    memory_unbook(client, 0, piece.bytes);
    if (fd >= 0) {
        (void)close(fd);
        return fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    return driver_is_mapped(&client->driver, end) ? fail_export(wanted, error) : false;
}

/* The pieces before one that the daemon refuses stay; those behind it the daemon refuses as well. */
static bool send_batch(
    struct attnd *client, struct region *region, struct batch *batch, struct wire_error *error)
{
    size_t done;
    struct wire_gate_reply reply;
    enum attnd_status status = gate_exchange_all(
        &client->gate, batch->message, batch->count, &done, &reply, client->timeout_ns);
    uint64_t bytes = 0;
    for (size_t i = 0; i < done; i++) {
        bytes += batch->message[i].request.bytes;
    }
    memory_unbook(client, 0, batch->bytes - bytes);
    region->pieces -= batch->count - done;
    retire_range(&client->devices, region_end(region), region_end(region) + bytes, region);
    region->bytes += bytes;
    if (status == ATTND_TIMED_OUT) {
        /* Nobody knows how much of it the daemon has now. */
        retire_region(&client->devices, region);
    }
    *error = reply.error;
    return status == ATTND_OK ? error->status == WIRE_OK : fail_as_thread(status, error);
}

/* Adds pieces behind the region's end, some of them perhaps also where it fails. */
static bool grow(struct attnd *client, const struct probe_wanted *wanted, struct region *region,
    struct wire_error *error)
{
    struct batch batch = {.count = 0};
    error->status = WIRE_OK;
    while (batch.count < BATCH && region_end(region) + batch.bytes < wanted->end &&
           add_to_batch(client, wanted, region, &batch, error)) {}
    if (batch.count > 0) {
        return send_batch(client, region, &batch, error);
    }
    return error->status != WIRE_OK
               ? false
               : fail(error, INVALID_ARGUMENT,
                     "%s reaches %" PRIu64 " bytes beyond the device memory that it lies in",
                     wanted->name, wanted->end - region_end(region));
}

bool export_rest(struct attnd *client, const struct probe_wanted *wanted, struct region *region,
    struct wire_error *error)
{
    while (region_end(region) < wanted->end) {
        if (!grow(client, wanted, region, error) &&
            (error->status != WIRE_RESOURCE_EXHAUSTED ||
                !retire_for_room(client, wanted->end - region_end(region)))) {
            return false;
        }
    }
    return true;
}

#include "export.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "retire.h"

#define fail(error, status, ...) wire_fail(error, WIRE_##status, __VA_ARGS__)

static bool fail_as_thread(enum attnd_status status, struct wire_error *error)
{
    return wire_fail(error, (enum wire_status)status, "%.250s", attnd_message());
}

static bool ask(struct attnd *client, struct wire_gate_request *request, int fd,
    struct wire_gate_reply *reply, struct wire_error *error)
{
    enum attnd_status status = gate_exchange(&client->gate, request, fd, reply, client->timeout_ns);
    if (status != ATTND_OK) {
        return fail_as_thread(status, error);
    }
    *error = reply->error;
    return reply->error.status == WIRE_OK;
}

/* Asks for `regions` regions (0: for a larger one) and `bytes` more. Where the daemon's limits leave no
 * room, what is not in use makes some. */
static bool ask_for(struct attnd *client, struct wire_gate_request *request, int fd, size_t regions,
    struct wire_gate_reply *reply, struct wire_error *error)
{
    for (bool again = false;; again = true) {
        enum attnd_status status = memory_book(client, regions, request->bytes);
        bool done = status == ATTND_OK ? ask(client, request, fd, reply, error)
                                       : fail_as_thread(status, error);
        if (done) {
            return true;
        }
        if (status == ATTND_OK) {
            memory_unbook(client, regions, request->bytes);
        }
        if (error->status != WIRE_RESOURCE_EXHAUSTED || again) {
            return false;
        }
        int64_t deadline = clock_deadline(client->timeout_ns);
        retire_unused(client);
        retire_drop(client, deadline);
        (void)retire_wait(client, deadline);
    }
}

/* Makes what the request describes a region of the table; it is not held. */
static struct region *introduce(struct attnd *client, struct wire_gate_request *request, int fd,
    uint64_t base, uint64_t id, struct wire_error *error)
{
    struct devices *devices = &client->devices;
    struct wire_gate_reply reply = {0};
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
    if (!ask_for(client, request, fd, 1, &reply, error)) {
        region_free(region);
        return NULL;
    }
    region->id = reply.region;
    if (!region_insert(&devices->table, region)) {
        memory_withdraw(client, region);
        (void)fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
        return NULL;
    }
    return region;
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
    /* Before it is exported: what comes there instead of it meanwhile is not taken for it. */
    if (!probe_next(client, wanted, begin, &piece)) {
        (void)fail(error, INVALID_ARGUMENT, "%s lies in memory that is being freed", wanted->name);
        return NULL;
    }
    int fd = driver_export(&client->driver, begin);
    if (fd < 0) {
        (void)fail(error, UNSUPPORTED_MEMORY,
            "%s lies in memory of CUDA's virtual memory API that cannot be shared; create it with "
            "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR",
            wanted->name);
        return NULL;
    }
    uint64_t wanted_bytes = wanted->end - begin;
    request.bytes = piece.bytes;
    request.reserve =
        probe_reserve(client, &piece, piece.bytes > wanted_bytes ? piece.bytes : wanted_bytes);
    struct region *region = introduce(client, &request, fd, begin, piece.memory.id, error);
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

/* Adds the piece behind the region's end. false with *error untouched: there is none. */
static bool grow(struct attnd *client, const struct probe_wanted *wanted, struct region *region,
    struct wire_error *error)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_EXTEND_REGION, .region = region->id, .offset = region->bytes};
    struct probe_piece piece;
    struct wire_gate_reply reply;
    uint64_t end = region_end(region);
    if (region->kind != WIRE_MEMORY_CUDA_VMM || !probe_next(client, wanted, end, &piece)) {
        return false;
    }
    int fd = driver_export(&client->driver, end);
    if (fd < 0) {
        return false;
    }
    request.bytes = piece.bytes;
    bool added = region_add_piece(region, end, piece.memory.id) ||
                 fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
    if (added && !ask_for(client, &request, fd, 0, &reply, error)) {
        region->pieces--;
        added = false;
        if (error->status == WIRE_TIMED_OUT) {
            /* Nobody knows how much of it the daemon has now. */
            retire_region(&client->devices, region);
        }
    }
    (void)close(fd);
    if (added) {
        retire_range(&client->devices, end, end + request.bytes, region);
        region->bytes += request.bytes;
    }
    return added;
}

bool export_rest(struct attnd *client, const struct probe_wanted *wanted, struct region *region,
    struct wire_error *error)
{
    while (region_end(region) < wanted->end) {
        error->status = WIRE_OK;
        if (!grow(client, wanted, region, error)) {
            return error->status != WIRE_OK ? false
                                            : fail(error, INVALID_ARGUMENT,
                                                  "%s reaches %" PRIu64
                                                  " bytes beyond the device memory that it lies in",
                                                  wanted->name, wanted->end - region_end(region));
        }
    }
    return true;
}

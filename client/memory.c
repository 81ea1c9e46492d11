#include "memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "device.h"
#include "sealed.h"

#define PAGE_BYTES UINT64_C(4096)
#define PAUSE_NS 100000

/* The daemon maps it too. */
static enum attnd_status introduce(struct attnd *client, int fd, struct region *region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = region->bytes};
    struct wire_gate_reply reply;
    enum attnd_status status =
        gate_exchange(&client->gate, &request, fd, &reply, client->timeout_ns);
    if (status != ATTND_OK) {
        return status;
    }
    region->id = reply.region;
    return reply.error.status == WIRE_OK ? ATTND_OK : error_of_wire(&reply.error);
}

/* false: the daemon was not even told so, and the region is there still. */
static bool drop(struct attnd *client, const struct region *region, int64_t timeout_ns)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = region->id};
    struct wire_gate_reply reply;
    (void)gate_exchange(&client->gate, &request, -1, &reply, timeout_ns);
    return request.id != 0;
}

static void forget(struct attnd *client, struct region *region)
{
    memory_unbook(client, 1, region->bytes);
    region_free(region);
}

static enum attnd_status fill(struct attnd *client, struct region *region)
{
    int fd = sealed_create("attnd-tensors", region->bytes);
    if (fd < 0) {
        return error_set(ATTND_RESOURCE_EXHAUSTED,
            "%" PRIu64 " bytes of shared memory cannot be had: %s", region->bytes,
            strerrordesc_np(-fd));
    }
    enum attnd_status status = ATTND_OK;
    region->base = sealed_map(fd, region->bytes);
    if (!region->base) {
        status = error_set(ATTND_RESOURCE_EXHAUSTED,
            "%" PRIu64 " bytes of shared memory cannot be mapped", region->bytes);
    } else {
        status = introduce(client, fd, region);
    }
    (void)close(fd);
    return status;
}

/* false: out of memory. */
static bool publish(struct attnd *client, struct region *region)
{
    (void)pthread_mutex_lock(&client->mutex);
    bool inserted = region_insert(&client->memory.table, region);
    (void)pthread_mutex_unlock(&client->mutex);
    if (!inserted) {
        (void)drop(client, region, client->timeout_ns);
    }
    return inserted;
}

static void wait_until_unused(struct attnd *client, const struct region *region)
{
    while (!memory_is_unused(client, region) && !loss_happened(&client->loss)) {
        struct timespec pause = clock_timespec(PAUSE_NS);
        (void)nanosleep(&pause, NULL);
    }
}

/* What nobody finds any more. */
static void give_back(struct attnd *client, struct region *region)
{
    wait_until_unused(client, region);
    memory_withdraw(client, region);
}

static enum attnd_status create(struct attnd *client, uint64_t whole, struct region **region)
{
    enum attnd_status status = memory_book(client, 1, whole);
    if (status != ATTND_OK) {
        return status;
    }
    struct region *made = calloc(1, sizeof *made);
    if (!made) {
        memory_unbook(client, 1, whole);
        return error_set(ATTND_RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    made->bytes = whole;
    status = fill(client, made);
    if (status == ATTND_OK && publish(client, made)) {
        *region = made;
        return ATTND_OK;
    }
    if (status == ATTND_OK) {
        status = error_set(ATTND_RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    region_free(made);
    memory_unbook(client, 1, whole);
    return status;
}

enum attnd_status memory_book(struct attnd *client, size_t regions, uint64_t bytes)
{
    const struct wire_limits *limits = &client->session.limits;
    struct memory *memory = &client->memory;
    enum attnd_status status = ATTND_OK;
    (void)pthread_mutex_lock(&client->mutex);
    if (memory->regions + regions > limits->regions) {
        status = error_set(ATTND_RESOURCE_EXHAUSTED,
            "this client has %zu pieces of memory that the daemon sees, and it allows %" PRIu32,
            memory->regions, limits->regions);
    } else if (bytes > limits->region_bytes || memory->bytes > limits->region_bytes - bytes) {
        status = error_set(ATTND_RESOURCE_EXHAUSTED,
            "%" PRIu64 " bytes of memory are wanted, %" PRIu64
            " are in use, and the daemon allows this client %" PRIu64,
            bytes, memory->bytes, limits->region_bytes);
    } else {
        memory->regions += regions;
        memory->bytes += bytes;
    }
    (void)pthread_mutex_unlock(&client->mutex);
    return status;
}

void memory_unbook(struct attnd *client, size_t regions, uint64_t bytes)
{
    (void)pthread_mutex_lock(&client->mutex);
    client->memory.regions -= regions;
    client->memory.bytes -= bytes;
    (void)pthread_mutex_unlock(&client->mutex);
}

void memory_withdraw(struct attnd *client, struct region *region)
{
    (void)drop(client, region, client->timeout_ns);
    forget(client, region);
}

bool memory_try_withdraw(struct attnd *client, struct region *region, int64_t timeout_ns)
{
    bool dropped = drop(client, region, timeout_ns);
    if (dropped) {
        forget(client, region);
    }
    return dropped;
}

enum attnd_status memory_create(struct attnd *client, uint64_t bytes, struct region **region)
{
    if (bytes > INT64_MAX - PAGE_BYTES) {
        return error_set(ATTND_RESOURCE_EXHAUSTED, "%" PRIu64 " bytes are no size", bytes);
    }
    uint64_t whole = bytes ? (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES : PAGE_BYTES;
    enum attnd_status status = create(client, whole, region);
    while (status == ATTND_RESOURCE_EXHAUSTED && device_make_room(client, whole)) {
        status = create(client, whole, region);
    }
    return status;
}

void memory_destroy(struct attnd *client, struct region *region)
{
    (void)pthread_mutex_lock(&client->mutex);
    region_take_out(&client->memory.table, region);
    (void)pthread_mutex_unlock(&client->mutex);
    give_back(client, region);
}

void memory_hold(struct attnd *client, struct region *region)
{
    (void)pthread_mutex_lock(&client->mutex);
    region->users++;
    (void)pthread_mutex_unlock(&client->mutex);
}

void memory_let_go(struct attnd *client, struct region *region)
{
    (void)pthread_mutex_lock(&client->mutex);
    region->users--;
    (void)pthread_mutex_unlock(&client->mutex);
}

bool memory_is_unused(struct attnd *client, const struct region *region)
{
    (void)pthread_mutex_lock(&client->mutex);
    bool unused = region->users == 0;
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        unused = unused && lane_ended(&client->lanes, lane, region->last_use[lane]);
    }
    (void)pthread_mutex_unlock(&client->mutex);
    return unused;
}

bool memory_is_shared(struct attnd *client, uint64_t address)
{
    bool partly;
    (void)pthread_mutex_lock(&client->mutex);
    bool shared = memory_find(&client->memory, address, 0, 0, &partly) != NULL;
    (void)pthread_mutex_unlock(&client->mutex);
    return shared;
}

struct region *memory_find(
    const struct memory *memory, uint64_t address, int64_t low, int64_t high, bool *partly)
{
    struct region *region = region_find(&memory->table, address);
    *partly = false;
    if (!region) {
        return NULL;
    }
    uint64_t offset = address - (uintptr_t)region->base;
    *partly = (uint64_t)-low > offset || (uint64_t)high > region->bytes - offset;
    return *partly ? NULL : region;
}

void memory_finish(struct memory *memory)
{
    region_free_all(&memory->table);
}

enum attnd_status attnd_alloc(struct attnd *client, size_t bytes, void **memory)
{
    enum attnd_status status = client_check(client);
    if (status != ATTND_OK) {
        return status;
    }
    if (!memory) {
        return error_set(ATTND_INVALID_ARGUMENT, "memory is NULL");
    }
    struct region *region = NULL;
    status = memory_create(client, bytes, &region);
    if (region) {
        *memory = region->base;
    }
    return status;
}

void attnd_free(struct attnd *client, void *memory)
{
    if (!memory || client_check(client) != ATTND_OK) {
        return;
    }
    bool partly;
    (void)pthread_mutex_lock(&client->mutex);
    struct region *region = memory_find(&client->memory, (uintptr_t)memory, 0, 0, &partly);
    bool ours = region && region->base == memory;
    if (ours) {
        region_take_out(&client->memory.table, region);
    }
    (void)pthread_mutex_unlock(&client->mutex);
    if (ours) {
        give_back(client, region);
    } else {
        (void)error_set(ATTND_INVALID_ARGUMENT, "memory is nothing that attnd_alloc() gave");
    }
}

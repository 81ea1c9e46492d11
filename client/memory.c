#include "memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "sealed.h"

#define PAGE_BYTES UINT64_C(4096)
#define FIRST_CAPACITY 16
#define PAUSE_NS 100000

/* Index of the first region with a base above the address. */
static size_t upper_bound(const struct memory *memory, uint64_t address)
{
    size_t low = 0;
    size_t high = memory->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)memory->sorted[middle]->base <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool insert(struct memory *memory, struct region *region)
{
    if (memory->count == memory->capacity) {
        size_t capacity = memory->capacity ? 2 * memory->capacity : FIRST_CAPACITY;
        struct region **grown = realloc(memory->sorted, capacity * sizeof(struct region *));
        if (!grown) {
            return false;
        }
        memory->sorted = grown;
        memory->capacity = capacity;
    }
    size_t at = upper_bound(memory, (uintptr_t)region->base);
    memmove(&memory->sorted[at + 1], &memory->sorted[at],
        (memory->count - at) * sizeof(struct region *));
    memory->sorted[at] = region;
    memory->count++;
    return true;
}

static void take_out(struct memory *memory, const struct region *region)
{
    size_t at = upper_bound(memory, (uintptr_t)region->base) - 1;
    memory->count--;
    memmove(&memory->sorted[at], &memory->sorted[at + 1],
        (memory->count - at) * sizeof(struct region *));
}

/* Counts it before it exists: what is over the daemon's limits costs no memory here. */
static enum attnd_status book(struct attnd *client, uint64_t bytes)
{
    const struct wire_limits *limits = &client->session.limits;
    struct memory *memory = &client->memory;
    enum attnd_status status = ATTND_OK;
    (void)pthread_mutex_lock(&client->mutex);
    if (memory->regions >= limits->regions) {
        status = error_set(ATTND_RESOURCE_EXHAUSTED,
            "this client has %zu pieces of shared memory, and the daemon allows %" PRIu32,
            memory->regions, limits->regions);
    } else if (bytes > limits->region_bytes || memory->bytes > limits->region_bytes - bytes) {
        status = error_set(ATTND_RESOURCE_EXHAUSTED,
            "%" PRIu64 " bytes of shared memory are wanted, %" PRIu64
            " are in use, and the daemon allows this client %" PRIu64,
            bytes, memory->bytes, limits->region_bytes);
    } else {
        memory->regions++;
        memory->bytes += bytes;
    }
    (void)pthread_mutex_unlock(&client->mutex);
    return status;
}

static void unbook(struct attnd *client, uint64_t bytes)
{
    (void)pthread_mutex_lock(&client->mutex);
    client->memory.regions--;
    client->memory.bytes -= bytes;
    (void)pthread_mutex_unlock(&client->mutex);
}

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

static void withdraw(struct attnd *client, const struct region *region)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_DROP_REGION, .region = region->id};
    struct wire_gate_reply reply;
    (void)gate_exchange(&client->gate, &request, -1, &reply, client->timeout_ns);
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
    bool inserted = insert(&client->memory, region);
    (void)pthread_mutex_unlock(&client->mutex);
    if (!inserted) {
        withdraw(client, region);
    }
    return inserted;
}

static void release(struct region *region)
{
    if (region->base) {
        (void)munmap(region->base, region->bytes);
    }
    free(region);
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
    withdraw(client, region);
    unbook(client, region->bytes);
    release(region);
}

enum attnd_status memory_create(struct attnd *client, uint64_t bytes, struct region **region)
{
    if (bytes > INT64_MAX - PAGE_BYTES) {
        return error_set(ATTND_RESOURCE_EXHAUSTED, "%" PRIu64 " bytes are no size", bytes);
    }
    uint64_t whole = bytes ? (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES : PAGE_BYTES;
    enum attnd_status status = book(client, whole);
    if (status != ATTND_OK) {
        return status;
    }
    struct region *made = calloc(1, sizeof *made);
    if (!made) {
        unbook(client, whole);
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
    release(made);
    unbook(client, whole);
    return status;
}

void memory_destroy(struct attnd *client, struct region *region)
{
    (void)pthread_mutex_lock(&client->mutex);
    take_out(&client->memory, region);
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
    *partly = false;
    size_t above = upper_bound(memory, address);
    if (above == 0) {
        return NULL;
    }
    struct region *region = memory->sorted[above - 1];
    uint64_t offset = address - (uintptr_t)region->base;
    if (offset >= region->bytes) {
        return NULL;
    }
    *partly = (uint64_t)-low > offset || (uint64_t)high > region->bytes - offset;
    return *partly ? NULL : region;
}

void memory_finish(struct memory *memory)
{
    for (size_t i = 0; i < memory->count; i++) {
        release(memory->sorted[i]);
    }
    free(memory->sorted);
    *memory = (struct memory){0};
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
        take_out(&client->memory, region);
    }
    (void)pthread_mutex_unlock(&client->mutex);
    if (ours) {
        give_back(client, region);
    } else {
        (void)error_set(ATTND_INVALID_ARGUMENT, "memory is nothing that attnd_alloc() gave");
    }
}

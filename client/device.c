#include "device.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"

#define SWEEP_NS 100000000

/* A tensor whose memory is looked for. */
struct wanted {
    const char *name;
    int ordinal;
    uint64_t first; /* byte */
    uint64_t end;
};

#define fail(error, status, ...) wire_fail(error, WIRE_##status, __VA_ARGS__)

/* ---- What is still there ------------------------------------------------------------------------ */

static uint64_t begin_of(const struct region *region)
{
    return (uintptr_t)region->base;
}

static uint64_t end_of(const struct region *region)
{
    return begin_of(region) + region->bytes;
}

/* The piece that holds the address, which lies in the region. */
static size_t piece_at(const struct region *region, uint64_t address)
{
    size_t low = 0;
    size_t high = region->pieces;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (region->piece[middle].base <= address) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Whether what lies in [first, end) and in the region is what was registered. */
static bool is_alive(
    const struct attnd *client, const struct region *region, uint64_t first, uint64_t end)
{
    for (size_t i = piece_at(region, first); i < region->pieces && region->piece[i].base < end;
         i++) {
        struct driver_memory memory;
        if (!driver_describe(&client->driver, region->piece[i].base, &memory) ||
            memory.id != region->piece[i].id) {
            return false;
        }
    }
    return true;
}

/* Whether the daemon has addresses for it up to there. What never grows is judged elsewhere. */
static bool can_reach(const struct region *region, uint64_t end)
{
    return region->kind != WIRE_MEMORY_CUDA_VMM || end - begin_of(region) <= region->reserve;
}

/* ---- Letting go --------------------------------------------------------------------------------- */

static void retire(struct devices *devices, struct region *region)
{
    region_take_out(&devices->table, region);
    region->next = devices->retired;
    devices->retired = region;
}

/* A list of those that were retired before. */
static void retire_again(struct devices *devices, struct region *first)
{
    while (first) {
        struct region *region = first;
        first = region->next;
        region->next = devices->retired;
        devices->retired = region;
    }
}

/* Whatever else was known there is not there any more, or will be part of `heir`. */
static void retire_range(
    struct devices *devices, uint64_t begin, uint64_t end, const struct region *heir)
{
    for (size_t i = devices->table.count; i-- > 0;) {
        struct region *region = devices->table.sorted[i];
        if (region != heir && begin_of(region) < end && begin < end_of(region)) {
            retire(devices, region);
        }
    }
}

static void retire_dead(struct attnd *client)
{
    struct devices *devices = &client->devices;
    for (size_t i = devices->table.count; i-- > 0;) {
        struct region *region = devices->table.sorted[i];
        if (!is_alive(client, region, begin_of(region), end_of(region))) {
            retire(devices, region);
        }
    }
}

static void retire_unused(struct attnd *client)
{
    struct devices *devices = &client->devices;
    for (size_t i = devices->table.count; i-- > 0;) {
        if (memory_is_unused(client, devices->table.sorted[i])) {
            retire(devices, devices->table.sorted[i]);
        }
    }
}

/* Of the retired ones, a list of those that no request uses. */
static struct region *take_unused(struct attnd *client)
{
    struct region *unused = NULL;
    struct region **link = &client->devices.retired;
    while (*link) {
        struct region *region = *link;
        if (memory_is_unused(client, region)) {
            *link = region->next;
            region->next = unused;
            unused = region;
        } else {
            link = &region->next;
        }
    }
    return unused;
}

/* Those that the daemon was not told of until the deadline stay retired. */
static struct region *withdraw_all(struct attnd *client, struct region *first, int64_t deadline)
{
    struct region *left = NULL;
    while (first) {
        struct region *region = first;
        first = region->next;
        if (atomic_load(&client->devices.stop)) {
            region_free(region); /* the session's end drops them all */
        } else if (!memory_try_withdraw(client, region, clock_left_ns(deadline, INT64_MAX))) {
            region->next = left;
            left = region;
        }
    }
    return left;
}

/* Nobody waits for the daemon with the mutex. */
static void drop(struct attnd *client, void (*choose)(struct attnd *client), int64_t deadline)
{
    struct devices *devices = &client->devices;
    (void)pthread_mutex_lock(&devices->mutex);
    choose(client);
    struct region *unused = take_unused(client);
    (void)pthread_mutex_unlock(&devices->mutex);
    struct region *left = withdraw_all(client, unused, deadline);
    (void)pthread_mutex_lock(&devices->mutex);
    retire_again(devices, left);
    (void)pthread_mutex_unlock(&devices->mutex);
}

static void *sweep(void *context)
{
    struct attnd *client = context;
    struct devices *devices = &client->devices;
    (void)pthread_mutex_lock(&devices->mutex);
    while (!atomic_load(&devices->stop)) {
        struct timespec until = clock_timespec(clock_deadline(SWEEP_NS));
        (void)pthread_cond_timedwait(&devices->stopped, &devices->mutex, &until);
        if (!atomic_load(&devices->stop) && !loss_happened(&client->loss)) {
            (void)pthread_mutex_unlock(&devices->mutex);
            stream_check(client);
            drop(client, retire_dead, clock_deadline(client->timeout_ns));
            (void)pthread_mutex_lock(&devices->mutex);
        }
    }
    (void)pthread_mutex_unlock(&devices->mutex);
    return NULL;
}

static bool start_sweeping(struct attnd *client, struct wire_error *error)
{
    struct devices *devices = &client->devices;
    sigset_t all;
    sigset_t before;
    if (devices->sweeping) {
        return true;
    }
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&devices->sweeper, NULL, sweep, client);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        return fail(
            error, RESOURCE_EXHAUSTED, "no thread can be started: %s", strerrordesc_np(code));
    }
    (void)pthread_setname_np(devices->sweeper, "attnd-sweep");
    devices->sweeping = true;
    return true;
}

/* Memory counts against the daemon's limits until it is unmapped, a moment behind being dropped. */
static enum attnd_status wait_until_unmapped(struct attnd *client, int64_t deadline)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM};
    struct wire_gate_reply reply;
    enum attnd_status status =
        gate_exchange(&client->gate, &request, -1, &reply, clock_left_ns(deadline, INT64_MAX));
    return status == ATTND_OK && reply.error.status != WIRE_OK ? error_of_wire(&reply.error)
                                                               : status;
}

/* ---- Registering -------------------------------------------------------------------------------- */

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
        retire_again(&client->devices, withdraw_all(client, take_unused(client), deadline));
        (void)wait_until_unmapped(client, deadline);
    }
}

static bool add_piece(struct region *region, uint64_t base, uint64_t id, struct wire_error *error)
{
    struct region_piece *grown = region->piece;
    if ((region->pieces & (region->pieces - 1)) == 0) { /* 0 or a power of 2: it is full */
        size_t capacity = region->pieces ? 2 * region->pieces : 1;
        grown = realloc(region->piece, capacity * sizeof *grown);
        if (!grown) {
            return fail(error, RESOURCE_EXHAUSTED, "the process is out of memory");
        }
        region->piece = grown;
    }
    grown[region->pieces++] = (struct region_piece){base, id};
    return true;
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
    if (!add_piece(region, base, id, error) || !ask_for(client, request, fd, 1, &reply, error)) {
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

/* Where the run of mapped pieces begins that this one is part of, or where the known region ends that
 * the run continues: *known, NULL if that has no room for what is wanted. */
static uint64_t begin_of_run(
    const struct attnd *client, const struct wanted *wanted, uint64_t base, struct region **known)
{
    uint64_t before;
    uint64_t bytes;
    struct driver_memory memory;
    *known = NULL;
    while (driver_range(&client->driver, base - 1, &before, &bytes) && before + bytes == base &&
           driver_describe(&client->driver, before, &memory) && memory.ordinal == wanted->ordinal &&
           driver_is_mapped(&client->driver, before)) {
        struct region *region = region_find(&client->devices.table, before);
        if (region && end_of(region) == base && is_alive(client, region, begin_of(region), base)) {
            *known = can_reach(region, wanted->end) ? region : NULL;
            break;
        }
        base = before;
    }
    return base;
}

/* The most bytes that a region from `begin` on can come to, at least `bytes`: what its addresses were
 * reserved for. */
static uint64_t reserve_of(
    const struct attnd *client, const struct driver_memory *memory, uint64_t begin, uint64_t bytes)
{
    uint64_t reserve = memory->range_end > begin ? memory->range_end - begin : 0;
    if (reserve <= bytes) {
        reserve = driver_total_memory(&client->driver, memory->ordinal);
    }
    return reserve < bytes ? bytes : reserve;
}

/* Or the region that this memory continues. */
static struct region *introduce_mapped(
    struct attnd *client, const struct wanted *wanted, uint64_t base, struct wire_error *error)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_VMM};
    struct driver_memory memory = {0};
    struct region *known;
    uint64_t begin = begin_of_run(client, wanted, base, &known);
    if (known) {
        return known;
    }
    /* Before it is exported: what comes there instead of it meanwhile is not taken for it. */
    if (!driver_range(&client->driver, begin, &begin, &request.bytes) ||
        !driver_describe(&client->driver, begin, &memory)) {
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
    request.reserve = reserve_of(
        client, &memory, begin, request.bytes > wanted_bytes ? request.bytes : wanted_bytes);
    struct region *region = introduce(client, &request, fd, begin, memory.id, error);
    (void)close(fd);
    return region;
}

static bool check_kind(const struct wanted *wanted, const struct driver_memory *memory, bool known,
    struct wire_error *error)
{
    if (!known || !memory->is_device) {
        return fail(error, INVALID_ARGUMENT,
            "%s->data is no memory of a device, as the CUDA driver knows", wanted->name);
    }
    if (memory->is_managed) {
        return fail(error, UNSUPPORTED_MEMORY,
            "%s lies in managed memory (cudaMallocManaged), which no other process can map; use "
            "memory from cudaMalloc",
            wanted->name);
    }
    if (memory->is_pooled) {
        return fail(error, UNSUPPORTED_MEMORY,
            "%s lies in a memory pool (cudaMallocAsync), which is not shared; use memory from "
            "cudaMalloc, in PyTorch its native allocator",
            wanted->name);
    }
    return memory->ordinal == wanted->ordinal ||
           fail(error, INVALID_ARGUMENT,
               "%s->device.device_id is %d, but its memory is device %d's", wanted->name,
               wanted->ordinal, memory->ordinal);
}

static struct region *introduce_any(
    struct attnd *client, const struct wanted *wanted, struct wire_error *error)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .memory = WIRE_MEMORY_CUDA_IPC};
    struct driver_memory memory;
    uint64_t base = 0;
    bool known = driver_describe(&client->driver, wanted->first, &memory) &&
                 driver_range(&client->driver, wanted->first, &base, &request.bytes);
    if (!check_kind(wanted, &memory, known, error)) {
        return NULL;
    }
    if (driver_ipc_handle(&client->driver, base, request.handle)) {
        return introduce(client, &request, -1, base, memory.id, error);
    }
    if (driver_is_mapped(&client->driver, base)) {
        return introduce_mapped(client, wanted, base, error);
    }
    (void)fail(error, UNSUPPORTED_MEMORY,
        "%s lies in device memory that cannot be shared, perhaps another process's or a custom "
        "allocator's; use memory from cudaMalloc",
        wanted->name);
    return NULL;
}

/* Adds the piece behind the region's end. false with *error untouched: there is none. */
static bool grow(struct attnd *client, const struct wanted *wanted, struct region *region,
    struct wire_error *error)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_EXTEND_REGION, .region = region->id, .offset = region->bytes};
    struct driver_memory memory;
    struct wire_gate_reply reply;
    uint64_t base;
    uint64_t end = end_of(region);
    if (region->kind != WIRE_MEMORY_CUDA_VMM ||
        !driver_range(&client->driver, end, &base, &request.bytes) || base != end ||
        !driver_describe(&client->driver, end, &memory) || memory.ordinal != wanted->ordinal) {
        return false;
    }
    int fd = driver_export(&client->driver, end);
    if (fd < 0) {
        return false;
    }
    bool added = add_piece(region, end, memory.id, error);
    if (added && !ask_for(client, &request, fd, 0, &reply, error)) {
        region->pieces--;
        added = false;
        if (error->status == WIRE_TIMED_OUT) {
            retire(&client->devices, region); /* nobody knows how much of it the daemon has now */
        }
    }
    (void)close(fd);
    if (added) {
        retire_range(&client->devices, end, end + request.bytes, region);
        region->bytes += request.bytes;
    }
    return added;
}

/* Lets the region reach to the end of what is wanted. It is held, as making room drops others. */
static bool reach_end(struct attnd *client, const struct wanted *wanted, struct region *region,
    struct wire_error *error)
{
    while (end_of(region) < wanted->end) {
        error->status = WIRE_OK;
        if (!grow(client, wanted, region, error)) {
            return error->status != WIRE_OK ? false
                                            : fail(error, INVALID_ARGUMENT,
                                                  "%s reaches %" PRIu64
                                                  " bytes beyond the device memory that it lies in",
                                                  wanted->name, wanted->end - end_of(region));
        }
    }
    return true;
}

/* Held, or NULL. */
static struct region *find(
    struct attnd *client, const struct wanted *wanted, struct wire_error *error)
{
    struct region *region = region_find(&client->devices.table, wanted->first);
    if (region && (!can_reach(region, wanted->end) ||
                      !is_alive(client, region, wanted->first, wanted->end))) {
        retire(&client->devices, region);
        region = NULL;
    }
    if (!region) {
        region = introduce_any(client, wanted, error);
    }
    if (!region) {
        return NULL;
    }
    memory_hold(client, region);
    if (!reach_end(client, wanted, region, error)) {
        memory_let_go(client, region);
        return NULL;
    }
    return region;
}

/* ---- Public ------------------------------------------------------------------------------------- */

void device_init(struct devices *devices)
{
    pthread_condattr_t monotonic;
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&devices->stopped, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
    (void)pthread_mutex_init(&devices->mutex, NULL);
}

bool device_start(struct attnd *client, struct wire_error *error)
{
    (void)pthread_mutex_lock(&client->devices.mutex);
    bool started = start_sweeping(client, error);
    (void)pthread_mutex_unlock(&client->devices.mutex);
    return started;
}

bool device_acquire(struct attnd *client, const char *name, int ordinal, uint64_t address,
    const struct wire_extent *extent, struct region **region, uint64_t *offset,
    struct wire_error *error)
{
    const struct wanted wanted = {.name = name,
        .ordinal = ordinal,
        .first = address + (uint64_t)extent->low,
        .end = address + (uint64_t)extent->high};
    struct devices *devices = &client->devices;
    (void)pthread_mutex_lock(&devices->mutex);
    *region = find(client, &wanted, error);
    *offset = *region ? address - begin_of(*region) : 0;
    (void)pthread_mutex_unlock(&devices->mutex);
    return *region != NULL;
}

enum attnd_status device_drop_unused(struct attnd *client, int64_t timeout_ns)
{
    if (client->session.device.kind != WIRE_DEVICE_CUDA) {
        return ATTND_OK; /* there is none, and daemons of old know nothing of it */
    }
    int64_t deadline = clock_deadline(timeout_ns);
    drop(client, retire_unused, deadline);
    enum attnd_status status = wait_until_unmapped(client, deadline);
    if (status == ATTND_TIMED_OUT) {
        status = error_set(ATTND_TIMED_OUT, "the daemon did not let idle memory go within %.3f s",
            (double)timeout_ns / (double)CLOCK_SECOND_NS);
    }
    return status;
}

void device_stop(struct devices *devices)
{
    (void)pthread_mutex_lock(&devices->mutex);
    bool running = devices->sweeping;
    atomic_store(&devices->stop, true);
    devices->sweeping = false;
    (void)pthread_cond_signal(&devices->stopped);
    (void)pthread_mutex_unlock(&devices->mutex);
    if (running) {
        (void)pthread_join(devices->sweeper, NULL);
    }
}

void device_finish(struct devices *devices)
{
    while (devices->retired) {
        struct region *region = devices->retired;
        devices->retired = region->next;
        region_free(region);
    }
    region_free_all(&devices->table);
    (void)pthread_cond_destroy(&devices->stopped);
    (void)pthread_mutex_destroy(&devices->mutex);
}

enum attnd_status attnd_trim(struct attnd *client, int64_t timeout_ns)
{
    enum attnd_status status = client_check(client);
    if (status == ATTND_OK && timeout_ns < 0 && timeout_ns != ATTND_FOREVER) {
        status = error_set(ATTND_INVALID_ARGUMENT,
            "timeout_ns is %" PRId64 ", below 0 and not ATTND_FOREVER", timeout_ns);
    }
    if (status == ATTND_OK) {
        status = loss_check(&client->loss);
    }
    return status == ATTND_OK ? device_drop_unused(client, timeout_ns) : status;
}

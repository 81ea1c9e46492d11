#include "retire.h"

#include <stdatomic.h>

#include "client.h"
#include "clock.h"
#include "probe.h"

#define PAUSE_NS 100000

static void sleep_a_little(void)
{
    struct timespec pause = clock_timespec(PAUSE_NS);
    (void)nanosleep(&pause, NULL);
}

/* Memory may be registered under it, and that may take as long as the daemon does. */
static bool lock_until(pthread_mutex_t *mutex, int64_t deadline)
{
    while (pthread_mutex_trylock(mutex) != 0) {
        if (clock_left_ns(deadline, 1) == 0) {
            return false;
        }
        sleep_a_little();
    }
    return true;
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

/* Keeps those in the list that the daemon was not told of until the deadline. Returns how many it was. */
static size_t withdraw_all(struct attnd *client, struct region **list, int64_t deadline)
{
    struct region *left = NULL;
    size_t withdrawn = 0;
    while (*list) {
        struct region *region = *list;
        *list = region->next;
        if (atomic_load(&client->sweep.stop)) {
            region_free(region); /* the session's end drops them all */
            withdrawn++;
        } else if (memory_try_withdraw(client, region, clock_left_ns(deadline, INT64_MAX))) {
            withdrawn++;
        } else {
            region->next = left;
            left = region;
        }
    }
    *list = left;
    return withdrawn;
}

void retire_region(struct devices *devices, struct region *region)
{
    region_take_out(&devices->table, region);
    region->next = devices->retired;
    devices->retired = region;
}

void retire_range(struct devices *devices, uint64_t begin, uint64_t end, const struct region *heir)
{
    for (size_t i = devices->table.count; i-- > 0;) {
        struct region *region = devices->table.sorted[i];
        if (region != heir && region_begin(region) < end && begin < region_end(region)) {
            retire_region(devices, region);
        }
    }
}

void retire_dead(struct attnd *client)
{
    struct devices *devices = &client->devices;
    for (size_t i = devices->table.count; i-- > 0;) {
        struct region *region = devices->table.sorted[i];
        if (!probe_is_alive(client, region, region_begin(region), region_end(region))) {
            retire_region(devices, region);
        }
    }
}

void retire_unused(struct attnd *client)
{
    struct devices *devices = &client->devices;
    for (size_t i = devices->table.count; i-- > 0;) {
        if (memory_is_unused(client, devices->table.sorted[i])) {
            retire_region(devices, devices->table.sorted[i]);
        }
    }
}

static struct region *least_recently_used(struct attnd *client)
{
    const struct region_table *table = &client->devices.table;
    struct region *found = NULL;
    for (size_t i = 0; i < table->count; i++) {
        struct region *region = table->sorted[i];
        if ((!found || region->wanted_at < found->wanted_at) && memory_is_unused(client, region)) {
            found = region;
        }
    }
    return found;
}

bool retire_for_room(struct attnd *client, uint64_t bytes)
{
    struct devices *devices = &client->devices;
    int64_t deadline = clock_deadline(client->timeout_ns);
    struct region *unused = take_unused(client);
    uint64_t room = 0;
    for (struct region *region = unused; region; region = region->next) {
        room += region->bytes;
    }
    while (!unused || room < bytes) {
        struct region *region = least_recently_used(client);
        if (!region) {
            break;
        }
        region_take_out(&devices->table, region);
        region->next = unused;
        unused = region;
        room += region->bytes;
    }
    size_t withdrawn = withdraw_all(client, &unused, deadline);
    retire_again(devices, unused);
    if (withdrawn > 0) {
        (void)retire_wait(client, deadline);
    }
    return withdrawn > 0;
}

void retire_and_drop(struct attnd *client, void (*choose)(struct attnd *client), int64_t deadline)
{
    struct devices *devices = &client->devices;
    if (!lock_until(&devices->mutex, deadline)) {
        return;
    }
    choose(client);
    struct region *unused = take_unused(client);
    (void)atomic_fetch_add(&devices->withdrawing, 1);
    (void)pthread_mutex_unlock(&devices->mutex);
    (void)withdraw_all(client, &unused, deadline);
    (void)atomic_fetch_sub(&devices->withdrawing, 1);
    if (unused) {
        (void)pthread_mutex_lock(&devices->mutex);
        retire_again(devices, unused);
        (void)pthread_mutex_unlock(&devices->mutex);
    }
}

enum attnd_status retire_wait(struct attnd *client, int64_t deadline)
{
    while (atomic_load(&client->devices.withdrawing) != 0 && clock_left_ns(deadline, 1) != 0) {
        sleep_a_little(); /* what others are about to say comes before the question */
    }
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM};
    struct wire_gate_reply reply;
    enum attnd_status status =
        gate_exchange(&client->gate, &request, -1, &reply, clock_left_ns(deadline, INT64_MAX));
    return status == ATTND_OK && reply.error.status != WIRE_OK ? error_of_wire(&reply.error)
                                                               : status;
}

#include "device.h"

#include <inttypes.h>

#include "client.h"
#include "clock.h"
#include "export.h"
#include "probe.h"
#include "retire.h"

/* Held, or NULL. */
static struct region *find(
    struct attnd *client, const struct probe_wanted *wanted, struct wire_error *error)
{
    struct region *region = region_find(&client->devices.table, wanted->first);
    if (region && (!region_can_reach(region, wanted->end) ||
                      !probe_is_alive(client, region, wanted->first, wanted->end))) {
        retire_region(&client->devices, region);
        region = NULL;
    }
    if (!region) {
        region = export_region(client, wanted, error);
    }
    if (!region) {
        return NULL;
    }
    memory_hold(client, region);
    if (!export_rest(client, wanted, region, error)) {
        memory_let_go(client, region);
        return NULL;
    }
    return region;
}

void device_init(struct devices *devices)
{
    (void)pthread_mutex_init(&devices->mutex, NULL);
}

bool device_acquire(struct attnd *client, const char *name, int ordinal, uint64_t address,
    const struct wire_extent *extent, struct region **region, uint64_t *offset,
    struct wire_error *error)
{
    const struct probe_wanted wanted = {.name = name,
        .ordinal = ordinal,
        .first = address + (uint64_t)extent->low,
        .end = address + (uint64_t)extent->high};
    struct devices *devices = &client->devices;
    (void)pthread_mutex_lock(&devices->mutex);
    *region = find(client, &wanted, error);
    if (*region) {
        (*region)->wanted_at = ++devices->searches;
    }
    *offset = *region ? address - region_begin(*region) : 0;
    (void)pthread_mutex_unlock(&devices->mutex);
    return *region != NULL;
}

bool device_make_room(struct attnd *client, uint64_t bytes)
{
    if (client->session.device.kind != WIRE_DEVICE_CUDA) {
        return false;
    }
    (void)pthread_mutex_lock(&client->devices.mutex);
    bool made = retire_for_room(client, bytes);
    (void)pthread_mutex_unlock(&client->devices.mutex);
    return made;
}

void device_finish(struct devices *devices)
{
    while (devices->retired) {
        struct region *region = devices->retired;
        devices->retired = region->next;
        region_free(region);
    }
    region_free_all(&devices->table);
    (void)pthread_mutex_destroy(&devices->mutex);
}

static enum attnd_status drop_unused(struct attnd *client, int64_t timeout_ns)
{
    if (client->session.device.kind != WIRE_DEVICE_CUDA) {
        return ATTND_OK; /* there is none, and daemons of old know nothing of it */
    }
    int64_t deadline = clock_deadline(timeout_ns);
    retire_and_drop(client, retire_unused, deadline);
    enum attnd_status status = retire_wait(client, deadline);
    if (status == ATTND_TIMED_OUT) {
        status = error_set(ATTND_TIMED_OUT, "the daemon did not let idle memory go within %.3f s",
            (double)timeout_ns / (double)CLOCK_SECOND_NS);
    }
    return status;
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
    return status == ATTND_OK ? drop_unused(client, timeout_ns) : status;
}

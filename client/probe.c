#include "probe.h"

#include "client.h"

#define fail(error, status, ...) wire_fail(error, WIRE_##status, __VA_ARGS__)

static bool check_kind(const struct probe_wanted *wanted, const struct driver_memory *memory,
    bool known, struct wire_error *error)
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

bool probe_first(struct attnd *client, const struct probe_wanted *wanted, struct probe_piece *piece,
    struct wire_error *error)
{
    bool known = driver_describe(&client->driver, wanted->first, &piece->memory) &&
                 driver_range(&client->driver, wanted->first, &piece->base, &piece->bytes);
    return check_kind(wanted, &piece->memory, known, error);
}

bool probe_next(struct attnd *client, const struct probe_wanted *wanted, uint64_t base,
    struct probe_piece *piece)
{
    return driver_range(&client->driver, base, &piece->base, &piece->bytes) &&
           piece->base == base && driver_describe(&client->driver, base, &piece->memory) &&
           piece->memory.ordinal == wanted->ordinal;
}

uint64_t probe_begin_of_run(
    struct attnd *client, const struct probe_wanted *wanted, uint64_t base, struct region **known)
{
    uint64_t before;
    uint64_t bytes;
    struct driver_memory memory;
    *known = NULL;
    while (driver_range(&client->driver, base - 1, &before, &bytes) && before + bytes == base &&
           driver_describe(&client->driver, before, &memory) && memory.ordinal == wanted->ordinal &&
           driver_is_mapped(&client->driver, before)) {
        struct region *region = region_find(&client->devices.table, before);
        if (region && region_end(region) == base &&
            probe_is_alive(client, region, region_begin(region), base)) {
            *known = region_can_reach(region, wanted->end) ? region : NULL;
            break;
        }
        base = before;
    }
    return base;
}

uint64_t probe_reserve(struct attnd *client, const struct probe_piece *piece, uint64_t bytes)
{
    uint64_t end = piece->memory.range_end;
    uint64_t reserve = end > piece->base ? end - piece->base : 0;
    if (reserve <= bytes) {
        reserve = driver_total_memory(&client->driver, piece->memory.ordinal);
    }
    return reserve < bytes ? bytes : reserve;
}

bool probe_is_alive(
    const struct attnd *client, const struct region *region, uint64_t first, uint64_t end)
{
    for (size_t i = region_piece_at(region, first);
         i < region->pieces && region->piece[i].base < end; i++) {
        struct driver_memory memory;
        if (!driver_describe(&client->driver, region->piece[i].base, &memory) ||
            memory.id != region->piece[i].id) {
            return false;
        }
    }
    return true;
}

#include "place.h"

#include "client.h"
#include "device.h"

static bool is_placed(const struct wire_extent *extent)
{
    return extent->low < extent->high;
}

/* Where one tensor lies; NULL: in no region, or *partly in one. One without elements may be said to
 * lie in any. */
static struct region *find_region(const struct memory *memory, const struct wire_extent *extent,
    uint64_t address, uint64_t *offset, bool *partly)
{
    struct region *region = NULL;
    *offset = 0;
    *partly = false;
    if (is_placed(extent)) {
        region = memory_find(memory, address, extent->low, extent->high, partly);
        *offset = region ? address - (uintptr_t)region->base : 0;
    } else if (memory->table.count > 0) {
        region = memory->table.sorted[0];
    }
    return region;
}

/* Finds a tensor's region in shared memory and holds it. */
static bool find_in_host(struct attnd *client, const struct place_wanted *wanted, uint32_t i,
    struct wire_call *call, struct place *place, struct wire_error *error)
{
    bool partly;
    (void)pthread_mutex_lock(&client->mutex);
    struct region *region = find_region(
        &client->memory, &wanted->extents[i], wanted->address[i], &call->offset[i], &partly);
    if (region) {
        region->users++;
        place->region[i] = region;
        call->region[i] = region->id;
    }
    (void)pthread_mutex_unlock(&client->mutex);
    return !partly || wire_fail(error, WIRE_INVALID_ARGUMENT,
                          "%s reaches beyond the memory from attnd_alloc() that it lies in",
                          wire_role_name(wanted->plan->tensor[i].role));
}

static bool find_on_device(struct attnd *client, const struct place_wanted *wanted, uint32_t i,
    struct wire_call *call, struct place *place, struct wire_error *error)
{
    const char *name = wire_role_name(wanted->plan->tensor[i].role);
    if (!device_acquire(client, name, wanted->stream->ordinal, wanted->address[i],
            &wanted->extents[i], &place->region[i], &call->offset[i], error)) {
        return false;
    }
    call->region[i] = place->region[i]->id;
    return true;
}

/* Tensors without elements name a region all the same: one of the others', or of host memory. */
static bool find_rest(struct attnd *client, uint32_t tensors, struct wire_call *call,
    struct place *place, struct wire_error *error)
{
    struct block_piece piece = {0};
    struct region *any = NULL;
    for (uint32_t i = 0; i < tensors; i++) {
        any = place->region[i] ? place->region[i] : any;
    }
    if (!any) {
        enum attnd_status status = block_acquire(client, 1, false, &piece);
        if (status != ATTND_OK) {
            return wire_fail(error, (enum wire_status)status, "%.250s", attnd_message());
        }
        any = piece.region;
    }
    for (uint32_t i = 0; i < tensors; i++) {
        if (!place->region[i]) {
            memory_hold(client, any);
            place->region[i] = any;
            call->region[i] = any->id;
        }
    }
    block_release(client, &piece);
    return true;
}

static bool find_all_in_host(struct attnd *client, const struct place_wanted *wanted,
    struct wire_call *call, struct place *place, bool *outside, struct wire_error *error)
{
    for (uint32_t i = 0; i < wanted->plan->tensors; i++) {
        if (!find_in_host(client, wanted, i, call, place, error)) {
            return false;
        }
        *outside = *outside || !place->region[i];
    }
    return true;
}

bool place_find(struct attnd *client, const struct place_wanted *wanted, struct wire_call *call,
    struct place *place, bool *outside, struct wire_error *error)
{
    call->tensors = wanted->plan->tensors;
    if (!wanted->stream) {
        return find_all_in_host(client, wanted, call, place, outside, error);
    }
    for (uint32_t i = 0; i < call->tensors; i++) {
        const DLTensor *tensor = wanted->request->tensor[wanted->plan->tensor[i].role];
        bool found = true;
        if (is_placed(&wanted->extents[i])) {
            found = request_is_host(tensor) ? find_in_host(client, wanted, i, call, place, error)
                                            : find_on_device(client, wanted, i, call, place, error);
        }
        if (!found) {
            return false;
        }
    }
    return find_rest(client, call->tensors, call, place, error);
}

void place_note_use(const struct place *place, unsigned lane, uint64_t sequence)
{
    for (size_t i = 0; i < WIRE_MAX_TENSORS; i++) {
        if (place->region[i]) {
            place->region[i]->last_use[lane] = sequence;
        }
    }
}

void place_release(const struct place *place)
{
    for (size_t i = 0; i < WIRE_MAX_TENSORS; i++) {
        if (place->region[i]) {
            place->region[i]->users--;
        }
    }
}

#include "region.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* A region's mapping or extending. */
struct change {
    struct worker_task task; /* first */
    struct region *region;   /* holds a reference */
    struct backend_offer offer;
    bool is_extension;
    atomic_bool pointless; /* nobody wants it any more */
    bool good;
    void *base; /* of what was mapped */
    struct wire_error error;
    region_done_fn *done;
    void *context;
};

static struct region *region_of(struct list_node *node)
{
    return list_entry(node, struct region, node);
}

/* Of those that `handles` counts. */
static bool is_handle(const struct region *region)
{
    return region->kind == WIRE_MEMORY_CUDA_IPC && !region->dropped;
}

/* On the unmapper's thread. */
static void unmap(struct worker_task *task)
{
    struct region *region = (struct region *)(void *)task;

    region->backend->ops->unmap(region->backend, region->base, region->bytes);
    free(region);
}

static void give_fence(struct region_set *set)
{
    struct worker_task *fence = set->fence;

    if (fence != NULL) {
        set->fence = NULL;
        worker_give(set->options.unmapper, fence);
    }
}

static void leave_set(struct region *region)
{
    struct region_set *set = region->set;

    set->count--;
    set->bytes -= region->counted;
    set->dropped -= region->dropped;
    set->handles -= is_handle(region);
    list_remove(&region->node);
    region->set = NULL;
}

static void let_go(struct region *region)
{
    struct region_set *set = region->set;

    if (set != NULL) {
        leave_set(region);
    }
    if (region->base != NULL) {
        region->task.weight = region->bytes;
        worker_give(region->unmapper, &region->task);
    } else {
        free(region);
    }
    if (set != NULL && set->dropped == 0) {
        give_fence(set);
    }
}

/* There is one: the set has no more regions than numbers. */
static uint32_t free_number(const struct region_set *set)
{
    uint32_t at = 0;

    while (set->number[at] != NULL) {
        at++;
        assert(at < set->options.limit);
    }
    return at + 1;
}

static void count(struct region *region, uint64_t bytes)
{
    if (region->set != NULL) {
        region->set->bytes += bytes - region->counted;
    }
    region->counted = bytes;
}

static void fail_ended(struct change *change)
{
    (void)wire_fail(&change->error, WIRE_CANCELLED, "the session has ended");
}

/* On the mapper's thread. */
static void work(struct worker_task *task)
{
    struct change *change = (struct change *)(void *)task;
    struct region *region = change->region;
    struct backend *backend = region->backend;

    if (atomic_load(&change->pointless)) {
        fail_ended(change);
        return;
    }
    change->good = change->is_extension
                       ? backend->ops->extend(
                             backend, region->base, region->bytes, &change->offer, &change->error)
                       : backend->ops->map(backend, &change->offer, &change->base, &change->error);
    if (change->good && change->offer.fd >= 0) {
        (void)close(change->offer.fd);
        change->offer.fd = -1;
    }
}

/* What was mapped becomes usable, if it is of use. Returns its number. */
static uint32_t take_over(struct change *change)
{
    struct region *region = change->region;
    struct region_set *set = region->set;

    if (change->is_extension) {
        region->bytes += change->offer.bytes;
        return region->number;
    }
    region->base = change->base;
    if (set != NULL && !set->closed) {
        region->number = free_number(set);
        set->number[region->number - 1] = region;
        region_acquire(region);
    }
    return region->number;
}

static void on_changed(struct worker_task *task)
{
    struct change *change = (struct change *)(void *)task;
    struct region *region = change->region;
    uint32_t number = 0;

    region->change = NULL;
    if (change->good) {
        number = take_over(change);
        if (number == 0) {
            fail_ended(change);
        }
    }
    count(region, region->bytes); /* here again: its change weighs nothing any more */
    region_release(region);
    change->done(change->context, number, change->offer.fd, &change->error);
    free(change);
}

static bool start_change(struct region *region, const struct change *content)
{
    struct change *change = malloc(sizeof(*change));

    if (change == NULL) {
        return false;
    }
    *change = *content;
    change->task =
        (struct worker_task){.uid = region->set->options.uid, .work = work, .done = on_changed};
    change->region = region;
    change->offer.reserve = region->reserve; /* what was not given is what it has */
    change->offer.pid = region->set->options.pid;
    change->offer.uid = region->set->options.uid;
    region->change = change;
    worker_give(region->set->options.mapper, &change->task);
    return true;
}

static bool check_reserve(const struct backend_offer *offer, struct wire_error *error)
{
    if (offer->kind != WIRE_MEMORY_CUDA_VMM && offer->reserve != 0) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "reserve is %" PRIu64 ", but memory of this kind never grows", offer->reserve);
    }
    return offer->reserve == 0 || offer->reserve >= offer->bytes ||
           wire_fail(error, WIRE_INVALID_ARGUMENT,
               "reserve is %" PRIu64 ", less than the %" PRIu64 " of bytes", offer->reserve,
               offer->bytes);
}

static bool check_piece(
    const struct region *region, uint64_t offset, uint64_t bytes, struct wire_error *error)
{
    if (region->kind != WIRE_MEMORY_CUDA_VMM || region->backend->ops->extend == NULL) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "region %" PRIu32 " is of a kind of memory that never grows", region->number);
    }
    if (offset != region->bytes) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "offset is %" PRIu64 ", but region %" PRIu32 " has %" PRIu64 " bytes", offset,
            region->number, region->bytes);
    }
    return bytes <= region->reserve - region->bytes ||
           wire_fail(error, WIRE_INVALID_ARGUMENT,
               "bytes is %" PRIu64 "; region %" PRIu32 " has %" PRIu64 " and was reserved %" PRIu64,
               bytes, region->number, region->bytes, region->reserve);
}

bool region_set_init(struct region_set *set, const struct region_options *options)
{
    *set = (struct region_set){.options = *options};
    list_init(&set->all);
    set->number = calloc(options->limit, sizeof(struct region *));
    return set->number != NULL;
}

void region_set_close(struct region_set *set)
{
    set->closed = true;
    for (uint32_t number = 1; number <= set->options.limit; number++) {
        (void)region_drop(set, number);
    }
    list_for_each(node, &set->all) {
        struct region *region = region_of(node);
        if (region->change != NULL && !atomic_exchange(&region->change->pointless, true)) {
            worker_weigh(set->options.mapper, &region->change->task, region->counted);
            count(region, 0);
        }
    }
}

void region_set_finish(struct region_set *set)
{
    if (set->number == NULL) {
        return;
    }
    region_set_close(set);
    list_for_each(node, &set->all) {
        struct region *region = region_of(node);
        if (region->change != NULL) {
            leave_set(region);
            region->references = 1;
        } else {
            let_go(region);
        }
    }
    give_fence(set);
    free(set->number);
    set->number = NULL;
}

bool region_add(struct region_set *set, const struct backend_offer *offer, region_done_fn *done,
    void *context, struct wire_error *error)
{
    if (set->count >= set->options.limit) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the session has %" PRIu32 " regions, as many as it may", set->count);
    }
    if (!check_reserve(offer, error)) {
        return false;
    }
    struct region *region = malloc(sizeof(*region));
    if (region == NULL) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
    }
    *region = (struct region){.task = {.uid = set->options.uid, .work = unmap},
        .backend = set->options.backend,
        .unmapper = set->options.unmapper,
        .set = set,
        .kind = offer->kind,
        .bytes = offer->bytes,
        .reserve = offer->reserve > 0 ? offer->reserve : offer->bytes,
        .counted = offer->bytes,
        .references = 1};
    if (!start_change(
            region, &(struct change){.offer = *offer, .done = done, .context = context})) {
        free(region);
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
    }
    list_append(&set->all, &region->node);
    set->count++;
    set->bytes += offer->bytes;
    set->handles += is_handle(region);
    return true;
}

bool region_extend(struct region_set *set, uint32_t number, uint64_t offset,
    const struct backend_offer *piece, region_done_fn *done, void *context,
    struct wire_error *error)
{
    struct region *region = region_find(set, number);

    if (region == NULL) {
        return wire_fail(error, WIRE_NOT_FOUND, "the session has no region %" PRIu32, number);
    }
    if (region->change != NULL) {
        return wire_fail(error, WIRE_AGAIN, "region %" PRIu32 " is being extended", number);
    }
    if (!check_piece(region, offset, piece->bytes, error)) {
        return false;
    }
    if (!start_change(
            region, &(struct change){
                        .offer = *piece, .is_extension = true, .done = done, .context = context})) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
    }
    region_acquire(region);
    count(region, region->bytes + piece->bytes);
    return true;
}

void region_trim(struct region_set *set, struct worker_task *fence)
{
    assert(set->fence == NULL);
    set->fence = fence;
    if (set->dropped == 0) {
        give_fence(set);
    }
}

struct region *region_find(const struct region_set *set, uint32_t number)
{
    return number - 1 < set->options.limit ? set->number[number - 1] : NULL;
}

bool region_drop(struct region_set *set, uint32_t number)
{
    struct region *region = region_find(set, number);

    if (region == NULL) {
        return false;
    }
    set->number[number - 1] = NULL;
    region->number = 0;
    set->handles -= is_handle(region);
    region->dropped = true;
    set->dropped++;
    region_release(region);
    return true;
}

unsigned region_unmaps(struct worker *unmapper, uint32_t uid)
{
    return worker_count(unmapper, uid, unmap);
}

void region_acquire(struct region *region)
{
    region->references++;
}

void region_release(struct region *region)
{
    assert(region->references > 0);
    if (--region->references == 0) {
        let_go(region);
    }
}

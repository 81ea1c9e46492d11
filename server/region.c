#include "region.h"

#include <assert.h>
#include <stdlib.h>

/* On the reaper's thread. */
static void unmap(struct reaper_task *task)
{
    struct region *region = (struct region *)(void *)task;

    region->backend->ops->unmap(region->backend, region->base, region->bytes);
    free(region);
}

static void let_go(struct region *region)
{
    struct region_set *set = region->set;

    set->count--;
    set->bytes -= region->bytes;
    list_remove(&region->node);
    reaper_give(set->reaper, &region->task);
}

static uint32_t free_number(const struct region_set *set)
{
    for (uint32_t i = 0; i < set->limit; i++) {
        if (set->number[i] == NULL) {
            return i + 1;
        }
    }
    return 0;
}

bool region_set_init(struct region_set *set, struct backend *backend, struct reaper *reaper,
    uint32_t uid, uint32_t limit)
{
    *set = (struct region_set){.backend = backend, .reaper = reaper, .uid = uid, .limit = limit};
    list_init(&set->all);
    set->number = calloc(limit, sizeof(struct region *));
    return set->number != NULL;
}

void region_set_finish(struct region_set *set)
{
    if (set->number == NULL) {
        return;
    }
    list_for_each(node, &set->all) {
        let_go(list_entry(node, struct region, node));
    }
    free(set->number);
    set->number = NULL;
}

uint32_t region_add(struct region_set *set, int fd, uint64_t bytes, struct wire_error *error)
{
    uint32_t number = free_number(set);
    if (number == 0 || set->count >= set->limit) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the session has %u regions, as many as it may", (unsigned)set->count);
        return 0;
    }
    struct region *region = calloc(1, sizeof(*region));
    if (region == NULL) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
        return 0;
    }
    const struct backend_offer offer = {.kind = WIRE_MEMORY_SHM, .bytes = bytes, .fd = fd};
    if (!set->backend->ops->map(set->backend, &offer, &region->base, error)) {
        free(region);
        return 0;
    }
    region->task = (struct reaper_task){.uid = set->uid, .weight = bytes, .work = unmap};
    region->backend = set->backend;
    region->set = set;
    region->bytes = bytes;
    region->references = 1;
    list_append(&set->all, &region->node);
    set->number[number - 1] = region;
    set->count++;
    set->bytes += bytes;
    return number;
}

struct region *region_find(const struct region_set *set, uint32_t number)
{
    return number - 1 < set->limit ? set->number[number - 1] : NULL;
}

bool region_drop(struct region_set *set, uint32_t number)
{
    struct region *region = region_find(set, number);

    if (region == NULL) {
        return false;
    }
    set->number[number - 1] = NULL;
    region_release(region);
    return true;
}

void region_drop_all(struct region_set *set)
{
    for (uint32_t number = 1; number <= set->limit; number++) {
        (void)region_drop(set, number);
    }
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

#include "slow_backend.h"

#include <stdlib.h>
#include <time.h>

#define WAIT_S 10

struct mapping {
    uint64_t bytes;
};

static struct slow_backend *slow_of(struct backend *backend)
{
    return (struct slow_backend *)(void *)backend;
}

static void wait_while(struct slow_backend *slow, const bool *holds)
{
    slow->held++;
    (void)pthread_cond_broadcast(&slow->changed);
    while (*holds) {
        (void)pthread_cond_wait(&slow->changed, &slow->lock);
    }
    slow->held--;
}

static bool map(struct backend *backend, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    struct slow_backend *slow = slow_of(backend);

    (void)pthread_mutex_lock(&slow->lock);
    slow->maps++;
    slow->last = *offer;
    slow->mapped_by = pthread_self();
    wait_while(slow, &slow->holds);
    struct mapping *mapping = slow->refuses ? NULL : malloc(sizeof(*mapping));
    if (mapping != NULL) {
        mapping->bytes = offer->bytes;
        slow->mappings++;
        slow->bytes += offer->bytes;
        *base = mapping;
    }
    (void)pthread_mutex_unlock(&slow->lock);
    return mapping != NULL || wire_fail(error, WIRE_UNSUPPORTED_MEMORY, "not this one");
}

static bool extend(struct backend *backend, void *base, uint64_t bytes,
    const struct backend_offer *piece, struct wire_error *error)
{
    struct slow_backend *slow = slow_of(backend);
    struct mapping *mapping = base;

    (void)pthread_mutex_lock(&slow->lock);
    slow->last = *piece;
    wait_while(slow, &slow->holds);
    bool good = !slow->refuses;
    if (bytes != mapping->bytes) {
        slow->fault = "a piece goes elsewhere than behind the others";
    }
    if (good) {
        mapping->bytes += piece->bytes;
        slow->bytes += piece->bytes;
    }
    (void)pthread_mutex_unlock(&slow->lock);
    return good || wire_fail(error, WIRE_UNSUPPORTED_MEMORY, "not this piece");
}

static void unmap(struct backend *backend, void *base, uint64_t bytes)
{
    struct slow_backend *slow = slow_of(backend);
    struct mapping *mapping = base;

    (void)pthread_mutex_lock(&slow->lock);
    slow->unmapped_by = pthread_self();
    wait_while(slow, &slow->holds_unmaps);
    if (bytes != mapping->bytes) {
        slow->fault = "not all pieces, or more, are unmapped";
    }
    slow->mappings--;
    slow->bytes -= mapping->bytes;
    (void)pthread_mutex_unlock(&slow->lock);
    free(mapping);
}

static bool pin_page(
    struct backend *backend, struct page *page, void **device, struct wire_error *error)
{
    struct slow_backend *slow = slow_of(backend);

    (void)pthread_mutex_lock(&slow->lock);
    wait_while(slow, &slow->holds);
    bool good = !slow->refuses;
    slow->pins += good;
    *device = page;
    (void)pthread_mutex_unlock(&slow->lock);
    return good || wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "no page can be pinned");
}

static void unpin_page(struct backend *backend, struct page *page)
{
    struct slow_backend *slow = slow_of(backend);

    (void)page;
    (void)pthread_mutex_lock(&slow->lock);
    slow->pins--;
    (void)pthread_mutex_unlock(&slow->lock);
}

static enum wire_status submit(struct backend *backend, struct group *group)
{
    (void)backend;
    (void)group;
    return WIRE_INTERNAL;
}

static struct group *poll_ended(struct backend *backend, enum wire_status *status)
{
    (void)backend;
    (void)status;
    return NULL;
}

static const struct backend_ops ops = {.map = map,
    .extend = extend,
    .unmap = unmap,
    .pin_page = pin_page,
    .unpin_page = unpin_page,
    .submit = submit,
    .poll = poll_ended};

void slow_backend_init(struct slow_backend *slow)
{
    *slow = (struct slow_backend){.backend = {.ops = &ops,
                                      .device_kind = WIRE_DEVICE_CUDA,
                                      .max_groups = 1,
                                      .flops_per_second = 1e9,
                                      .workspace = slow->workspace,
                                      .workspace_bytes = sizeof(slow->workspace)}};
    (void)pthread_mutex_init(&slow->lock, NULL);
    (void)pthread_cond_init(&slow->changed, NULL);
}

void slow_backend_finish(struct slow_backend *slow)
{
    (void)pthread_cond_destroy(&slow->changed);
    (void)pthread_mutex_destroy(&slow->lock);
}

bool slow_backend_wait_held(struct slow_backend *slow)
{
    struct timespec deadline;
    int late = 0;

    (void)clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += WAIT_S;
    (void)pthread_mutex_lock(&slow->lock);
    while (slow->held == 0 && late == 0) {
        late = pthread_cond_timedwait(&slow->changed, &slow->lock, &deadline);
    }
    bool held = slow->held > 0;
    (void)pthread_mutex_unlock(&slow->lock);
    return held;
}

void slow_backend_hold(struct slow_backend *slow, bool maps, bool unmaps)
{
    (void)pthread_mutex_lock(&slow->lock);
    slow->holds = maps;
    slow->holds_unmaps = unmaps;
    (void)pthread_cond_broadcast(&slow->changed);
    (void)pthread_mutex_unlock(&slow->lock);
}

void slow_backend_refuse(struct slow_backend *slow, bool refuses)
{
    (void)pthread_mutex_lock(&slow->lock);
    slow->refuses = refuses;
    (void)pthread_mutex_unlock(&slow->lock);
}

static unsigned read_counter(struct slow_backend *slow, const unsigned *counter)
{
    (void)pthread_mutex_lock(&slow->lock);
    unsigned value = *counter;
    (void)pthread_mutex_unlock(&slow->lock);
    return value;
}

unsigned slow_backend_mappings(struct slow_backend *slow)
{
    return read_counter(slow, &slow->mappings);
}

unsigned slow_backend_pins(struct slow_backend *slow)
{
    return read_counter(slow, &slow->pins);
}

unsigned slow_backend_maps(struct slow_backend *slow)
{
    return read_counter(slow, &slow->maps);
}

struct backend_offer slow_backend_last(struct slow_backend *slow)
{
    (void)pthread_mutex_lock(&slow->lock);
    struct backend_offer last = slow->last;
    (void)pthread_mutex_unlock(&slow->lock);
    return last;
}

/*
 * The daemon, for the fake driver's device 0: its memory is mapped by handles (handle.h) or descriptors,
 * and the processor computes as if it were a device, which writes lanes' `done` by itself. A request
 * whose dropout has the offset FAKE_FAULT_OFFSET fails.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "backend_open.h"
#include "handle.h"
#include "shared_memory.h"

#define MAX_MAPPINGS 256

struct mapping {
    void *base; /* NULL: an empty place */
    uint64_t bytes;
    uint64_t reserve;
};

struct fake {
    struct backend backend;
    struct backend *cpu; /* owned */
    struct group *failed;
    struct mapping
        mapping[MAX_MAPPINGS]; /* those with room to grow; of the mapper's and unmapper's */
    pthread_mutex_t lock;
};

static struct fake *fake_of(struct backend *backend)
{
    return (struct fake *)(void *)backend;
}

static bool refuse(struct wire_error *error, const char *what)
{
    return wire_fail(error, WIRE_UNSUPPORTED_MEMORY, "the fake device: %s", what);
}

static bool map_handle(const struct backend_offer *offer, void **base, struct wire_error *error)
{
    struct fake_handle handle;
    char path[64];
    memcpy(&handle, offer->handle, sizeof handle);
    if (handle.magic != FAKE_HANDLE_MAGIC || handle.pid != offer->pid) {
        return refuse(error, "the handle is not of the process that sends it");
    }
    if (handle.bytes < offer->bytes) {
        return refuse(error, "the memory is smaller than the client says");
    }
    (void)snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)handle.pid, (int)handle.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return refuse(error, "the memory is gone");
    }
    *base = mmap(NULL, offer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    return *base != MAP_FAILED || refuse(error, "mmap");
}

static bool map_piece(void *at, const struct backend_offer *offer, struct wire_error *error)
{
    void *mapped =
        mmap(at, offer->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, offer->fd, 0);
    return mapped != MAP_FAILED || refuse(error, "mmap of a piece");
}

static struct mapping *find(struct fake *fake, const void *base)
{
    for (size_t i = 0; i < MAX_MAPPINGS; i++) {
        if (fake->mapping[i].base == base) {
            return &fake->mapping[i];
        }
    }
    return NULL;
}

static bool map_first(
    struct fake *fake, const struct backend_offer *offer, void **base, struct wire_error *error)
{
    void *range =
        mmap(NULL, offer->reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    (void)pthread_mutex_lock(&fake->lock);
    struct mapping *mapping = range != MAP_FAILED ? find(fake, NULL) : NULL;
    bool mapped = mapping ? map_piece(range, offer, error) : refuse(error, "no room");
    if (mapped) {
        *mapping = (struct mapping){range, offer->bytes, offer->reserve};
        *base = range;
    }
    (void)pthread_mutex_unlock(&fake->lock);
    return mapped;
}

static bool map(struct backend *backend, const struct backend_offer *offer, void **base,
    struct wire_error *error)
{
    switch (offer->kind) {
    case WIRE_MEMORY_CUDA_IPC:
        return map_handle(offer, base, error);
    case WIRE_MEMORY_CUDA_VMM:
        return map_first(fake_of(backend), offer, base, error);
    default:
        return shared_memory_map(offer, base, error);
    }
}

static bool extend(struct backend *backend, void *base, uint64_t bytes,
    const struct backend_offer *piece, struct wire_error *error)
{
    struct fake *fake = fake_of(backend);
    (void)pthread_mutex_lock(&fake->lock);
    struct mapping *mapping = find(fake, base);
    bool fits = mapping && mapping->bytes == bytes && mapping->reserve - bytes >= piece->bytes;
    bool mapped = fits ? map_piece((char *)base + bytes, piece, error)
                       : refuse(error, "there is no room behind the memory");
    if (mapped) {
        mapping->bytes += piece->bytes;
    }
    (void)pthread_mutex_unlock(&fake->lock);
    return mapped;
}

static void unmap(struct backend *backend, void *base, uint64_t bytes)
{
    struct fake *fake = fake_of(backend);
    (void)pthread_mutex_lock(&fake->lock);
    struct mapping *mapping = find(fake, base);
    if (mapping) {
        bytes = mapping->reserve;
        mapping->base = NULL;
    }
    (void)pthread_mutex_unlock(&fake->lock);
    (void)munmap(base, bytes);
}

static bool pin_page(
    struct backend *backend, struct page *page, void **device, struct wire_error *error)
{
    (void)backend;
    (void)error;
    *device = page;
    return true;
}

static void unpin_page(struct backend *backend, struct page *page)
{
    (void)backend;
    (void)page;
}

static const struct attn_family *choose(struct backend *backend, enum attn_direction direction,
    const struct attn_problem *problem, const char **why)
{
    struct backend *cpu = fake_of(backend)->cpu;
    return cpu->ops->choose(cpu, direction, problem, why);
}

static enum wire_status submit(struct backend *backend, struct group *group)
{
    struct fake *fake = fake_of(backend);
    for (size_t i = 0; i < group->members; i++) {
        if (group->slice[i].problem->dropout_offset == FAKE_FAULT_OFFSET) {
            fake->failed = group;
            return WIRE_OK;
        }
    }
    return fake->cpu->ops->submit(fake->cpu, group);
}

static struct group *poll_ended(struct backend *backend, enum wire_status *status)
{
    struct fake *fake = fake_of(backend);
    struct group *group = fake->failed;
    if (group) {
        fake->failed = NULL;
        *status = WIRE_DEVICE_FAULT;
        return group;
    }
    group = fake->cpu->ops->poll(fake->cpu, status);
    for (size_t i = 0; group && *status == WIRE_OK && i < group->marks; i++) {
        atomic_store((_Atomic uint32_t *)group->mark[i].word, group->mark[i].value);
    }
    return group;
}

static void destroy(struct backend *backend)
{
    struct fake *fake = fake_of(backend);
    fake->cpu->ops->destroy(fake->cpu);
    free(fake);
}

static const struct backend_ops ops = {
    .map = map,
    .extend = extend,
    .unmap = unmap,
    .pin_page = pin_page,
    .unpin_page = unpin_page,
    .choose = choose,
    .submit = submit,
    .poll = poll_ended,
    .destroy = destroy,
};

/* Instead of the daemon's own. */
struct backend *backend_open(const struct config *config, struct wire_error *error)
{
    struct fake *fake = calloc(1, sizeof *fake);
    struct backend *cpu = backend_cpu_create((unsigned)config->threads,
        config->workspace_bytes > 0 ? config->workspace_bytes : UINT64_C(256) << 20);
    if (!fake || !cpu) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "no memory");
        return NULL;
    }
    (void)pthread_mutex_init(&fake->lock, NULL);
    fake->cpu = cpu;
    fake->backend = *cpu;
    fake->backend.ops = &ops;
    fake->backend.device_kind = WIRE_DEVICE_CUDA;
    (void)snprintf(fake->backend.device_name, sizeof fake->backend.device_name, "fake GPU");
    fake_uuid(0, fake->backend.device_uuid);
    return &fake->backend;
}

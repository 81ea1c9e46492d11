#include "shared_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "sealed.h"

#define UNMAP_BYTES (UINT64_C(16) << 20) /* at a time */

bool shared_memory_map(const struct backend_offer *offer, void **base, struct wire_error *error)
{
    if (!sealed_check(offer->fd, offer->bytes, error)) {
        return false;
    }
    void *mapped = sealed_map(offer->fd, offer->bytes);
    if (mapped == NULL) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "bytes: a region of %" PRIu64 " can't be mapped: %s", offer->bytes,
            strerrordesc_np(errno));
    }
    *base = mapped;
    return true;
}

void shared_memory_unmap(void *base, uint64_t bytes)
{
    /* Whoever maps something waits while pages are let go, so it is done in small parts. */
    for (uint64_t at = 0; at < bytes; at += UNMAP_BYTES) {
        uint64_t left = bytes - at;
        (void)madvise((char *)base + at, left < UNMAP_BYTES ? left : UNMAP_BYTES, MADV_DONTNEED);
    }
    munmap(base, bytes);
}

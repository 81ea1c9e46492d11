#include "shared.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "asan.h"

namespace {
const size_t guard_bytes = 1024;

bool is_poison(const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != '\xff') {
            return false;
        }
    }
    return true;
}
} // namespace

void shared_resize(struct shared_memory *shared, size_t size)
{
    void *memory = nullptr;

    if (shared->allocation != nullptr && shared->size == size) {
        return;
    }
    shared_finish(shared);
    if (posix_memalign(&memory, 128, size + 2 * guard_bytes) != 0) {
        fprintf(stderr, "emulator: no memory for %zu shared bytes\n", size);
        abort();
    }
    shared->allocation = static_cast<char *>(memory);
    shared->bytes = shared->allocation + guard_bytes;
    shared->size = size;
    memset(shared->allocation, 0xff, size + 2 * guard_bytes);
    asan_forbid(shared->allocation, guard_bytes);
    asan_forbid(shared->bytes + size, guard_bytes);
}

void shared_finish(struct shared_memory *shared)
{
    if (shared->allocation != nullptr) {
        asan_allow(shared->allocation, shared->size + 2 * guard_bytes);
    }
    free(shared->allocation);
    *shared = {};
}

void shared_poison(struct shared_memory *shared)
{
    memset(shared->bytes, 0xff, shared->size);
}

bool shared_intact(const struct shared_memory *shared)
{
    bool intact = true;

    if (!asan_present) { /* which has seen it on the spot */
        intact = is_poison(shared->allocation, guard_bytes) &&
                 is_poison(shared->bytes + shared->size, guard_bytes);
    }
    return intact;
}

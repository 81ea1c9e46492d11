/*
 * What AddressSanitizer has to be told, where it is there.
 */
#pragma once

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define ASAN_PRESENT 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN_PRESENT 1
#endif
#endif

#if defined(ASAN_PRESENT)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

static const bool asan_present = true;

static inline void asan_forbid(const void *bytes, size_t count)
{
    ASAN_POISON_MEMORY_REGION(bytes, count);
}

static inline void asan_allow(const void *bytes, size_t count)
{
    ASAN_UNPOISON_MEMORY_REGION(bytes, count);
}

/* fake_stack: where to keep the present stack's; NULL: it is left for good. */
static inline void asan_before_switch(void **fake_stack, const void *stack, size_t bytes)
{
    __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}

/* fake_stack: of the stack that runs again; NULL: it is a new one. */
static inline void asan_after_switch(void *fake_stack)
{
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#else
static const bool asan_present = false;

static inline void asan_forbid(const void *, size_t)
{
}

static inline void asan_allow(const void *, size_t)
{
}

static inline void asan_before_switch(void **, const void *, size_t)
{
}

static inline void asan_after_switch(void *)
{
}
#endif

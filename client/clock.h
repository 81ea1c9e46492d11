/*
 * Deadlines on the monotonic clock, and conditions to wait for until one. INT64_MAX is a deadline that
 * never comes.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define CLOCK_SECOND_NS INT64_C(1000000000)

static inline int64_t clock_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * CLOCK_SECOND_NS + now.tv_nsec;
}

/* Negative timeouts never end. */
static inline int64_t clock_deadline(int64_t timeout_ns)
{
    int64_t now = clock_now_ns();
    return timeout_ns < 0 || timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
}

/* Nanoseconds until the deadline, at least 0, at most `limit`. */
static inline int64_t clock_left_ns(int64_t deadline, int64_t limit)
{
    int64_t left = deadline - clock_now_ns();
    return left < 0 ? 0 : left < limit ? left : limit;
}

static inline struct timespec clock_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / CLOCK_SECOND_NS, .tv_nsec = ns % CLOCK_SECOND_NS};
}

/* pthread_cond_timedwait() then takes clock_timespec() of a deadline. */
static inline void clock_init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t monotonic;
    (void)pthread_condattr_init(&monotonic);
    (void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    (void)pthread_cond_init(condition, &monotonic);
    (void)pthread_condattr_destroy(&monotonic);
}

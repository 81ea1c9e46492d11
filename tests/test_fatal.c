/* Fatal signals wait for the device, but not for ever, and end the process as they always do. */
#include "fatal.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "thread.h"

static int64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int64_t busy_until; /* of now_ms() */

static bool is_busy(void *context)
{
    CHECK(context == &busy_until);
    return now_ms() < busy_until;
}

static void be_busy(int64_t duration)
{
    busy_until = now_ms() + duration;
    fatal_install(is_busy, &busy_until);
}

static void segfault(void)
{
    be_busy(300);
    (void)raise(SIGSEGV);
    _exit(1);
}

static void *fault_for_real(void *context)
{
    volatile char *forbidden = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *forbidden = 1;
    return context;
}

static void fault_on_a_thread(void)
{
    pthread_t thread;
    be_busy(300);
    CHECK(thread_start(&thread, "fault", fault_for_real, NULL)); /* as the daemon's own */
    (void)pthread_join(thread, NULL);
    _exit(1);
}

static void abort_for_ever(void)
{
    be_busy(60000);
    abort();
}

static void *abort_as_well(void *context)
{
    (void)context;
    abort();
}

static void two_at_a_time(void)
{
    pthread_t thread[2];
    be_busy(300);
    for (int i = 0; i < 2; i++) {
        CHECK(thread_start(&thread[i], "fault", i == 0 ? fault_for_real : abort_as_well, NULL));
    }
    for (int i = 0; i < 2; i++) {
        (void)pthread_join(thread[i], NULL);
    }
    _exit(1);
}

static bool fails_itself(void *context)
{
    (void)context;
    (void)raise(SIGBUS);
    return true;
}

static void fail_while_waiting(void)
{
    fatal_install(fails_itself, NULL);
    abort();
}

static void idle(void)
{
    be_busy(0);
    abort();
}

/* The signal that a child ends by, and after how many milliseconds. */
static int signal_of(void (*run)(void), int64_t *took_ms)
{
    int status;
    int64_t start = now_ms();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const struct rlimit none = {0};
        (void)setrlimit(RLIMIT_CORE, &none);
        run();
    }
    CHECK(waitpid(child, &status, 0) == child);
    *took_ms = now_ms() - start;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void wait_without_a_signal(void)
{
    int64_t start = now_ms();
    fatal_wait();
    fatal_stop_here();
    CHECK(now_ms() - start < 200);
    be_busy(100);
    fatal_wait();
    CHECK(now_ms() >= busy_until);
}

int main(void)
{
    int64_t took;
    CHECK(signal_of(segfault, &took) == SIGSEGV && took >= 300);
    CHECK(signal_of(fault_on_a_thread, &took) == SIGSEGV && took >= 300);
    CHECK(signal_of(abort_for_ever, &took) == SIGABRT && took >= 2000 && took < 20000);
    int by = signal_of(two_at_a_time, &took);
    CHECK((by == SIGSEGV || by == SIGABRT) && took >= 300);
    by = signal_of(fail_while_waiting, &took);
    CHECK((by == SIGABRT || by == SIGBUS) && took < 1900);
    CHECK(signal_of(idle, &took) == SIGABRT && took < 1900);
    wait_without_a_signal();
    return 0;
}

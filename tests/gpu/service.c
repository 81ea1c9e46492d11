/*
 * The tests of the daemon on a GPU, all or those whose names begin as asked for.
 */
#include "service.h"

#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "device.h"
#include "main.h"

#define TEST_SECONDS 120
#define LINE_MS 60000
#define LIFE_MS 60000

static const struct service_test *const files[] = {service_memory_tests, service_handle_tests,
    service_order_tests, service_fault_tests, service_load_tests, service_user_tests};

/* ---- What tests share ---------------------------------------------------------------------- */

void service_expect(enum attnd_status status, enum attnd_status expected, const char *call,
    const char *file, int line)
{
    if (status != expected) {
        (void)fprintf(stderr, "%s:%d: %s: %s, not %s: %s\n", file, line, call,
            attnd_status_name(status), attnd_status_name(expected), attnd_message());
        _Exit(1);
    }
}

void service_skip(const char *why)
{
    (void)printf("  skipped: %s\n", why);
    (void)fflush(stdout);
    _Exit(SKIPPED);
}

void service_start(struct daemon *daemon)
{
    static const char *const arguments[] = {"--device", "cuda:0", "--workspace", "4G",
        "--region-bytes", "120G", "--region-bytes-per-uid", "400G", "--drain-timeout", "120", NULL};
    CHECK(daemon_start(daemon, arguments));
}

void service_stop(struct daemon *daemon)
{
    CHECK(daemon_stop(daemon));
}

struct attnd *service_open(const struct daemon *daemon)
{
    struct attnd *client = NULL;
    struct attnd_open_options options = {
        .size = sizeof options, .address = daemon->directory, .name = "gpu_service"};
    OK(attnd_open(&options, &client));
    return client;
}

struct attnd_stats service_stats(struct attnd *client)
{
    struct attnd_stats stats = {.size = sizeof stats};
    OK(attnd_get_stats(client, &stats));
    return stats;
}

struct process service_trainer(
    const struct daemon *daemon, const char *mode, uint64_t seed, uint64_t count)
{
    struct process process;
    CHECK(process_start(&process, daemon->directory, mode, seed, count));
    return process;
}

void service_line(struct process *process, char *line, size_t capacity)
{
    CHECK(process_read_line(process, line, capacity, LINE_MS));
}

void service_say(struct process *process)
{
    char line[256];
    service_line(process, line, sizeof line);
}

void service_goes_on(struct process *process, uint64_t since_ns)
{
    uint64_t begun = 0;
    while (begun < since_ns) {
        char line[256];
        service_line(process, line, sizeof line);
        CHECK(sscanf(line, "done %" SCNu64, &begun) == 1);
    }
}

void service_succeed(struct process *process, const char *who)
{
    int status = process_wait(process, LIFE_MS);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        (void)fprintf(stderr, "%s: waitpid status %#x\n", who, (unsigned)status);
        _Exit(1);
    }
}

/* ---- Running them -------------------------------------------------------------------------- */

/* attnd and gpu_trainer lie beside this program. */
static void find_programs(void)
{
    char path[PATH_MAX] = "";
    char search[2 * PATH_MAX];
    ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
    CHECK(size > 0);
    const char *others = getenv("PATH");
    (void)snprintf(
        search, sizeof search, "%s:%s", dirname(path), others ? others : "/usr/bin:/bin");
    CHECK(setenv("PATH", search, 1) == 0);
}

static void become(const struct service_test *test)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)alarm(TEST_SECONDS);
    CU(cudaSetDevice(0));
    test->run();
    (void)fflush(stdout);
    _Exit(0);
}

/* 0: it passed; SKIPPED; else it failed. This process has touched no GPU, so that the child may. */
static int run_test(const struct service_test *test, bool mps)
{
    uint64_t begin = device_now_ns();
    int status = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        become(test);
    }
    CHECK(waitpid(child, &status, 0) == child);
    int result = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    (void)printf("service: %s %s (%.1f s)\n", test->name,
        result == 0         ? "passed"
        : result == SKIPPED ? "skipped"
                            : "FAILED",
        (double)(device_now_ns() - begin) * 1e-9);
    if (WIFSIGNALED(status)) {
        (void)printf("  ended by signal %d%s\n", WTERMSIG(status),
            WTERMSIG(status) == SIGALRM ? ": it took too long" : "");
    }
    if (result != 0 && result != SKIPPED) {
        (void)printf("  again: gpu_tests service %s%s\n", mps ? "--mps " : "", test->name);
    }
    return result;
}

static bool is_chosen(const struct service_test *test, int count, char *const *names)
{
    for (int i = 0; i < count; i++) {
        if (strncmp(test->name, names[i], strlen(names[i])) == 0) {
            return true;
        }
    }
    return count == 0;
}

/* In a process of its own: a context here would be in the way of forking. */
static bool there_is_a_gpu(void)
{
    int status = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        _Exit(device_present() ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int service_main(int argc, char **argv)
{
    int tests = 0;
    int failed = 0;
    int skipped = 0;
    bool mps = argc > 1 && strcmp(argv[1], "--mps") == 0;
    int first = mps ? 2 : 1;
    if (!there_is_a_gpu()) {
        (void)puts("gpu_service: skipped, this machine has no GPU");
        return SKIPPED;
    }
    find_programs();
    for (size_t file = 0; file < sizeof files / sizeof *files; file++) {
        for (const struct service_test *test = files[file]; test->name != NULL; test++) {
            if (!is_chosen(test, argc - first, argv + first)) {
                continue;
            }
            int result = mps && test->alone ? SKIPPED : run_test(test, mps);
            tests += result != SKIPPED;
            skipped += result == SKIPPED;
            failed += result != 0 && result != SKIPPED;
        }
    }
    (void)printf("gpu_service: mps=%s tests=%d failed=%d skipped=%d\n", mps ? "on" : "off", tests,
        failed, skipped);
    return tests > 0 && failed == 0 ? 0 : 1;
}

/* The life of the real daemon: its lock, its end, and the end of its clients. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon.h"
#include "raw_client.h"

extern char **environ;

static const char *const arguments[] = {"--threads=1", NULL};

/* Runs a program to its end; its exit status, with stderr in *text. */
static int run(char *const argv[], char *text, size_t capacity)
{
    int ends[2];
    int status = 0;
    pid_t pid = 0;
    size_t used = 0;
    ssize_t got = 0;
    cr_assert_eq(pipe(ends), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    cr_assert_eq(posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    (void)close(ends[1]);
    while ((got = read(ends[0], text + used, capacity - 1 - used)) > 0) {
        used += (size_t)got;
    }
    text[used] = '\0';
    (void)close(ends[0]);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* attnd with up to two arguments. */
static int run_daemon(const char *first, const char *second, char *text, size_t capacity)
{
    char *argv[] = {(char[]){"timeout"}, (char[]){"10"}, strdup(ATTND_PROGRAM), strdup(first),
        second ? strdup(second) : NULL, NULL};
    int status = run(argv, text, capacity);
    free(argv[2]);
    free(argv[3]);
    free(argv[4]);
    return status;
}

static bool socket_exists(const struct daemon *daemon, const char *name)
{
    char path[128];
    struct stat status;
    (void)snprintf(path, sizeof path, "%s/%s", daemon->directory, name);
    return stat(path, &status) == 0 && S_ISSOCK(status.st_mode);
}

Test(server, a_second_daemon_leaves_and_the_first_still_serves)
{
    struct daemon daemon;
    struct raw_client client;
    char text[512];
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert_eq(run_daemon("--directory", daemon.directory, text, sizeof text), 75, "%s", text);
    cr_expect_not_null(strstr(text, "another daemon holds"), "%s", text);
    cr_assert(raw_open(&client, daemon.directory));
    cr_expect_neq(raw_add_plan(&client), 0);
    raw_close(&client);
    cr_assert(daemon_stop(&daemon));
}

Test(server, what_a_killed_daemon_left_is_in_nobodys_way)
{
    struct daemon daemon;
    struct raw_client client;
    cr_assert(daemon_start(&daemon, arguments));
    (void)daemon_end(&daemon, SIGKILL);
    cr_expect(socket_exists(&daemon, "gate.sock"));
    cr_assert(daemon_restart(&daemon, arguments));
    cr_assert(raw_open(&client, daemon.directory));
    raw_close(&client);
    (void)daemon_end(&daemon, SIGTERM);
    cr_expect_not(socket_exists(&daemon, "gate.sock"));
    cr_expect_not(socket_exists(&daemon, "rpc.sock"));
    cr_assert(daemon_stop(&daemon));
}

Test(server, bad_options_and_directories_have_their_exit_status)
{
    char text[1024];
    cr_expect_eq(run_daemon("--threads=x", NULL, text, sizeof text), 64, "%s", text);
    cr_expect_not_null(strstr(text, "threads is 'x'"), "%s", text);
    cr_expect_eq(run_daemon("--no-such-option", NULL, text, sizeof text), 64, "%s", text);
    cr_expect_eq(run_daemon("--config", "/nowhere", text, sizeof text), 78, "%s", text);
    cr_expect_eq(run_daemon("--directory", "/proc/none", text, sizeof text), 78, "%s", text);
    cr_expect_eq(run_daemon("--directory", "/dev/null", text, sizeof text), 78, "%s", text);
    cr_expect_eq(run_daemon("--directory", "/tmp", text, sizeof text), 78, "%s", text);
    cr_expect_not_null(strstr(text, "only uid"), "%s", text);
    char directory[] = "/tmp/attnd-test-XXXXXX";
    char option[64];
    cr_assert(mkdtemp(directory));
    (void)snprintf(option, sizeof option, "--directory=%s", directory);
    cr_expect_eq(run_daemon(option, "--workspace=1024T", text, sizeof text), 69, "%s", text);
    cr_expect_not_null(strstr(text, "cannot start, device cpu: "), "%s", text);
    /* Without CUDA, without a driver, without a GPU and with one alike. */
    cr_expect_eq(run_daemon(option, "--device=cuda:999", text, sizeof text), 69, "%s", text);
    cr_expect_not_null(strstr(text, "cannot start, device cuda:999: "), "%s", text);
    (void)snprintf(option, sizeof option, "%s/attnd.lock", directory);
    (void)remove(option);
    (void)remove(directory);
    cr_expect_eq(run_daemon("--version", NULL, text, sizeof text), 0);
    cr_expect_not_null(strstr(text, "attnd 0."), "%s", text);
    cr_expect_eq(run_daemon("--help", NULL, text, sizeof text), 0);
}

Test(server, it_drains_accepted_requests_and_refuses_new_ones)
{
    struct daemon daemon;
    struct raw_client client;
    struct raw_client late;
    struct wire_request request;
    struct wire_gate_reply opened;
    struct wire_reply reply;
    enum wire_status status;
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(raw_open(&client, daemon.directory));
    cr_assert(raw_connect(&late, daemon.directory));
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, RAW_REGION_BYTES);
    raw_submission(&client, &request, 0, 1, 1, plan, region);
    atomic_store(&client.page->lane[0].ready, 0);
    struct wire_stats stats;
    cr_assert(raw_post(&client, &request) && raw_stats(&client, &stats));
    cr_assert_eq(kill(daemon.pid, SIGTERM), 0);
    opened.error.status = WIRE_OK;
    for (int tries = 0; tries < 1000 && opened.error.status != WIRE_DRAINING; tries++) {
        (void)usleep(10000); /* until the signal has arrived */
        cr_assert(raw_open_session(&late, &opened));
        if (opened.error.status == WIRE_OK) {
            raw_close(&late);
            cr_assert(raw_connect(&late, daemon.directory));
        }
    }
    cr_expect_eq(opened.error.status, WIRE_DRAINING);
    raw_submission(&client, &request, 1, 1, 1, plan, region);
    cr_assert(raw_call(&client, &request, &reply));
    cr_expect_eq(reply.error.status, WIRE_DRAINING, "%s", reply.error.detail);
    cr_assert(raw_wait(&client, 1, 1, &status));
    cr_expect_eq(status, WIRE_DRAINING);
    atomic_store(&client.page->lane[0].ready, 1);
    cr_assert(raw_wait(&client, 0, 1, &status));
    cr_expect_eq(status, WIRE_OK);
    cr_expect(raw_gate_ends(&client));
    int ended = 0;
    cr_assert_eq(waitpid(daemon.pid, &ended, 0), daemon.pid);
    cr_expect(WIFEXITED(ended) && WEXITSTATUS(ended) == 0, "wait status %#x", (unsigned)ended);
    daemon.pid = 0;
    raw_close(&late);
    raw_close(&client);
    cr_assert(daemon_stop(&daemon));
}

static void expect_nothing_left(const struct daemon *daemon)
{
    cr_expect_not(socket_exists(daemon, "gate.sock"));
    cr_expect_not(socket_exists(daemon, "rpc.sock"));
}

Test(server, a_drain_ends_at_its_timeout)
{
    static const char *const hasty[] = {"--threads=1", "--drain-timeout=1", NULL};
    struct daemon daemon;
    struct raw_client client;
    struct wire_request request;
    struct wire_stats stats;
    cr_assert(daemon_start(&daemon, hasty));
    cr_assert(raw_open(&client, daemon.directory));
    uint32_t plan = raw_add_plan(&client);
    raw_submission(&client, &request, 0, 1, 1, plan, raw_add_region(&client, RAW_REGION_BYTES));
    atomic_store(&client.page->lane[0].ready, 0);
    cr_assert(raw_post(&client, &request) && raw_stats(&client, &stats));
    int ended = daemon_end(&daemon, SIGTERM);
    cr_expect(WIFEXITED(ended) && WEXITSTATUS(ended) == 1, "wait status %#x", (unsigned)ended);
    expect_nothing_left(&daemon);
    raw_close(&client);
    cr_assert(daemon_stop(&daemon));
}

/* A call of one forward plan: all rows of q, k and v are the region's first, out is behind. */
static void submit_long(
    struct raw_client *client, uint64_t queries, uint64_t keys, uint64_t heads, uint64_t dim)
{
    struct wire_request request = {.kind = WIRE_ADD_PLAN};
    struct wire_reply reply;
    struct wire_stats stats;
    const uint64_t row_bytes = dim * sizeof(float);
    const int64_t across = (int64_t)dim;
    raw_plan(&request.plan);
    for (size_t t = 0; t < 4; t++) {
        bool of_keys = t == 1 || t == 2;
        request.plan.tensor[t] = (struct wire_tensor){.role = request.plan.tensor[t].role,
            .dtype = WIRE_FP32,
            .dims = 4,
            .shape = {1, of_keys ? keys : queries, heads, dim},
            .strides = {0, t == 3 ? across * (int64_t)heads : 0, t == 3 ? across : 0, 1}};
    }
    cr_assert(raw_call(client, &request, &reply));
    cr_assert_eq(reply.kind, WIRE_REPLY_PLAN, "%s", reply.error.detail);
    uint32_t region = raw_add_region(client, (queries * heads + 1) * row_bytes);
    cr_assert_neq(region, 0);
    raw_submission(client, &request, 0, 1, 1, reply.plan.plan, region);
    for (size_t t = 0; t < 4; t++) {
        request.submit.call[0].offset[t] = t == 3 ? row_bytes : 0;
    }
    cr_assert(raw_post(client, &request) && raw_stats(client, &stats));
    for (int ms = 0; ms < 10000 && atomic_load(&client->page->lane[0].started) != 1; ms++) {
        (void)usleep(1000);
    }
    cr_assert_eq(atomic_load(&client->page->lane[0].started), 1);
}

Test(server, clearing_much_memory_lets_others_through)
{
    struct daemon daemon;
    struct raw_client large;
    struct raw_client small;
    struct wire_request request;
    enum wire_status status;
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(raw_open(&large, daemon.directory) && raw_open(&small, daemon.directory));
    uint32_t plan = raw_add_plan(&small);
    uint32_t region = raw_add_region(&small, RAW_REGION_BYTES);
    submit_long(&large, 1U << 20, 0, 1, 128);
    raw_submission(&small, &request, 0, 1, 1, plan, region);
    cr_assert(raw_post(&small, &request) && raw_wait(&small, 0, 1, &status));
    cr_expect_eq(status, WIRE_OK);
    /* Sliced, half a gigabyte takes many launches, and the small call joins one of the next. */
    cr_expect_neq(atomic_load(&large.page->lane[0].done), 1);
    cr_assert(raw_wait(&large, 0, 1, &status));
    cr_expect_eq(status, WIRE_OK);
    raw_close(&small);
    raw_close(&large);
    cr_assert(daemon_stop(&daemon));
}

/* Of the daemons that have ended, whoever else used the machine meanwhile. */
static double processor_seconds(void)
{
    struct rusage usage;
    (void)getrusage(RUSAGE_CHILDREN, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

Test(server, a_drain_does_not_wait_for_a_long_tile)
{
    static const char *const hasty[] = {"--threads=1", "--drain-timeout=1", NULL};
    struct daemon daemon;
    struct raw_client client;
    cr_assert(daemon_start(&daemon, hasty));
    cr_assert(raw_open(&client, daemon.directory));
    submit_long(&client, 128, 1U << 20, 16, 256);
    double before = processor_seconds();
    int ended = daemon_end(&daemon, SIGTERM);
    cr_expect(WIFEXITED(ended) && WEXITSTATUS(ended) == 1, "wait status %#x", (unsigned)ended);
    cr_expect_leq(processor_seconds() - before, 3.0);
    cr_expect(raw_gate_ends(&client));
    expect_nothing_left(&daemon);
    cr_assert(daemon_restart(&daemon, hasty));
    raw_close(&client);
    cr_assert(daemon_stop(&daemon));
}

/* Starts session_holder; the pid of the child that keeps its socket. */
static pid_t start_holder(const struct daemon *daemon, pid_t *holder)
{
    int ends[2];
    char line[64] = "";
    int child = 0;
    char *argv[] = {strdup(SESSION_HOLDER), strdup(daemon->directory), NULL};
    cr_assert_eq(pipe(ends), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    cr_assert_eq(posix_spawn(holder, argv[0], &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    (void)close(ends[1]);
    FILE *out = fdopen(ends[0], "r");
    cr_assert(out && fgets(line, sizeof line, out));
    cr_assert_eq(sscanf(line, "open %d", &child), 1);
    (void)fclose(out);
    free(argv[0]);
    free(argv[1]);
    return child;
}

Test(server, a_killed_client_leaves_nothing_though_a_child_holds_its_socket)
{
    struct daemon daemon;
    struct raw_client observer;
    struct wire_stats stats;
    pid_t holder = 0;
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(raw_open(&observer, daemon.directory));
    pid_t child = start_holder(&daemon, &holder);
    cr_assert(raw_stats(&observer, &stats));
    cr_expect_eq(stats.sessions, 2);
    cr_expect_eq(stats.daemon.in_flight, 1);
    cr_expect_eq(stats.daemon.region_bytes, 1U << 20);
    cr_assert_eq(kill(holder, SIGKILL), 0);
    cr_assert_eq(waitpid(holder, NULL, 0), holder);
    cr_expect(raw_is_alone(&observer, &stats));
    cr_expect_eq(kill(child, 0), 0, "the child did not outlive its parent");
    (void)kill(child, SIGKILL);
    raw_close(&observer);
    cr_assert(daemon_stop(&daemon));
}

/* One line of a file below the daemon's task directory; "" if there is none. */
static void read_line(const char *path, const char *name, const char *key, char line[128])
{
    char file[300];
    (void)snprintf(file, sizeof file, "%s/%s", path, name);
    FILE *stream = fopen(file, "re");
    cr_assert_not_null(stream, "%s", file);
    do {
        line[0] = '\0';
    } while (fgets(line, 128, stream) != NULL && strncmp(line, key, strlen(key)) != 0);
    (void)fclose(stream);
}

/* Whom the directory lets through. */
static bool is_open_to_all(const struct daemon *daemon, const char *name)
{
    char path[128];
    struct stat status;
    (void)snprintf(path, sizeof path, "%s/%s", daemon->directory, name);
    return stat(path, &status) == 0 && (status.st_mode & 0777) == 0777;
}

/* The driver's cache of kernels, for instance. */
Test(server, nobody_else_may_write_what_the_process_makes)
{
    struct daemon daemon;
    char path[32];
    char line[128];
    cr_assert(daemon_start(&daemon, arguments));
    (void)snprintf(path, sizeof path, "/proc/%d", (int)daemon.pid);
    read_line(path, "status", "Umask:", line);
    cr_expect_str_eq(line, "Umask:\t0027\n");
    cr_expect(is_open_to_all(&daemon, "rpc.sock") && is_open_to_all(&daemon, "gate.sock"));
    cr_assert(daemon_stop(&daemon));
}

/* What is blocked ends the process without the handler that waits for the device. libzmq's reaper closes
 * sockets and does nothing else. */
Test(server, no_thread_blocks_its_own_faults)
{
    struct daemon daemon;
    struct raw_client client;
    char tasks[64];
    char line[128];
    unsigned looked_at = 0;
    cr_assert(daemon_start(&daemon, arguments));
    cr_assert(raw_open(&client, daemon.directory));
    (void)snprintf(tasks, sizeof tasks, "/proc/%d/task", (int)daemon.pid);
    DIR *directory = opendir(tasks);
    cr_assert_not_null(directory);
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        char path[256];
        if (entry->d_name[0] == '.') {
            continue;
        }
        (void)snprintf(path, sizeof path, "%s/%.100s", tasks, entry->d_name);
        read_line(path, "comm", "", line);
        if (strcmp(line, "ZMQbg/Reaper\n") == 0) {
            continue;
        }
        char *name = strdup(line);
        read_line(path, "status", "SigBlk:", line);
        unsigned long long blocked = strtoull(line + strlen("SigBlk:"), NULL, 16);
        cr_expect_eq(blocked >> (SIGSEGV - 1) & 1, 0, "%s", name);
        cr_expect_eq(blocked >> (SIGBUS - 1) & 1, 0, "%s", name);
        free(name);
        looked_at++;
    }
    (void)closedir(directory);
    cr_expect_geq(looked_at, 6, "main, engine, three workers, libzmq's");
    raw_close(&client);
    cr_assert(daemon_stop(&daemon));
}

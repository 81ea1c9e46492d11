/* attnd_open() where no daemon is, and the calls that need none. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "attnd.h"

#define MS INT64_C(1000000)

static char directory[] = "/tmp/attnd-open-XXXXXX";
static char path[64];

static void make_directory(void)
{
    cr_assert_not_null(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/gate.sock", directory);
}

static void remove_directory(void)
{
    (void)unlink(path);
    cr_expect_eq(rmdir(directory), 0, "nothing else was made there");
}

TestSuite(client_open, .init = make_directory, .fini = remove_directory);

static int bind_gate(int kind)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, sizeof path);
    int fd = socket(AF_UNIX, kind | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(fd, (const struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static int64_t now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 * MS + now.tv_nsec;
}

static size_t descriptors(void)
{
    size_t count = 0;
    DIR *fds = opendir("/proc/self/fd");
    cr_assert_not_null(fds);
    while (readdir(fds)) {
        count++;
    }
    (void)closedir(fds);
    return count;
}

/* Fails so, in time, with this sentence, and leaves nothing open. */
static void expect_no_client(
    const struct attnd_open_options *options, enum attnd_status status, const char *sentence)
{
    struct attnd *client = NULL;
    size_t before = descriptors();
    int64_t begin = now_ns();
    enum attnd_status got = attnd_open(options, &client);
    cr_expect_eq(got, status, "%s: %s", attnd_status_name(got), attnd_message());
    cr_expect(strstr(attnd_message(), sentence), "\"%s\" lacks \"%s\"", attnd_message(), sentence);
    cr_expect_null(client);
    cr_expect_lt(now_ns() - begin, 2000 * MS);
    cr_expect_eq(descriptors(), before);
}

static struct attnd_open_options here(void)
{
    return (struct attnd_open_options){
        .size = sizeof(struct attnd_open_options), .address = directory, .timeout_ns = 100 * MS};
}

Test(client_open, no_daemon_was_ever_there)
{
    struct attnd_open_options options = here();
    expect_no_client(&options, ATTND_DISCONNECTED, path);
    options.address = "/nowhere/at/all";
    expect_no_client(&options, ATTND_DISCONNECTED, "/nowhere/at/all/gate.sock does not exist");
    options.address = "/dev/null";
    expect_no_client(&options, ATTND_DISCONNECTED, "/dev/null");
}

Test(client_open, a_daemon_was_there_once)
{
    struct attnd_open_options options = here();
    (void)close(bind_gate(SOCK_SEQPACKET));
    expect_no_client(&options, ATTND_DISCONNECTED, "nobody listens");
}

Test(client_open, somebody_listens_but_says_nothing)
{
    struct attnd_open_options options = here();
    int fd = bind_gate(SOCK_SEQPACKET);
    cr_assert_eq(listen(fd, 8), 0);
    expect_no_client(&options, ATTND_DISCONNECTED, "does not answer");
    (void)close(fd);
}

Test(client_open, nobody_accepts)
{
    struct attnd_open_options options = here();
    int fd = bind_gate(SOCK_SEQPACKET);
    cr_assert_eq(listen(fd, 0), 0);
    int waiting[4]; /* more than the queue has room for: the next is turned away */
    for (int i = 0; i < 4; i++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        memcpy(address.sun_path, path, sizeof path);
        waiting[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)connect(waiting[i], (const struct sockaddr *)&address, sizeof address);
    }
    expect_no_client(&options, ATTND_DISCONNECTED, "does not accept");
    for (int i = 0; i < 4; i++) {
        (void)close(waiting[i]);
    }
    (void)close(fd);
}

Test(client_open, another_kind_of_socket_is_there)
{
    struct attnd_open_options options = here();
    int fd = bind_gate(SOCK_STREAM);
    cr_assert_eq(listen(fd, 8), 0);
    expect_no_client(&options, ATTND_DISCONNECTED, "does not take a connection");
    (void)close(fd);
}

Test(client_open, the_environment_names_the_daemon)
{
    struct attnd_open_options options = here();
    options.address = NULL;
    cr_assert_eq(setenv("ATTND_ADDRESS", "/somewhere/else", 1), 0);
    expect_no_client(&options, ATTND_DISCONNECTED, "/somewhere/else/gate.sock");
    options.address = directory;
    expect_no_client(&options, ATTND_DISCONNECTED, path);
}

Test(client_open, bad_options_are_named)
{
    char name[65];
    char address[200];
    memset(name, 'n', sizeof name);
    name[64] = '\0';
    memset(address, 'a', sizeof address);
    address[199] = '\0';
    struct attnd_open_options options = here();
    options.name = name;
    expect_no_client(&options, ATTND_INVALID_ARGUMENT, "options->name is 64 bytes");
    options = here();
    options.address = address;
    expect_no_client(&options, ATTND_INVALID_ARGUMENT, "options->address is 199 bytes");
    options = here();
    options.timeout_ns = -1;
    expect_no_client(&options, ATTND_INVALID_ARGUMENT, "options->timeout_ns is -1");
    options.size = 0;
    expect_no_client(&options, ATTND_INVALID_ARGUMENT, "options->size is 0");
    cr_expect_eq(attnd_open(&options, NULL), ATTND_INVALID_ARGUMENT);
}

Test(client_open, a_process_without_descriptors_is_told_so_and_lives)
{
    struct attnd_open_options options = here();
    struct rlimit limit = {3, 3};
    struct rlimit before;
    struct attnd *client = NULL;
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    limit.rlim_max = before.rlim_max;
    for (rlim_t most = 3; most < 12; most++) {
        limit.rlim_cur = most;
        cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
        enum attnd_status status = attnd_open(&options, &client);
        cr_expect(status == ATTND_RESOURCE_EXHAUSTED || status == ATTND_DISCONNECTED, "%s",
            attnd_message());
    }
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
}

Test(client_open, calls_without_a_client_say_so)
{
    struct attnd_stats stats = {.size = sizeof stats};
    void *memory;
    cr_expect_eq(attnd_alloc(NULL, 1, &memory), ATTND_INVALID_ARGUMENT);
    cr_expect_str_eq(attnd_message(), "client is NULL");
    cr_expect_eq(attnd_wait(NULL, 1, 0), ATTND_INVALID_ARGUMENT);
    cr_expect_eq(attnd_submit(NULL, NULL, NULL, 1, NULL), ATTND_INVALID_ARGUMENT);
    cr_expect_eq(attnd_get_stats(NULL, &stats), ATTND_INVALID_ARGUMENT);
    attnd_free(NULL, NULL);
    attnd_close(NULL);
}

/* A child of fork() may only close the client that it inherited, and the parent's goes on. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attnd.h"
#include "check.h"
#include "client_set.h"
#include "daemon.h"

static void be_the_child(struct attnd *client, struct client_set *set, attnd_ticket ticket)
{
    struct attnd_stats stats = {.size = sizeof stats};
    void *memory = NULL;
    CHECK(client_set_forward(set, client, NULL, NULL, NULL) == ATTND_FORKED);
    CHECK(strstr(attnd_message(), "fork()"));
    CHECK(client_set_backward(set, client, NULL, NULL, NULL) == ATTND_FORKED);
    CHECK(attnd_wait(client, ticket, ATTND_FOREVER) == ATTND_FORKED);
    CHECK(attnd_alloc(client, 1, &memory) == ATTND_FORKED);
    CHECK(attnd_get_stats(client, &stats) == ATTND_FORKED);
    attnd_free(client, set->memory);
    attnd_close(client);
    _exit(0);
}

/* The child has its own client beside it, as a data loader would. */
static void be_the_child_with_its_own(struct attnd *inherited, const struct daemon *daemon)
{
    struct client_set set;
    attnd_ticket ticket;
    attnd_close(inherited);
    struct attnd *client = client_open(daemon);
    client_set_alloc(&set, client, 1, 16, 2, 8);
    CHECK(client_set_forward(&set, client, NULL, NULL, &ticket) == ATTND_OK);
    CHECK(attnd_wait(client, ticket, ATTND_FOREVER) == ATTND_OK);
    attnd_close(client);
    _exit(0);
}

static void expect_success(pid_t child)
{
    int status = 0;
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Closing must end the session although a child still has the descriptors. */
static void expect_close_to_end_the_session(struct attnd *closed, const struct daemon *daemon)
{
    int hold[2];
    char byte;
    CHECK(pipe(hold) == 0);
    pid_t child = fork();
    if (child == 0) {
        (void)close(hold[1]);
        (void)!read(hold[0], &byte, 1); /* until the parent is through */
        _exit(0);
    }
    attnd_close(closed);
    struct attnd *client = client_open(daemon);
    for (int tries = 0; client_stats(client).clients != 1; tries++) {
        CHECK(tries < 2000);
        (void)usleep(10000);
    }
    attnd_close(client);
    (void)close(hold[0]);
    (void)close(hold[1]);
    expect_success(child);
}

int main(void)
{
    struct daemon daemon;
    struct client_set set;
    attnd_ticket ticket;
    CHECK(daemon_start(&daemon, NULL));
    struct attnd *client = client_open(&daemon);
    client_set_alloc(&set, client, 1, 16, 2, 8);
    CHECK(client_set_forward(&set, client, NULL, NULL, &ticket) == ATTND_OK);
    for (int round = 0; round < 3; round++) {
        pid_t child = fork();
        if (child == 0) {
            be_the_child(client, &set, ticket);
        }
        expect_success(child);
        child = fork();
        if (child == 0) {
            be_the_child_with_its_own(client, &daemon);
        }
        expect_success(child);
        CHECK(client_set_forward(&set, client, NULL, NULL, &ticket) == ATTND_OK);
        CHECK(attnd_wait(client, ticket, ATTND_FOREVER) == ATTND_OK);
    }
    expect_close_to_end_the_session(client, &daemon);
    CHECK(daemon_stop(&daemon));
    return 0;
}

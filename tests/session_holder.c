/*
 * session_holder DIRECTORY [probe]: a client to be killed. Opens a session with a region and a request
 * that waits for its inputs, leaves the gate's socket to a child that outlives it, says "open" and
 * sleeps. As a probe it only opens the session. Exit status 2: it could not.
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <unistd.h>

#include "raw_client.h"

#define HELD_BYTES (UINT64_C(1) << 20)

extern char **environ;

/* "sleep", with the gate's socket inherited; its number is printed, to be ended by the test. */
static bool leave_child(int gate)
{
    char *argv[] = {(char[]){"sleep"}, (char[]){"20"}, NULL};
    pid_t pid = 0;
    (void)fcntl(gate, F_SETFD, 0);
    if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) != 0) {
        return false;
    }
    (void)printf("open %d\n", (int)pid);
    return fflush(stdout) == 0;
}

int main(int argc, char **argv)
{
    struct raw_client client;
    struct wire_request request;
    if (argc < 2 || !raw_open(&client, argv[1])) {
        return 2;
    }
    if (argc > 2) {
        raw_close(&client);
        return 0;
    }
    uint32_t plan = raw_add_plan(&client);
    uint32_t region = raw_add_region(&client, HELD_BYTES);
    raw_submission(&client, &request, 0, 1, 1, plan, region);
    atomic_store(&client.page->lane[0].ready, 0);
    struct wire_stats stats;
    if (!raw_post(&client, &request) || !raw_stats(&client, &stats) || !leave_child(client.gate)) {
        return 3;
    }
    (void)sleep(60);
    return 0;
}

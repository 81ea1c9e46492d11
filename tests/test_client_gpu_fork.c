/* A child of fork() closes a client whose sweep runs and whose streams were used; the parent's goes on. */
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "client.h"
#include "gpu_case.h"

#define PATIENCE_S 20 /* then the child's end is SIGALRM */

static void close_in_child(void)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        (void)alarm(PATIENCE_S);
        attnd_close(gpu_client);
        _exit(0);
    }
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* As if another thread were about to take a region out of the table. */
static void close_in_child_of_a_busy_process(void)
{
    struct devices *devices = &gpu_client->devices;
    (void)pthread_mutex_lock(&devices->mutex);
    CHECK(devices->table.count == 1);
    CHECK(devices->table.capacity > 1);
    devices->table.sorted[devices->table.count++] = devices->table.sorted[0];
    close_in_child();
    devices->table.count--;
    (void)pthread_mutex_unlock(&devices->mutex);
}

int main(void)
{
    gpu_start(NULL);
    for (int round = 0; round < 3; round++) {
        struct client_case *made = gpu_call(NULL);
        gpu_run(made, fake_cuda_stream());
        close_in_child();
        gpu_run(made, NULL);
        close_in_child_of_a_busy_process();
        gpu_run(made, NULL);
        gpu_finish_call(made, true);
        CHECK(gpu_eventually(gpu_has_regions, &(uint64_t){0}));
    }
    gpu_stop();
    return 0;
}

#include "thread.h"

#include <signal.h>
#include <string.h>

#include "check.h"

static void *look_around(void *context)
{
    char *name = context;
    sigset_t blocked;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &blocked) == 0);
    CHECK(sigismember(&blocked, SIGTERM) == 1 && sigismember(&blocked, SIGINT) == 1);
    CHECK(sigismember(&blocked, SIGSEGV) == 0 && sigismember(&blocked, SIGBUS) == 0);
    /* The starter names the thread, which may already run. */
    do {
        CHECK(pthread_getname_np(pthread_self(), name, 16) == 0);
    } while (strcmp(name, "fifteen-letters") != 0);
    return NULL;
}

int main(void)
{
    pthread_t thread;
    sigset_t mine;
    char name[16];
    CHECK(thread_start(&thread, "fifteen-letters", look_around, name));
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &mine) == 0);
    CHECK(sigismember(&mine, SIGTERM) == 0);
    CHECK(thread_processors() >= 1);
    return 0;
}

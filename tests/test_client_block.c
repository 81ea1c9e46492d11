/* Who waits for memory for copies, and who must not wait for them, against the real daemon. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <unistd.h>

#include "block.h"
#include "client.h"
#include "client_set.h"
#include "daemon.h"

#define WHOLE (UINT64_C(1) << 20)

static void *acquire_patiently(void *client)
{
    struct block_piece piece = {0};
    cr_expect_eq(block_acquire(client, WHOLE, true, &piece), ATTND_OK, "%s", attnd_message());
    block_release(client, &piece);
    return NULL;
}

Test(client_block, who_waits_for_a_piece_holds_up_nobody_who_has_one, .timeout = 30)
{
    struct daemon daemon;
    struct block_piece first = {0};
    struct block_piece second = {0};
    pthread_t patient;
    cr_assert(
        daemon_start(&daemon, (const char *const[]){"--max-regions=1", "--region-bytes=1M", NULL}));
    struct attnd *client = client_open(&daemon);
    cr_assert_eq(block_acquire(client, WHOLE, false, &first), ATTND_OK);
    cr_assert_eq(pthread_create(&patient, NULL, acquire_patiently, client), 0);
    (void)usleep(50000); /* it waits for our piece now */
    cr_expect_eq(block_acquire(client, 64, false, &second), ATTND_RESOURCE_EXHAUSTED);
    block_release(client, &first);
    cr_expect_eq(pthread_join(patient, NULL), 0);
    attnd_close(client);
    cr_expect(daemon_stop(&daemon));
}

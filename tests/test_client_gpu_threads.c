/* Many threads on one client of the fake device: streams of their own and shared ones, memory that comes
 * and goes, trims, and the daemon's end at last. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "gpu_case.h"

#define THREADS 4
#define ROUNDS 40
#define SHARED 2
#define PIECES 40

static void *shared[SHARED];
static struct client_case *calls[THREADS][ROUNDS];
static char *range[THREADS];
static struct client_case *behind[THREADS]; /* in the last piece */

static bool is_idle(void *stream)
{
    return fake_cuda_is_idle(stream);
}

static void map_piece(int owner, int piece)
{
    fake_cuda_map(0, FAKE_MAPPED, range[owner] + (uint64_t)piece * FAKE_PIECE_BYTES);
}

/* Pieces are registered, and a part of them is other memory from then on. */
static void run_in_pieces(int owner, void *stream)
{
    int piece = PIECES / 2;
    attnd_ticket ticket;
    OK(attnd_submit(gpu_client, stream, &behind[owner]->request, 1, &ticket));
    OK(attnd_wait(gpu_client, ticket, ATTND_FOREVER));
    CHECK(client_case_equal(behind[owner]));
    fake_cuda_free(range[owner] + (uint64_t)piece * FAKE_PIECE_BYTES);
    map_piece(owner, piece);
}

static void *work(void *context)
{
    struct client_case *(*own)[ROUNDS] = context;
    int owner = (int)(own - calls);
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    void *stream = fake_cuda_stream();
    for (int i = 0; i < ROUNDS; i++) {
        attnd_ticket ticket;
        struct client_case *made = (*own)[i];
        void *where = i % 3 == 0 ? stream : shared[i % SHARED];
        OK(attnd_submit(gpu_client, where, &made->request, 1, &ticket));
        OK(attnd_wait(gpu_client, ticket, ATTND_FOREVER));
        CHECK(client_case_equal(made));
        fake_cuda_free(made->memory);
        if (i % 8 == 7) {
            run_in_pieces(owner, where);
        }
        if (i % 16 == 15) {
            OK(attnd_trim(gpu_client, ATTND_FOREVER));
            OK(attnd_lane_reset(gpu_client, where));
        }
    }
    return NULL;
}

static void *submit_until_lost(void *context)
{
    struct client_case *made = context;
    enum attnd_status status = ATTND_OK;
    (void)cuCtxPushCurrent_v2(fake_cuda_context(0, true));
    while (status == ATTND_OK) {
        status = attnd_submit(gpu_client, shared[0], &made->request, 1, NULL);
    }
    CHECK(status == ATTND_DISCONNECTED);
    return NULL;
}

int main(void)
{
    pthread_t thread[THREADS];
    struct client_case *last[THREADS];
    gpu_start((const char *const[]){"--in-flight=100", NULL});
    for (int i = 0; i < SHARED; i++) {
        shared[i] = fake_cuda_stream();
    }
    for (int i = 0; i < THREADS; i++) {
        last[i] = gpu_call(NULL);
        range[i] = fake_cuda_reserve(PIECES);
        for (int piece = 0; piece < PIECES; piece++) {
            map_piece(i, piece);
        }
        behind[i] = gpu_call(range[i] + (PIECES - 1) * FAKE_PIECE_BYTES);
        for (int round = 0; round < ROUNDS; round++) {
            calls[i][round] = gpu_call(NULL);
        }
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&thread[i], NULL, work, &calls[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        (void)pthread_join(thread[i], NULL);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&thread[i], NULL, submit_until_lost, last[i]) == 0);
    }
    (void)usleep(100000);
    (void)daemon_end(&gpu_daemon, SIGKILL);
    for (int i = 0; i < THREADS; i++) {
        (void)pthread_join(thread[i], NULL);
        gpu_finish_call(last[i], true);
        gpu_finish_call(behind[i], false);
        for (int round = 0; round < ROUNDS; round++) {
            gpu_finish_call(calls[i][round], false);
        }
    }
    for (int i = 0; i < SHARED; i++) {
        CHECK(gpu_eventually(is_idle, shared[i]));
    }
    gpu_stop();
    return 0;
}

#include "workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void take_items(struct workers *workers, unsigned worker)
{
    for (uint64_t item = atomic_fetch_add(&workers->next, 1); item < workers->items;
         item = atomic_fetch_add(&workers->next, 1)) {
        workers->work(workers->context, item, worker);
    }
}

static void *on_thread(void *argument)
{
    struct workers *workers = argument;
    pthread_mutex_lock(&workers->mutex);
    unsigned worker = ++workers->started;
    unsigned round = 0; /* no run begins before all threads have been made */
    for (;;) {
        while (workers->round == round && !workers->stop) {
            pthread_cond_wait(&workers->begin, &workers->mutex);
        }
        if (workers->stop) {
            break;
        }
        round = workers->round;
        pthread_mutex_unlock(&workers->mutex);
        take_items(workers, worker);
        pthread_mutex_lock(&workers->mutex);
        if (--workers->busy == 0) {
            pthread_cond_signal(&workers->end);
        }
    }
    pthread_mutex_unlock(&workers->mutex);
    return NULL;
}

/* executor is the first member of a struct workers. */
static struct workers *workers_of(const struct attn_executor *executor)
{
    return (struct workers *)(uintptr_t)executor;
}

static void run_items(
    const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context)
{
    struct workers *workers = workers_of(executor);
    pthread_mutex_lock(&workers->mutex);
    workers->work = work;
    workers->context = context;
    workers->items = items;
    atomic_store(&workers->next, 0);
    workers->busy = executor->workers - 1;
    workers->round++;
    pthread_cond_broadcast(&workers->begin);
    pthread_mutex_unlock(&workers->mutex);
    take_items(workers, 0);
    pthread_mutex_lock(&workers->mutex);
    while (workers->busy > 0) {
        pthread_cond_wait(&workers->end, &workers->mutex);
    }
    pthread_mutex_unlock(&workers->mutex);
}

void *workers_memory(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes > 0 ? bytes : 1) != 0) {
        (void)fprintf(stderr, "attnd-bench: no memory for %zu bytes\n", bytes);
        exit(EXIT_FAILURE);
    }
    memset(memory, 0, bytes);
    return memory;
}

void workers_init(struct workers *workers, const struct attn_family *family, unsigned count)
{
    memset(workers, 0, sizeof *workers);
    workers->base = (struct attn_executor){count, workers->scratch, run_items};
    pthread_mutex_init(&workers->mutex, NULL);
    pthread_cond_init(&workers->begin, NULL);
    pthread_cond_init(&workers->end, NULL);
    for (unsigned i = 0; i < count; i++) {
        workers->scratch[i] = workers_memory(attn_scratch_bytes(family));
    }
    for (unsigned i = 1; i < count; i++) {
        if (pthread_create(&workers->threads[i], NULL, on_thread, workers) != 0) {
            (void)fprintf(stderr, "attnd-bench: cannot start thread %u\n", i);
            exit(EXIT_FAILURE);
        }
    }
}

void workers_finish(struct workers *workers)
{
    pthread_mutex_lock(&workers->mutex);
    workers->stop = true;
    pthread_cond_broadcast(&workers->begin);
    pthread_mutex_unlock(&workers->mutex);
    for (unsigned i = 0; i < workers->base.workers; i++) {
        if (i > 0) {
            pthread_join(workers->threads[i], NULL);
        }
        free(workers->scratch[i]);
    }
    pthread_cond_destroy(&workers->end);
    pthread_cond_destroy(&workers->begin);
    pthread_mutex_destroy(&workers->mutex);
}

#include "executor.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct run {
    attn_work_fn work;
    void *context;
    uint64_t items;
    atomic_uint_least64_t next;
};

struct worker {
    struct run *run;
    unsigned index;
};

static void *poisoned(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes) != 0) {
        fprintf(stderr, "executor: out of memory for %zu bytes\n", bytes);
        abort();
    }
    memset(memory, 0xff, bytes);
    return memory;
}

static void *work_through(void *argument)
{
    const struct worker *worker = argument;
    struct run *run = worker->run;
    for (uint64_t item = atomic_fetch_add(&run->next, 1); item < run->items;
         item = atomic_fetch_add(&run->next, 1)) {
        run->work(run->context, item, worker->index);
    }
    return NULL;
}

static void run_items(
    const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context)
{
    struct run run = {.work = work, .context = context, .items = items};
    struct worker workers[EXECUTOR_MAX_WORKERS];
    pthread_t threads[EXECUTOR_MAX_WORKERS];
    for (unsigned i = 0; i < executor->workers; i++) {
        workers[i] = (struct worker){&run, i};
    }
    for (unsigned i = 1; i < executor->workers; i++) {
        if (pthread_create(&threads[i], NULL, work_through, &workers[i]) != 0) {
            fprintf(stderr, "executor: no thread\n");
            abort();
        }
    }
    work_through(&workers[0]);
    for (unsigned i = 1; i < executor->workers; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void poison_scratch(struct executor *executor)
{
    size_t bytes = attn_scratch_bytes(executor->family);
    for (unsigned i = 0; i < executor->base.workers; i++) {
        memset(executor->scratch[i], 0xff, bytes);
    }
}

void executor_init(struct executor *executor, const struct attn_family *family, unsigned workers)
{
    int error = attn_prepare(family);
    if (error != 0) {
        fprintf(stderr, "executor: preparing the kernels: error %d\n", error);
        abort();
    }
    *executor = (struct executor){.family = family};
    for (unsigned i = 0; i < workers; i++) {
        executor->scratch[i] = poisoned(attn_scratch_bytes(family));
    }
    executor->base.workers = workers;
    executor->base.scratch = executor->scratch;
    executor->base.run = run_items;
}

void executor_finish(struct executor *executor)
{
    for (unsigned i = 0; i < executor->base.workers; i++) {
        free(executor->scratch[i]);
    }
}

/* Moves every slice on by at most `tiles`; returns how many slices have tiles to run. */
static size_t next_slices(
    struct attn_slice *now, struct attn_slice *left, size_t count, uint64_t tiles)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t rest = left[i].end - left[i].begin;
        uint64_t step = tiles == 0 || tiles > rest ? rest : tiles;
        if (step > 0) {
            now[used] = left[i];
            now[used].end = left[i].begin + step;
            left[i].begin += step;
            used++;
        }
    }
    return used;
}

/* A group on its way through the tiles. */
struct solution {
    struct attn_problem *problems; /* as the family sees them */
    struct attn_slice *left;
    struct attn_slice *now;
    size_t count;
};

static void begin(struct solution *solution, const struct executor *executor,
    enum attn_direction direction, const struct attn_problem *problems, size_t count)
{
    struct twin *twin = executor->twin;
    *solution = (struct solution){
        .problems = calloc(count + 1, sizeof *solution->problems),
        .left = calloc(2 * count + 1, sizeof *solution->left),
        .count = count,
    };
    if (solution->problems == NULL || solution->left == NULL) {
        abort();
    }
    solution->now = solution->left + count;
    for (size_t i = 0; i < count; i++) {
        struct attn_slice *slice = &solution->left[i];
        size_t bytes = attn_workspace_bytes(executor->family, direction, &problems[i]);
        solution->problems[i] = twin != NULL ? twin_problem(twin, &problems[i]) : problems[i];
        slice->problem = &solution->problems[i];
        slice->workspace = twin != NULL ? twin_workspace(twin, bytes) : poisoned(bytes);
        slice->end = attn_tile_count(executor->family, direction, &problems[i]);
    }
}

static void end(struct solution *solution, const struct executor *executor)
{
    for (size_t i = 0; i < solution->count && executor->twin == NULL; i++) {
        free(solution->left[i].workspace);
    }
    free(solution->problems);
    free(solution->left);
}

static int launch_all(struct executor *executor, enum attn_direction direction,
    struct solution *solution, uint64_t tiles_per_launch)
{
    void *stream = executor->twin != NULL ? executor->twin->stream : NULL;
    const struct attn_target target = {.executor = &executor->base, .stream = stream};
    int status = 0;
    for (;;) {
        size_t used = next_slices(solution->now, solution->left, solution->count, tiles_per_launch);
        if (used == 0 || status != 0) {
            return status;
        }
        poison_scratch(executor);
        status = attn_launch(executor->family, direction, solution->now, used, &target);
    }
}

int executor_solve(struct executor *executor, enum attn_direction direction,
    const struct attn_problem *problems, size_t count, uint64_t tiles_per_launch)
{
    struct twin *twin = executor->twin;
    struct solution solution;
    begin(&solution, executor, direction, problems, count);
    int status = twin != NULL ? twin_up(twin) : 0;
    if (status == 0) {
        status = launch_all(executor, direction, &solution, tiles_per_launch);
    }
    if (status == 0 && twin != NULL) {
        status = twin_down(twin);
    }
    if (twin != NULL && !twin_release(twin) && status == 0) {
        status = EXECUTOR_OVERRUN;
    }
    end(&solution, executor);
    return status;
}

/*
 * The way of a draw through a kernel family in this process: several cases at once, each in a thread
 * and, for devices with memory of their own, a twin of its own.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "draws.h"
#include "twin.h"

#define ARENA_BYTES ((size_t)384 << 20)
#define WORKSPACE_BYTES ((size_t)256 << 20)

struct crowd {
    const struct draws_options *options;
    const struct attn_family *family;
    uint64_t end;
    atomic_uint_least64_t next;
    atomic_bool broken;
    pthread_mutex_t lock; /* of the totals and of stdout */
    struct draws_totals *totals;
};

static const char *refusal_of(
    const struct attn_family *family, const struct draw *draw, const struct trial *trial)
{
    struct attn_problem forward = trial_forward(trial);
    const char *refusal = attn_unsupported(family, ATTN_FORWARD, &forward);
    if (refusal == NULL && draw->direction == ATTN_BACKWARD) {
        refusal = attn_unsupported(family, ATTN_BACKWARD, &trial->problem);
    }
    return refusal;
}

/* No pair of features excludes another. */
static void refuse_case(
    struct crowd *crowd, uint64_t number, const struct draw *draw, const char *refusal)
{
    const struct verdict verdict = {.failed = true};
    bool may = draw_may_be_refused(draw) && attn_family_device(crowd->family) == ATTN_DEVICE_CUDA;
    pthread_mutex_lock(&crowd->lock);
    if (may) {
        draws_skip(crowd->options, number, refusal, crowd->totals);
    } else {
        printf("  refused: %s\n", refusal);
        draws_conclude(crowd->options, draw, number, &verdict, crowd->totals);
    }
    pthread_mutex_unlock(&crowd->lock);
}

/* What is said about the case comes out as a whole. */
static void judge_case(struct crowd *crowd, struct twin *twin, uint64_t number,
    const struct draw *draw, struct trial *trial)
{
    struct verdict verdict = {0};
    char *complaints = NULL;
    size_t size = 0;
    const struct judge_run run = {.family = crowd->family,
        .direction = draw->direction,
        .lse = draw->lse,
        .workers = draw->workers,
        .tiles_per_launch = draw->tiles_per_launch,
        .twin = twin};
    verdict.out = open_memstream(&complaints, &size);
    if (verdict.out == NULL) {
        abort();
    }
    judge_trial(&verdict, trial, &run);
    bool promised = draw->direction == ATTN_FORWARD || draw->spec.deterministic;
    if (crowd->options->bits && promised && !verdict.broken) {
        judge_bits(&verdict, trial, &draw->spec, &run);
    }
    fclose(verdict.out);
    pthread_mutex_lock(&crowd->lock);
    fputs(complaints, stdout);
    draws_conclude(crowd->options, draw, number, &verdict, crowd->totals);
    pthread_mutex_unlock(&crowd->lock);
    free(complaints);
    if (verdict.broken) {
        atomic_store(&crowd->broken, true);
    }
}

static void run_case(struct crowd *crowd, struct twin *twin, uint64_t number)
{
    const struct draws_options *options = crowd->options;
    struct draw draw = draws_case(options, number);
    draw.workers = options->threads > 0 ? options->threads : draw.workers;
    twin_seed(draw.spec.seed);
    struct trial trial;
    if (twin != NULL) {
        twin->arena.used = 0;
    }
    trial_init_in(&trial, &draw.spec, twin != NULL ? &twin->arena : NULL);
    const char *refusal = refusal_of(crowd->family, &draw, &trial);
    if (refusal != NULL) {
        refuse_case(crowd, number, &draw, refusal);
    } else {
        judge_case(crowd, twin, number, &draw, &trial);
    }
    trial_finish(&trial);
}

static void *run_cases(void *argument)
{
    struct crowd *crowd = argument;
    struct twin *twin = twin_create(crowd->family, ARENA_BYTES, WORKSPACE_BYTES);
    for (uint64_t number = atomic_fetch_add(&crowd->next, 1);
         number < crowd->end && !atomic_load(&crowd->broken);
         number = atomic_fetch_add(&crowd->next, 1)) {
        run_case(crowd, twin, number);
    }
    twin_destroy(twin);
    return NULL;
}

bool draws_kernels(
    const struct draws_options *options, uint64_t first, uint64_t end, struct draws_totals *totals)
{
    struct crowd crowd = {.options = options,
        .family = attn_family_find(options->family),
        .end = end,
        .next = first,
        .totals = totals};
    pthread_t threads[DRAWS_MAX_JOBS];
    if (crowd.family == NULL) {
        fprintf(stderr, "draws: no kernel family '%s' in this build\n", options->family);
        return false;
    }
    pthread_mutex_init(&crowd.lock, NULL);
    for (unsigned i = 1; i < options->jobs; i++) {
        if (pthread_create(&threads[i], NULL, run_cases, &crowd) != 0) {
            fprintf(stderr, "draws: no thread\n");
            abort();
        }
    }
    run_cases(&crowd);
    for (unsigned i = 1; i < options->jobs; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_mutex_destroy(&crowd.lock);
    return !atomic_load(&crowd.broken);
}

/* The same bits alone, in a group of others, and cut into launches of a few tiles. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "device.h"
#include "draw.h"
#include "kernels.h"

#define ARENA_BYTES ((size_t)384 << 20)
#define WORKSPACE_BYTES ((size_t)512 << 20)
#define MEMBERS 32
#define ROUNDS 12

struct crowd {
    struct kernels *kernels;
    struct twin *twin;
    struct executor executor;
    struct trial trial[MEMBERS];
    struct attn_problem problem[2][MEMBERS]; /* by direction */
    size_t count;
    unsigned char *inputs;    /* the arena before a pass */
    unsigned char *by_itself; /* and after it, each problem alone */
};

/* Members of a crowd: the draws of a seed with 16-bit numbers that the family computes. */
static void gather(struct crowd *crowd, uint64_t seed)
{
    crowd->count = 0;
    crowd->twin->arena.used = 0;
    for (uint64_t number = 0; crowd->count < MEMBERS; number++) {
        struct draw draw = draw_case(seed, number);
        struct trial *trial = &crowd->trial[crowd->count];
        draw.spec.dtype = seed % 2 == 0 ? ATTN_FP16 : ATTN_BF16;
        draw.spec.deterministic = true;
        trial_init_in(trial, &draw.spec, &crowd->twin->arena);
        struct attn_problem forward = trial_forward(trial);
        const struct attn_family *family = crowd->kernels->family;
        if (attn_unsupported(family, ATTN_FORWARD, &forward) != NULL ||
            attn_unsupported(family, ATTN_BACKWARD, &trial->problem) != NULL) {
            trial_finish(trial);
            continue;
        }
        crowd->problem[0][crowd->count] = forward;
        crowd->problem[1][crowd->count] = trial->problem;
        crowd->count++;
    }
}

static void solve(struct crowd *crowd, enum attn_direction direction,
    const struct attn_problem *problems, size_t count, uint64_t tiles)
{
    int error = executor_solve(&crowd->executor, direction, problems, count, tiles);
    if (error != 0) {
        (void)fprintf(stderr, "gpu_kernels: a launch returned %d\n", error);
        _Exit(1);
    }
}

static void solve_alone(
    struct crowd *crowd, enum attn_direction direction, const struct attn_problem *problems)
{
    for (size_t i = 0; i < crowd->count; i++) {
        solve(crowd, direction, &problems[i], 1, 0);
    }
}

/* All that may share a launch do. Returns the size of the largest group. */
static size_t solve_together(struct crowd *crowd, enum attn_direction direction,
    const struct attn_problem *problems, uint64_t tiles)
{
    bool done[MEMBERS] = {false};
    size_t largest = 0;
    for (size_t i = 0; i < crowd->count; i++) {
        struct attn_problem group[MEMBERS];
        size_t size = 0;
        uint32_t key = attn_group_key(crowd->kernels->family, direction, &problems[i]);
        for (size_t j = i; j < crowd->count; j++) {
            if (!done[j] &&
                attn_group_key(crowd->kernels->family, direction, &problems[j]) == key) {
                group[size++] = problems[j];
                done[j] = true;
            }
        }
        if (size > 0) {
            solve(crowd, direction, group, size, tiles);
        }
        largest = size > largest ? size : largest;
    }
    return largest;
}

/* Leaves the arena as the problems alone left it. */
static void compare(struct crowd *crowd, enum attn_direction direction)
{
    const struct attn_problem *problems = crowd->problem[direction == ATTN_FORWARD ? 0 : 1];
    const char *what = direction == ATTN_FORWARD ? "forward" : "deterministic backward";
    static const uint64_t cuts[] = {0, 1, 7};
    struct trial_arena *arena = &crowd->twin->arena;
    memcpy(crowd->inputs, arena->bytes, arena->used);
    solve_alone(crowd, direction, problems);
    memcpy(crowd->by_itself, arena->bytes, arena->used);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        char label[96];
        (void)snprintf(label, sizeof label, "%s in a group differs, at most %d tiles a launch",
            what, (int)cuts[i]);
        memcpy(arena->bytes, crowd->inputs, arena->used);
        size_t largest = solve_together(crowd, direction, problems, cuts[i]);
        kernels_count(crowd->kernels, largest > 1, "no two problems share a launch");
        kernels_count(
            crowd->kernels, memcmp(arena->bytes, crowd->by_itself, arena->used) == 0, label);
    }
    memcpy(arena->bytes, crowd->by_itself, arena->used);
}

void kernels_groups(struct kernels *kernels)
{
    static struct crowd crowd; /* large */
    crowd = (struct crowd){.kernels = kernels,
        .twin = twin_create(kernels->family, ARENA_BYTES, WORKSPACE_BYTES),
        .inputs = malloc(ARENA_BYTES),
        .by_itself = malloc(ARENA_BYTES)};
    CHECK(crowd.inputs != NULL && crowd.by_itself != NULL);
    executor_init(&crowd.executor, kernels->family, 1);
    crowd.executor.twin = crowd.twin;
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        if (!kernels_begin(kernels)) {
            continue;
        }
        gather(&crowd, seed);
        compare(&crowd, ATTN_FORWARD);
        compare(&crowd, ATTN_BACKWARD);
        for (size_t i = 0; i < crowd.count; i++) {
            trial_finish(&crowd.trial[i]);
        }
    }
    executor_finish(&crowd.executor);
    twin_destroy(crowd.twin);
    free(crowd.inputs);
    free(crowd.by_itself);
}

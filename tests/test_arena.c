#include "arena.h"

#include <criterion/criterion.h>
#include <stdbool.h>

#include "dice.h"

#define UNITS 200 /* of ARENA_ALIGNMENT */
#define PIECES 24
#define STEPS 20000

/* The truth: who holds each unit of the range, 0: nobody. */
struct model {
    unsigned char *base;
    int holder[UNITS];
    void *piece[PIECES + 1];
    int pieces;
};

static int longest_gap(const struct model *model)
{
    int longest = 0;
    int gap = 0;
    for (int i = 0; i < UNITS; i++) {
        gap = model->holder[i] == 0 ? gap + 1 : 0;
        longest = gap > longest ? gap : longest;
    }
    return longest;
}

static void acquire(struct model *model, struct arena *arena, size_t bytes)
{
    int units = bytes == 0 ? 1 : (int)((bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT);
    bool fits = units <= longest_gap(model) && model->pieces < PIECES;
    unsigned char *piece = arena_acquire(arena, bytes);
    cr_assert_eq(piece != NULL, fits, "%d units, gap %d", units, longest_gap(model));
    if (piece == NULL) {
        return;
    }
    size_t offset = (size_t)(piece - model->base);
    cr_assert_eq(offset % ARENA_ALIGNMENT, 0);
    cr_assert_leq(offset + bytes, (size_t)UNITS * ARENA_ALIGNMENT);
    int id = 1;
    while (model->piece[id] != NULL) {
        id++;
    }
    for (size_t i = 0; i < (size_t)units; i++) {
        cr_assert_eq(model->holder[offset / ARENA_ALIGNMENT + i], 0, "pieces overlap");
        model->holder[offset / ARENA_ALIGNMENT + i] = id;
    }
    model->piece[id] = piece;
    model->pieces++;
}

static void release(struct model *model, struct arena *arena, int id)
{
    arena_release(arena, model->piece[id]);
    for (int i = 0; i < UNITS; i++) {
        model->holder[i] = model->holder[i] == id ? 0 : model->holder[i];
    }
    model->piece[id] = NULL;
    model->pieces--;
}

/* The base is never touched: an address that nothing lies at does. */
Test(arena, gives_a_piece_exactly_when_a_brute_force_model_finds_a_gap)
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct dice dice = {.state = seed};
        struct model model = {.base = (unsigned char *)(uintptr_t)0x100000};
        size_t slack = dice_below(&dice, ARENA_ALIGNMENT);
        struct arena *arena =
            arena_create(model.base, (size_t)UNITS * ARENA_ALIGNMENT + slack, PIECES);
        cr_assert_eq(arena_capacity(arena), (size_t)UNITS * ARENA_ALIGNMENT);
        for (int step = 0; step < STEPS; step++) {
            int id = 1 + (int)dice_below(&dice, PIECES);
            if (model.piece[id] != NULL) {
                release(&model, arena, id);
            } else {
                uint32_t most = dice_one_in(&dice, 20) ? UNITS + 2 : 14;
                acquire(&model, arena, dice_below(&dice, most * ARENA_ALIGNMENT + 1));
            }
        }
        for (int id = 1; id <= PIECES; id++) {
            if (model.piece[id] != NULL) {
                release(&model, arena, id);
            }
        }
        acquire(&model, arena, (size_t)UNITS * ARENA_ALIGNMENT);
        cr_assert_eq(model.pieces, 1, "seed %zu: the free range was not made whole", (size_t)seed);
        arena_destroy(arena);
    }
}

Test(arena, refuses_sizes_near_the_end_of_the_number_range)
{
    unsigned char *base = (unsigned char *)(uintptr_t)0x100000;
    struct arena *arena = arena_create(base, 4 * ARENA_ALIGNMENT, 2);
    cr_expect_null(arena_acquire(arena, SIZE_MAX));
    cr_expect_null(arena_acquire(arena, SIZE_MAX - ARENA_ALIGNMENT + 2));
    cr_expect_null(arena_acquire(arena, 4 * ARENA_ALIGNMENT + 1));
    cr_expect_eq(arena_acquire(arena, 4 * ARENA_ALIGNMENT), base);
    arena_destroy(arena);
}

Test(arena, takes_the_smallest_gap_that_is_large_enough)
{
    unsigned char *base = (unsigned char *)(uintptr_t)0x100000;
    struct arena *arena = arena_create(base, 10 * ARENA_ALIGNMENT, 10);
    void *four = arena_acquire(arena, 4 * ARENA_ALIGNMENT);
    arena_acquire(arena, ARENA_ALIGNMENT);
    void *two = arena_acquire(arena, 2 * ARENA_ALIGNMENT);
    arena_acquire(arena, ARENA_ALIGNMENT);
    arena_release(arena, four);
    arena_release(arena, two);
    cr_expect_eq(arena_acquire(arena, 2 * ARENA_ALIGNMENT), two);
    cr_expect_eq(arena_acquire(arena, 3 * ARENA_ALIGNMENT), four);
    arena_destroy(arena);
}

Test(arena, gives_no_more_pieces_than_it_has_records_for)
{
    unsigned char *base = (unsigned char *)(uintptr_t)0x100000;
    struct arena *arena = arena_create(base, 100 * ARENA_ALIGNMENT, 3);
    void *second = NULL;
    for (int i = 0; i < 3; i++) {
        void *piece = arena_acquire(arena, 1);
        cr_assert_not_null(piece);
        second = i == 1 ? piece : second;
    }
    cr_expect_null(arena_acquire(arena, 1));
    arena_release(arena, second);
    cr_expect_eq(arena_acquire(arena, 1), second);
    cr_expect_null(arena_acquire(arena, 1));
    arena_destroy(arena);
}

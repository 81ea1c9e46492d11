/*
 * Random numbers of the tests: everything follows from the seed (splitmix64).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct dice {
    uint64_t state; /* start: the seed */
};

static inline uint64_t dice_next(struct dice *dice)
{
    uint64_t mixed = dice->state += UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

/* 0 .. bound - 1 */
static inline uint32_t dice_below(struct dice *dice, uint32_t bound)
{
    return (uint32_t)((dice_next(dice) >> 32) * bound >> 32);
}

static inline bool dice_one_in(struct dice *dice, uint32_t count)
{
    return dice_below(dice, count) == 0;
}

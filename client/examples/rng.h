/*
 * Seeded random numbers (splitmix64): the same seed gives the same numbers on every machine.
 * The caller owns the state; not for secrets.
 */
#pragma once

#include <stdint.h>

struct rng {
    uint64_t state;
};

void rng_init(struct rng *rng, uint64_t seed);
uint64_t rng_below(struct rng *rng, uint64_t bound); /* 0 to bound - 1; bound > 0 */
double rng_uniform(struct rng *rng);                 /* [0, 1) */
double rng_normal(struct rng *rng);                  /* mean 0, deviation 1 */

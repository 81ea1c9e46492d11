#include "rng.h"

#include <assert.h>
#include <math.h>

static uint64_t next(struct rng *rng)
{
    uint64_t z = rng->state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

void rng_init(struct rng *rng, uint64_t seed)
{
    rng->state = seed;
}

/* The remainder favours small values by at most bound / 2^64: nothing for bounds of a file's size. */
uint64_t rng_below(struct rng *rng, uint64_t bound)
{
    assert(bound > 0);
    return next(rng) % bound;
}

double rng_uniform(struct rng *rng)
{
    return (double)(next(rng) >> 11) * 0x1p-53;
}

double rng_normal(struct rng *rng)
{
    const double two_pi = 6.283185307179586;
    double radius = sqrt(-2.0 * log(1.0 - rng_uniform(rng)));
    return radius * cos(two_pi * rng_uniform(rng));
}

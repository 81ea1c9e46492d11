/*
 * What a kernel gets: slices of some problems, all for one stage of the work, as the one parameter of
 * every kernel. Blocks are numbered over the slices; each finds its own by the running sums.
 *
 * A problem's work has stages, one kernel each: what a stage needs is complete before it begins. The
 * tiles of a problem are numbered stage by stage.
 */
#pragma once

#include "attn.h"

#if defined(__CUDACC__)
#define DEVICE_FUNCTION static __host__ __device__ inline
#else
#define DEVICE_FUNCTION static inline
#endif

/* As many as the 32,764 bytes of a kernel's parameters have room for. */
#define DEVICE_MAX_ITEMS 32

/* Positions in a sequence, and sums of two of them, are numbers of 32 bits. */
#define DEVICE_LONGEST 1000000000

#define SCORE_LOG2E 1.44269504088896340736F
#define SCORE_LN2 0.69314718055994530942F

/*
 * What of the score arithmetic a kernel has: what a problem does not use costs it nothing, or hardly.
 * PLAIN's scores and lse are times log2(e), so that their exponential is one instruction. Those of the
 * others are what they are, for a bias may be any finite number, and times log2(e) it might be none.
 */
enum score_kind {
    SCORE_PLAIN,   /* scale (more than 0, at most 1e38) and mask */
    SCORE_BIAS,    /* bias and slopes as well */
    SCORE_GENERAL, /* everything, any scale */
};

#define SCORE_KINDS 3

/* Arithmetic that only one of the kinds has. */
DEVICE_FUNCTION enum score_kind score_kind_of(const struct attn_problem *problem)
{
    if (problem->softcap > 0 || problem->dropout_threshold > 0 ||
        !(problem->scale > 0 && problem->scale <= 1e38F)) {
        return SCORE_GENERAL;
    }
    bool adds = problem->bias.data != NULL || problem->slopes.data != NULL;
    return adds ? SCORE_BIAS : SCORE_PLAIN;
}

struct device_item {
    struct attn_problem problem;
    char *workspace; /* of the problem; device/lengths.h says what lies there */
    uint64_t first;  /* tile of the stage that the item's first block does */
};

struct device_group {
    uint32_t items;
    uint32_t end[DEVICE_MAX_ITEMS]; /* the number of the block behind the item's last */
    struct device_item item[DEVICE_MAX_ITEMS];
};

#if defined(__cplusplus)
static_assert(sizeof(struct device_group) <= 32764, "it travels as a kernel's parameter");
#else
_Static_assert(sizeof(struct device_group) <= 32764, "it travels as a kernel's parameter");
#endif

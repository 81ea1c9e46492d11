/*
 * What a kernel gets: slices of some problems, all for one stage of the work, as the one parameter of
 * every kernel. Blocks are numbered over the slices; each finds its own by the running sums.
 *
 * A problem's work has stages, one kernel each: what a stage needs is complete before it begins. The
 * tiles of a problem are numbered stage by stage.
 */
#pragma once

#include "attn.h"

/* As many as the 32,764 bytes of a kernel's parameters have room for. */
#define DEVICE_MAX_ITEMS 32

/* Positions in a sequence, and sums of two of them, are numbers of 32 bits. */
#define DEVICE_LONGEST 1000000000

/* What of the score arithmetic a kernel has: what a problem does not use costs it nothing, or hardly. */
enum score_kind {
    SCORE_PLAIN,   /* scale (more than 0) and mask */
    SCORE_BIAS,    /* bias as well */
    SCORE_GENERAL, /* everything, any scale */
};

#define SCORE_KINDS 3

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

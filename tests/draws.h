/*
 * Parts of the program draws: what it was asked for, what it has counted, and a judged case.
 */
#pragma once

#include "draw.h"
#include "judge.h"

#define DRAWS_MAX_JOBS 256

struct draws_options {
    const char *family;
    const char *address; /* of a running daemon; NULL: one of its own */
    bool service;
    bool bits;       /* results are the same bits in a group, however it is cut */
    bool forward;    /* no backward passes */
    bool flash;      /* shapes of draw_flash_case() */
    bool every_pair; /* fail unless every pair of features was there */
    uint64_t count;
    uint64_t seed;
    uint64_t only;    /* UINT64_MAX: all */
    unsigned threads; /* 0: drawn */
    unsigned jobs;    /* cases at once */
};

struct draws_totals {
    uint64_t cases;
    uint64_t skipped;
    uint64_t failed;
    double worst_ratio;
    uint64_t worst_case;
    struct draw_pairs pairs;
};

struct draw draws_case(const struct draws_options *options, uint64_t number);

/* Cases [first, end) in this process. false: the family or its device is not there, or broke. */
bool draws_kernels(
    const struct draws_options *options, uint64_t first, uint64_t end, struct draws_totals *totals);

/* Counts a case and says what is to be said about it. */
void draws_conclude(const struct draws_options *options, const struct draw *draw, uint64_t number,
    const struct verdict *verdict, struct draws_totals *totals);

void draws_skip(const struct draws_options *options, uint64_t number, const char *why,
    struct draws_totals *totals);

/* Cases [first, end) through a daemon. false: there was none. */
bool draws_service(
    const struct draws_options *options, uint64_t first, uint64_t end, struct draws_totals *totals);

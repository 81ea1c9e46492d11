/*
 * Requests drawn at random for the tests of the service, each in two copies of its memory: one that
 * the daemon works on, and a twin for running the same kernels directly in this process. Both copies
 * begin with the same bytes, also in the gaps between rows, so that afterwards they must be equal
 * byte for byte.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"

struct rng {
    uint64_t state;
};

uint64_t rng_next(struct rng *rng);
int64_t rng_between(struct rng *rng, int64_t low, int64_t high); /* both ends included */
bool rng_one_in(struct rng *rng, int64_t n);

enum case_role {
    CASE_Q,
    CASE_K,
    CASE_V,
    CASE_OUT,
    CASE_LSE,
    CASE_DOUT,
    CASE_DLSE,
    CASE_DQ,
    CASE_DK,
    CASE_DV,
    CASE_ROLES,
};

struct case_tensor {
    bool present;
    bool output;
    bool written;  /* also what a backward's case_place() makes with a forward */
    size_t buffer; /* which buffer it lies in */
    DLTensor dl;   /* data set by case_place() */
    int64_t shape[4];
    int64_t strides[4];
};

/* Tensors that share a buffer are the parts of one packed tensor. */
struct case_buffer {
    size_t bytes;
    size_t offset; /* in the case's memory */
    uint8_t *twin; /* owned */
};

struct service_case {
    struct attnd_options options;
    struct attnd_request request;
    struct case_tensor tensor[CASE_ROLES];
    size_t buffers;
    struct case_buffer buffer[CASE_ROLES];
    size_t bytes;    /* of memory that case_place() wants */
    uint8_t *memory; /* borrowed; where the daemon works */
};

/* Shapes, strides, options and twins; `largest` bounds the sequence lengths. The case must stay where
 * it is. */
void case_draw(struct service_case *drawn, struct rng *rng, int64_t largest);
void case_finish(struct service_case *drawn);

/* Gives the case its memory of drawn->bytes, aligned to 64 bytes, fills memory and twins and makes
 * drawn->request ready for attnd_submit(). A backward's out and lse come from a forward run here. */
void case_place(struct service_case *drawn, struct rng *rng, uint8_t *memory);

/* Runs the kernels on the twins. */
void case_run_directly(struct service_case *drawn);

/* Whether memory and twins are the same bytes; otherwise describes the case on stderr. */
bool case_equal(const struct service_case *drawn);

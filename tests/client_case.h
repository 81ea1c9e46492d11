/*
 * A call with any of attention's features, in two copies of its memory: one for the daemon and a twin
 * on which the same kernels run directly. Both begin with the same bytes, so that afterwards they must
 * be equal. All tensors are compact; what goes wrong here ends the test.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "service_case.h"
#include "wire.h"

struct case_shape {
    enum attnd_direction direction;
    DLDataType dtype;
    int64_t batch;
    int64_t rows_q; /* of each sequence, of a packed side in all */
    int64_t rows_k;
    int64_t heads_q;
    int64_t heads_kv;
    int64_t dim;
    int64_t dim_v;
    bool packed_q;
    bool packed_k;
    bool key_lengths;
    bool rows; /* lse or dlse */
    bool bias;
    bool slopes;
    bool sinks;
    unsigned gradients;      /* bits 0 to 2: those of bias, slopes and sinks, if they are there */
    unsigned bias_broadcast; /* bits: dimensions of extent 1 */
    bool bias_float;
    bool slopes_broadcast;
};

struct client_case {
    struct case_shape shape;
    struct attnd_options options; /* numbers set by the test */
    struct attnd_request request;
    DLTensor tensor[WIRE_ROLE_END];
    int64_t extents[WIRE_ROLE_END][4];
    size_t offset[WIRE_ROLE_END]; /* in the memory */
    size_t bytes;                 /* of memory */
    unsigned char *memory;        /* borrowed; the daemon's */
    unsigned char *twin;          /* owned */
};

/* A shape and options drawn from everything that there is. */
void client_case_draw(struct client_case *drawn, struct rng *rng);

/* Lays out the tensors of a shape and fills the twin. The case must stay where it is. */
void client_case_init(struct client_case *made, struct rng *rng);
void client_case_finish(struct client_case *made);

/* Computes the forward of a backward call, copies the twin to the memory, and describes the request. */
void client_case_place(struct client_case *made, void *memory);

/* Runs the kernels on the twin. */
void client_case_run(struct client_case *made);

/* Runs the kernels on the twin, and says whether the memory is the same now. */
bool client_case_equal(struct client_case *made);

/* The twin of a tensor. */
void *client_case_twin(const struct client_case *made, enum wire_role role);

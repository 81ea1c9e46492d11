/*
 * A call that is right in every respect, to be spoiled, and what libattnd makes of it without a daemon.
 */
#pragma once

#include "attnd.h"
#include "request.h"
#include "wire.h"

#define CALL_BATCH 2
#define CALL_ROWS_Q 3
#define CALL_ROWS_K 5
#define CALL_HEADS_Q 4
#define CALL_HEADS_KV 2
#define CALL_DIM 8

struct call {
    int64_t shape[WIRE_ROLE_END][4];
    float memory[16];
    DLTensor tensor[WIRE_ROLE_END];
    struct attnd_options options;
    struct attnd_request request;
};

/* float32, dense, without options; all optional tensors of q, k and v alone are there. */
void call_init(struct call *call, enum attnd_direction direction);

/* Adds bias, slopes and sinks, and in a backward call their gradients. */
void call_add_terms(struct call *call);

/* Makes both sides packed, with CALL_ROWS_Q and CALL_ROWS_K rows in all, and adds seqlens_k. */
void call_pack(struct call *call);

/* Gives the call the tensor of a role, or takes it away. */
void call_add(struct call *call, enum wire_role role);
void call_remove(struct call *call, enum wire_role role);

/* What the library says about it. */
enum attnd_status call_read(const struct call *call, struct wire_plan *plan);

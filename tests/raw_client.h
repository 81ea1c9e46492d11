/*
 * A client without the library: raw sockets and the codec, to say to the daemon what libattnd never
 * would. Every wait ends after some seconds; then the function returns false.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "page.h"
#include "wire.h"

#define RAW_ROWS 4
#define RAW_DIM 8
#define RAW_TENSOR_BYTES (RAW_ROWS * RAW_DIM * sizeof(float)) /* of each of raw_plan()'s four */
#define RAW_REGION_BYTES 4096

struct raw_client {
    const char *directory; /* borrowed */
    int gate;              /* descriptor; -1: closed */
    void *context;
    void *dealer;
    uint32_t id; /* of the last request */
    int page_fd;
    struct page *page;
    struct wire_session session;
};

/* Connects to the gate and nothing else. */
bool raw_connect(struct raw_client *client, const char *directory);

/* The whole way of an honest client: connects, opens a session, connects to rpc.sock, says HELLO. */
bool raw_open(struct raw_client *client, const char *directory);
void raw_close(struct raw_client *client);
void raw_close_gate(struct raw_client *client);

/* One packet of any bytes with descriptors; the answer, if one comes. */
bool raw_gate_send(struct raw_client *client, const void *bytes, size_t size,
    const int *descriptors, size_t count);
bool raw_gate_receive(struct raw_client *client, struct wire_gate_reply *reply);
bool raw_gate_call(struct raw_client *client, struct wire_gate_request *request,
    const int *descriptors, size_t count, struct wire_gate_reply *reply);

/* Whether the daemon hangs up. */
bool raw_gate_ends(struct raw_client *client);

/* Opens the session only; the page is made if need be. */
bool raw_open_session(struct raw_client *client, struct wire_gate_reply *reply);

/* Adds a region of fresh sealed memory. 0: refused. */
uint32_t raw_add_region(struct raw_client *client, uint64_t bytes);

/* rpc.sock, without HELLO. */
bool raw_rpc_connect(struct raw_client *client);
bool raw_send(struct raw_client *client, const void *bytes, size_t size, bool more);
bool raw_receive(struct raw_client *client, struct wire_reply *reply, int timeout_ms);
bool raw_post(struct raw_client *client, struct wire_request *request); /* sets its id */
bool raw_call(struct raw_client *client, struct wire_request *request, struct wire_reply *reply);
bool raw_hello(struct raw_client *client, struct wire_reply *reply);
bool raw_stats(struct raw_client *client, struct wire_stats *stats);

/* Waits until nothing is left of other clients: no session, memory or plan, and no request under way. */
bool raw_is_alone(struct raw_client *client, struct wire_stats *stats);

/* A valid forward plan: fp32, one batch and head, RAW_ROWS rows, q, k, v and out; and its number. */
void raw_plan(struct wire_plan *plan);
uint32_t raw_add_plan(struct raw_client *client);

/* A submission of `count` valid calls of that plan on a region, its inputs ready. */
void raw_submission(struct raw_client *client, struct wire_request *request, uint32_t lane,
    uint32_t first_sequence, uint32_t count, uint32_t plan, uint32_t region);

/* Waits until the lane's `done` has reached the sequence; its result. */
bool raw_wait(
    struct raw_client *client, uint32_t lane, uint32_t sequence, enum wire_status *status);

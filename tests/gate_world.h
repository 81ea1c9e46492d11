/*
 * A gate with a backend that maps when the test lets it. The gate, its sessions and an engine run on a
 * thread of this process, the clients on the main one.
 */
#pragma once

#include "engine.h"
#include "gate.h"
#include "raw_client.h"
#include "request.h"
#include "slow_backend.h"

#define WORLD_WAIT_MS 10000
#define WORLD_SESSIONS 4
#define WORLD_REGION_BYTES (1 << 30) /* that a user may have, and a session */
#define WORLD_OTHER_UID 65534

struct world {
    char directory[64];
    char path[80];
    struct slow_backend slow;
    uv_loop_t loop;
    uv_async_t wake;
    uv_async_t stop;
    pthread_t thread;
    struct engine *engine;
    struct worker *closer;
    struct session_table sessions;
    struct request_handler *requests;
    struct transport transport; /* never opened: nobody says HELLO */
    struct gate gate;
};

extern struct world world;

void world_init(void); /* once */
void world_start(void);

/* As the daemon ends. What is held goes on, and then has to find its way. */
void world_stop(void);

void world_connect(struct raw_client *client);

/* As another user, whom the system tells the gate from; only this thread is one meanwhile. */
void world_connect_other(struct raw_client *client);

int world_memory(void); /* a descriptor of some */

/* Each sends and does not wait. Returns the id. */
uint32_t world_post(struct raw_client *client, struct wire_gate_request *request, bool with_memory);
uint32_t world_post_add(struct raw_client *client, uint64_t bytes);
uint32_t world_post_drop(struct raw_client *client, uint32_t region);
uint32_t world_post_trim(struct raw_client *client);
struct wire_gate_request world_offer(uint64_t bytes); /* what world_post_add() sends */

/* The next reply, which must be that one. */
struct wire_gate_reply world_next(struct raw_client *client, uint32_t id, enum wire_status status);

/* Sends until it is accepted: what a session left is unmapped first and counts no longer a moment later,
 * on the gate's thread. */
void world_accepts(struct raw_client *client, struct wire_gate_request *request, bool with_memory);

/* The gate has seen whatever was done before: its loop takes all that has happened by the time at which
 * it looks, and looks at least twice until a new connection has its answer. */
void world_pass_gate(void);

void world_wait_until(unsigned (*value)(struct slow_backend *slow), unsigned expected);
unsigned world_descriptors(void); /* of this process */

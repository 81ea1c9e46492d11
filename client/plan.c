#include "plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

/* Only the tensors in use count; what is behind them is zero. */
static size_t used_bytes(const struct wire_plan *wire)
{
    return offsetof(struct wire_plan, tensor) + wire->tensors * sizeof wire->tensor[0];
}

static uint64_t hash_bytes(const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    uint64_t hash = UINT64_C(0x9e3779b97f4a7c15);
    for (; size >= sizeof hash; size -= sizeof hash, at += sizeof hash) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        hash = (hash ^ word) * UINT64_C(0xd6e8feb86659fd93);
        hash ^= hash >> 32;
    }
    for (; size > 0; size--, at++) {
        hash = (hash ^ *at) * UINT64_C(0xd6e8feb86659fd93);
    }
    return hash ^ hash >> 29;
}

static struct plan *find_locked(struct plans *plans, const struct wire_plan *wire, uint64_t hash)
{
    struct plan *plan = plans->bucket[hash % PLAN_BUCKETS];
    while (plan && (plan->hash != hash || plan->wire.tensors != wire->tensors ||
                       memcmp(&plan->wire, wire, used_bytes(wire)) != 0)) {
        plan = plan->next;
    }
    if (plan) {
        plan->users++;
        plan->last_use = ++plans->clock;
    }
    return plan;
}

static void send_drop(struct attnd *client, uint32_t id)
{
    struct wire_request request = {.kind = WIRE_DROP_PLAN, .drop_plan = id};
    (void)rpc_send(&client->rpc, &request, client->timeout_ns);
}

/* Makes room for one more. false: every plan is about to be used. */
static bool evict_locked(struct attnd *client)
{
    struct plans *plans = &client->plans;
    struct plan **oldest = NULL;
    for (size_t i = 0; i < PLAN_BUCKETS; i++) {
        for (struct plan **link = &plans->bucket[i]; *link; link = &(*link)->next) {
            if ((*link)->users == 0 && (!oldest || (*link)->last_use < (*oldest)->last_use)) {
                oldest = link;
            }
        }
    }
    if (!oldest) {
        return false;
    }
    struct plan *plan = *oldest;
    *oldest = plan->next;
    plans->count--;
    send_drop(client, plan->id);
    free(plan);
    return true;
}

/* An error of this thread as one that can be passed on. */
static struct plan *fail_as_thread(enum attnd_status status, struct wire_error *error)
{
    (void)wire_fail(error, (enum wire_status)status, "%.200s", attnd_message());
    return NULL;
}

static struct plan *register_locked(
    struct attnd *client, const struct wire_plan *wire, struct wire_error *error)
{
    struct plan *plan = malloc(sizeof *plan);
    if (!plan) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the process is out of memory");
        return NULL;
    }
    struct wire_request request = {.kind = WIRE_ADD_PLAN, .plan = *wire};
    struct wire_reply reply;
    enum attnd_status status = rpc_call(&client->rpc, &request, &reply, client->timeout_ns);
    if (status != ATTND_OK) {
        free(plan);
        return fail_as_thread(status, error);
    }
    if (reply.error.status != WIRE_OK || reply.kind != WIRE_REPLY_PLAN) {
        *error = reply.error;
        if (error->status == WIRE_OK) {
            (void)wire_fail(error, WIRE_PROTOCOL_ERROR, "the daemon gave no number for a plan");
        }
        free(plan);
        return NULL;
    }
    plan->id = reply.plan.plan;
    memcpy(&plan->wire, wire, sizeof plan->wire); /* with its padding, which is zero */
    return plan;
}

static struct plan *add_locked(
    struct attnd *client, const struct wire_plan *wire, uint64_t hash, struct wire_error *error)
{
    struct plans *plans = &client->plans;
    if (plans->count >= plans->capacity && !evict_locked(client)) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the submissions under way use %zu different shapes, and the daemon keeps no more",
            plans->count);
        return NULL;
    }
    struct plan *plan = register_locked(client, wire, error);
    if (plan) {
        plan->hash = hash;
        plan->users = 1;
        plan->last_use = ++plans->clock;
        plan->next = plans->bucket[hash % PLAN_BUCKETS];
        plans->bucket[hash % PLAN_BUCKETS] = plan;
        plans->count++;
    }
    return plan;
}

void plan_init(struct plans *plans, uint64_t limit)
{
    (void)pthread_mutex_init(&plans->mutex, NULL);
    plans->capacity = limit < PLAN_MOST ? (size_t)limit : PLAN_MOST;
}

void plan_finish(struct plans *plans)
{
    for (size_t i = 0; i < PLAN_BUCKETS; i++) {
        while (plans->bucket[i]) {
            struct plan *plan = plans->bucket[i];
            plans->bucket[i] = plan->next;
            free(plan);
        }
    }
    plans->count = 0;
    (void)pthread_mutex_destroy(&plans->mutex);
}

struct plan *plan_find(struct plans *plans, const struct wire_plan *wire)
{
    uint64_t hash = hash_bytes(wire, used_bytes(wire));
    (void)pthread_mutex_lock(&plans->mutex);
    struct plan *plan = find_locked(plans, wire, hash);
    (void)pthread_mutex_unlock(&plans->mutex);
    return plan;
}

struct plan *plan_acquire(struct attnd *client, const struct wire_plan *wire,
    const struct wire_extent extents[WIRE_MAX_TENSORS], struct wire_error *error)
{
    struct plans *plans = &client->plans;
    uint64_t hash = hash_bytes(wire, used_bytes(wire));
    (void)pthread_mutex_lock(&plans->mutex);
    struct plan *plan = find_locked(plans, wire, hash);
    if (!plan) {
        plan = add_locked(client, wire, hash, error);
        if (plan) {
            memcpy(plan->extents, extents, sizeof plan->extents);
        }
    }
    (void)pthread_mutex_unlock(&plans->mutex);
    return plan;
}

void plan_release(struct plans *plans, struct plan *plan)
{
    (void)pthread_mutex_lock(&plans->mutex);
    plan->users--;
    (void)pthread_mutex_unlock(&plans->mutex);
}

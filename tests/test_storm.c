/*
 * test_storm [SEED [STEPS]]: several clients do at random what clients do, in any order: submit with
 * and without their inputs ready, with and without epochs, drop plans and regions that are in use, offer
 * what is none, trim, vanish in the middle of all that and come back. Every
 * request must end; after the last client nothing may be left; and the daemon must end with status 0,
 * which a sanitizer's finding in it would change.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "codec.h"
#include "daemon.h"
#include "raw_client.h"
#include "sealed.h"

#define CLIENTS 5
#define LANES 3
#define CREDIT 16
#define SLOTS 4 /* of plans and regions a client has */

struct actor {
    bool open;
    struct raw_client client;
    uint32_t plan[SLOTS];
    uint32_t region[SLOTS];
    uint32_t sent[LANES];
};

static const char *const arguments[] = {"--threads=2", "--max-sessions=6", "--in-flight=16",
    "--max-plans=5", "--max-regions=5", "--log-level=warning", NULL};

static struct daemon attnd;
static unsigned seed;

static void fail(const char *what)
{
    (void)fprintf(stderr, "storm: %s\n", what);
    (void)daemon_stop(&attnd);
    exit(1);
}

static uint32_t draw(uint32_t below)
{
    return (uint32_t)rand_r(&seed) % below;
}

static uint32_t in_flight(const struct actor *actor)
{
    uint32_t count = 0;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        count += actor->sent[lane] - atomic_load(&actor->client.page->lane[lane].done);
    }
    return count;
}

static void make_ready(struct actor *actor, uint32_t lane)
{
    atomic_store(&actor->client.page->lane[lane].ready, actor->sent[lane]);
}

static void submit(struct actor *actor)
{
    struct wire_request request;
    uint32_t lane = draw(LANES);
    uint32_t count = 1 + draw(6);
    if (in_flight(actor) + count > CREDIT) {
        for (lane = 0; lane < LANES; lane++) {
            make_ready(actor, lane);
        }
        return;
    }
    raw_submission(&actor->client, &request, lane, actor->sent[lane] + 1, count,
        actor->plan[draw(SLOTS)], actor->region[draw(SLOTS)]);
    request.submit.epoch = draw(3);
    actor->sent[lane] += count;
    if (draw(3) == 0) {
        atomic_store(&actor->client.page->lane[lane].ready, actor->sent[lane] - draw(count + 1));
    }
    if (!raw_post(&actor->client, &request)) {
        fail("a submission could not be sent");
    }
}

static void change_region(struct actor *actor)
{
    struct wire_gate_request drop = {.kind = WIRE_GATE_DROP_REGION};
    struct wire_gate_reply reply;
    uint32_t at = draw(SLOTS);
    drop.region = actor->region[at];
    if (drop.region != 0 && !raw_gate_call(&actor->client, &drop, NULL, 0, &reply)) {
        fail("no reply from the gate");
    }
    /* 0 if too many that were dropped are still in use: calls with it fail. */
    actor->region[at] = raw_add_region(&actor->client, RAW_REGION_BYTES);
}

/* What the daemon has to refuse, and survive. */
static void offer_nonsense(struct actor *actor)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION};
    struct wire_gate_reply reply;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (draw(3) == 0) {
        request.kind = WIRE_GATE_EXTEND_REGION;
        request.region = actor->region[draw(SLOTS)];
        request.offset = RAW_REGION_BYTES;
    }
    request.memory = (enum wire_memory_kind)draw(WIRE_MEMORY_CUDA_VMM + 1);
    request.bytes = draw(3) * RAW_REGION_BYTES;
    request.reserve = draw(2) * UINT64_MAX;
    if (fd < 0 || !raw_gate_call(&actor->client, &request, &fd, draw(3) != 0, &reply)) {
        fail("no answer to nonsense");
    }
    (void)close(fd);
    if (reply.error.status == WIRE_OK) {
        fail("nonsense was accepted");
    }
}

static void trim(struct actor *actor)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_TRIM};
    struct wire_gate_reply reply;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        make_ready(actor, lane); /* it waits for whatever uses what was dropped */
    }
    if (!raw_gate_call(&actor->client, &request, NULL, 0, &reply) ||
        reply.error.status != WIRE_OK) {
        fail("a trim did not end");
    }
}

/* Offers without waiting for an answer: whoever does that is about to vanish. */
static void offer_and_forget(struct actor *actor)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_ADD_REGION, .bytes = RAW_REGION_BYTES, .id = 1};
    uint8_t bytes[256];
    int fd = sealed_create("forgotten", RAW_REGION_BYTES);
    size_t size = codec_encode_gate_request(&request, bytes, sizeof(bytes));
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (fd < 0 || !raw_gate_send(&actor->client, bytes, size, &fd, 1)) {
            fail("an offer could not be sent");
        }
    }
    (void)close(fd);
}

/* The next reply to a request of its own, past those about failed calls. */
static void call(struct actor *actor, struct wire_request *request, struct wire_reply *reply)
{
    bool received = raw_post(&actor->client, request);
    do {
        received = received && raw_receive(&actor->client, reply, 10000);
    } while (received && reply->id != request->id);
    if (!received) {
        fail("no reply to a request");
    }
}

static void change_plan(struct actor *actor)
{
    struct wire_request request = {.kind = WIRE_DROP_PLAN};
    struct wire_reply reply;
    uint32_t at = draw(SLOTS);
    request.drop_plan = actor->plan[at];
    call(actor, &request, &reply);
    request = (struct wire_request){.kind = WIRE_ADD_PLAN};
    raw_plan(&request.plan);
    call(actor, &request, &reply);
    if (reply.kind != WIRE_REPLY_PLAN) {
        fail(reply.error.detail);
    }
    actor->plan[at] = reply.plan.plan;
}

static void finish_all(struct actor *actor)
{
    for (uint32_t lane = 0; lane < LANES; lane++) {
        enum wire_status status;
        make_ready(actor, lane);
        if (actor->sent[lane] != 0 && !raw_wait(&actor->client, lane, actor->sent[lane], &status)) {
            fail("a request did not end");
        }
    }
}

static void open_in_time(struct raw_client *client)
{
    for (int tries = 0; !raw_open(client, attnd.directory); tries++) {
        raw_close(client);
        (void)usleep(5000); /* the slot of one that left comes free soon */
        if (tries == 4000) {
            fail("no session");
        }
    }
}

/* What others of this user have left may count for a moment yet. */
static uint32_t add_region_in_time(struct raw_client *client)
{
    uint32_t region = 0;
    for (int tries = 0; region == 0 && tries < 4000; tries++) {
        region = raw_add_region(client, RAW_REGION_BYTES);
        if (region == 0) {
            (void)usleep(5000);
        }
    }
    return region;
}

static void come(struct actor *actor)
{
    *actor = (struct actor){.open = true};
    open_in_time(&actor->client);
    for (int i = 0; i < SLOTS; i++) {
        actor->plan[i] = raw_add_plan(&actor->client);
        actor->region[i] = add_region_in_time(&actor->client);
        if (actor->plan[i] == 0 || actor->region[i] == 0) {
            fail("no plan or no region");
        }
    }
}

static void leave(struct actor *actor)
{
    if (draw(2) == 0) {
        finish_all(actor);
    }
    if (draw(2) == 0) {
        offer_and_forget(actor);
    }
    raw_close(&actor->client);
    actor->open = false;
}

static void step(struct actor *actor)
{
    if (!actor->open) {
        come(actor);
        return;
    }
    uint32_t what = draw(100);
    if (what < 70) {
        submit(actor);
    } else if (what < 78) {
        change_region(actor);
    } else if (what < 80) {
        offer_nonsense(actor);
    } else if (what < 82) {
        trim(actor);
    } else if (what < 90) {
        change_plan(actor);
    } else if (what < 97) {
        finish_all(actor);
    } else {
        leave(actor);
    }
}

static void expect_nothing_left(void)
{
    struct raw_client observer;
    struct wire_stats stats = {0};
    open_in_time(&observer);
    bool alone = raw_is_alone(&observer, &stats);
    (void)printf("storm: requests=%llu failed=%llu groups=%llu\n",
        (unsigned long long)stats.daemon.requests, (unsigned long long)stats.daemon.failed,
        (unsigned long long)stats.daemon.groups);
    if (!alone) {
        fail("something is left of clients that have gone");
    }
    if (stats.daemon.requests == stats.daemon.failed) {
        fail("no request succeeded");
    }
    raw_close(&observer);
}

int main(int argc, char **argv)
{
    static struct actor actor[CLIENTS];
    seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
    unsigned long steps = argc > 2 ? strtoul(argv[2], NULL, 10) : 10000;
    (void)printf("storm: seed=%u steps=%lu\n", seed, steps);
    if (!daemon_start(&attnd, arguments)) {
        return 1;
    }
    for (unsigned long i = 0; i < steps; i++) {
        step(&actor[draw(CLIENTS)]);
    }
    for (int i = 0; i < CLIENTS; i++) {
        if (actor[i].open) {
            leave(&actor[i]);
        }
    }
    expect_nothing_left();
    return daemon_stop(&attnd) ? 0 : 1;
}

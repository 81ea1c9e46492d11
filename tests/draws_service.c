/*
 * The way of a draw through the service: several clients' worth of requests in flight in one daemon.
 *
 * Every slot is a stream with memory of its own. Some cases wait between forward and backward, some
 * leave the order to the stream; some have their tensors in memory that the library has to copy.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "draws.h"
#include "trial_request.h"

#define SLOTS 6
#define ARENA_BYTES ((size_t)24 << 20)
#define GUARD_BYTES 64 /* at the start of an arena: where a wrong or absent offset points to */
#define GUARD 0x5a

struct slot {
    uint64_t number;
    struct draw draw;
    struct trial trial;
    struct trial_arena arena;
    struct trial_request request;
    struct verdict verdict;
    attnd_ticket forward;
    attnd_ticket backward;
    bool chained;        /* backward was submitted before anybody waited for forward */
    const char *refusal; /* static; the case is skipped */
};

struct service {
    const struct draws_options *options;
    struct draws_totals *totals;
    struct attnd *client;
    struct slot slots[SLOTS];
};

static void complain_status(struct slot *slot, const char *what, enum attnd_status status)
{
    printf("  %s: %s: %s\n", what, attnd_status_name(status), attnd_message());
    slot->verdict.failed = true;
}

static void submit(struct service *service, struct slot *slot, bool forward)
{
    const struct attnd_request *request =
        forward ? &slot->request.forward : &slot->request.backward;
    attnd_ticket *ticket = forward ? &slot->forward : &slot->backward;
    enum attnd_status status = attnd_submit(service->client, slot, request, 1, ticket);
    if (status == ATTND_UNSUPPORTED && draw_may_be_refused(&slot->draw)) {
        slot->refusal = "the daemon says that it is unsupported";
    } else if (status != ATTND_OK) {
        complain_status(slot, forward ? "submitting forward" : "submitting backward", status);
    }
}

static bool is_in_order(const struct slot *slot)
{
    return slot->refusal == NULL && !slot->verdict.failed;
}

static void await(struct service *service, struct slot *slot, attnd_ticket ticket)
{
    enum attnd_status status = attnd_wait(service->client, ticket, ATTND_FOREVER);
    if (status != ATTND_OK) {
        complain_status(slot, ticket == slot->forward ? "forward" : "backward", status);
    }
}

/* Problems with lengths that the library reads itself and would refuse stay in shared memory. */
static void place(struct slot *slot)
{
    slot->arena.used = GUARD_BYTES;
    if (slot->number % 4 == 3) {
        trial_init(&slot->trial, &slot->draw.spec);
        if (trial_request_lengths_fit(&slot->trial)) {
            return;
        }
        trial_finish(&slot->trial);
    }
    trial_init_in(&slot->trial, &slot->draw.spec, &slot->arena);
}

static void start(struct service *service, struct slot *slot, uint64_t number)
{
    struct trial_arena arena = slot->arena;
    *slot = (struct slot){.number = number, .arena = arena};
    slot->draw = draws_case(service->options, number);
    slot->chained = number % 2 == 0 && slot->draw.direction == ATTN_BACKWARD;
    place(slot);
    slot->refusal =
        trial_request_init(&slot->request, &slot->trial, &slot->draw.spec, slot->draw.lse);
    if (slot->refusal == NULL) {
        submit(service, slot, true);
    }
    if (slot->chained && is_in_order(slot)) {
        submit(service, slot, false);
    }
}

static void check_forward(struct service *service, struct slot *slot)
{
    const bool written[TENSOR_COUNT] = {[TENSOR_OUT] = true, [TENSOR_LSE] = slot->draw.lse};
    await(service, slot, slot->forward);
    if (slot->chained || slot->verdict.failed) {
        return;
    }
    if (!trial_intact(&slot->trial, written)) {
        judge_complain(&slot->verdict, "forward wrote outside its outputs", "");
    }
    if (slot->draw.direction == ATTN_FORWARD) {
        return;
    }
    trial_snapshot(&slot->trial);
    submit(service, slot, false);
}

static void check_backward(struct service *service, struct slot *slot)
{
    bool written[TENSOR_COUNT];
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        written[id] = trial_backward_outputs[id] || (slot->chained && trial_forward_outputs[id]);
    }
    await(service, slot, slot->backward);
    if (!trial_intact(&slot->trial, written)) {
        judge_complain(&slot->verdict, "backward wrote outside its outputs", "");
    }
}

static void judge_slot(struct slot *slot)
{
    struct reference *reference = reference_create(slot->draw.direction, &slot->trial.problem);
    struct attn_problem forward = trial_forward(&slot->trial);
    if (!slot->draw.lse) {
        forward.lse.data = NULL;
    }
    judge(&slot->verdict, reference, &forward, ATTN_FORWARD);
    if (slot->draw.direction == ATTN_BACKWARD) {
        judge(&slot->verdict, reference, &slot->trial.problem, ATTN_BACKWARD);
    }
    reference_destroy(reference);
}

static bool guards_are_whole(struct service *service)
{
    bool whole = true;
    for (int i = 0; i < SLOTS; i++) {
        unsigned char *guard = service->slots[i].arena.bytes;
        for (int j = 0; j < GUARD_BYTES; j++) {
            whole = whole && guard[j] == GUARD;
            guard[j] = GUARD;
        }
    }
    return whole;
}

static void end(struct service *service, struct slot *slot)
{
    if (slot->refusal != NULL) {
        draws_skip(service->options, slot->number, slot->refusal, service->totals);
    } else {
        if (!slot->verdict.failed) {
            judge_slot(slot);
        }
        draws_conclude(
            service->options, &slot->draw, slot->number, &slot->verdict, service->totals);
    }
    trial_finish(&slot->trial);
}

/* Cases that run at once; all have ended then. */
static void solve_round(struct service *service, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        start(service, &service->slots[i], first + i);
    }
    for (uint64_t i = 0; i < count; i++) {
        if (is_in_order(&service->slots[i])) {
            check_forward(service, &service->slots[i]);
        }
    }
    for (uint64_t i = 0; i < count; i++) {
        struct slot *slot = &service->slots[i];
        if (is_in_order(slot) && slot->draw.direction == ATTN_BACKWARD) {
            check_backward(service, slot);
        }
    }
}

/* Something was written to where no tensor is: finds out for which case. */
static void find_culprit(struct service *service, uint64_t first, uint64_t count)
{
    uint64_t failed = service->totals->failed;
    for (uint64_t i = 0; i < count; i++) {
        trial_finish(&service->slots[i].trial);
    }
    for (uint64_t i = 0; i < count; i++) {
        solve_round(service, first + i, 1);
        if (!guards_are_whole(service)) {
            judge_complain(
                &service->slots[0].verdict, "the daemon wrote to where no tensor is", "");
        }
        end(service, &service->slots[0]);
    }
    if (service->totals->failed == failed) {
        printf("the daemon wrote to where no tensor is: cases %" PRIu64 " and the next %" PRIu64
               " together\n",
            first, count - 1);
        service->totals->failed++;
    }
}

static void run_round(struct service *service, uint64_t first, uint64_t count)
{
    solve_round(service, first, count);
    if (!guards_are_whole(service)) {
        find_culprit(service, first, count);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        end(service, &service->slots[i]);
    }
}

static bool open_client(struct service *service, const char *address)
{
    const struct attnd_open_options options = {.size = sizeof options, .address = address};
    if (attnd_open(&options, &service->client) != ATTND_OK) {
        fprintf(stderr, "draws: %s\n", attnd_message());
        return false;
    }
    for (int i = 0; i < SLOTS; i++) {
        void *memory = NULL;
        if (attnd_alloc(service->client, ARENA_BYTES, &memory) != ATTND_OK) {
            fprintf(stderr, "draws: %s\n", attnd_message());
            attnd_close(service->client);
            return false;
        }
        memset(memory, GUARD, GUARD_BYTES);
        service->slots[i].arena = (struct trial_arena){memory, ARENA_BYTES, 0};
    }
    return true;
}

static bool run_rounds(const struct draws_options *options, const char *address, uint64_t first,
    uint64_t end_number, struct draws_totals *totals)
{
    static struct service service; /* large */
    service = (struct service){.options = options, .totals = totals};
    if (!open_client(&service, address)) {
        return false;
    }
    while (first < end_number) {
        uint64_t count = end_number - first < SLOTS ? end_number - first : SLOTS;
        run_round(&service, first, count);
        first += count;
    }
    attnd_close(service.client);
    return true;
}

bool draws_service(const struct draws_options *options, uint64_t first, uint64_t end_number,
    struct draws_totals *totals)
{
    struct daemon daemon = {0};
    if (options->address != NULL) {
        return run_rounds(options, options->address, first, end_number, totals);
    }
    if (!daemon_start(&daemon, NULL)) {
        return false;
    }
    bool done = run_rounds(options, daemon.directory, first, end_number, totals);
    return daemon_stop(&daemon) && done;
}

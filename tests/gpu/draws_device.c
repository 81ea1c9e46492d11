/*
 * The random problems of the program draws through a daemon, with all tensors in device memory and
 * several streams under way.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "device.h"
#include "draw.h"
#include "main.h"
#include "mirror.h"

#define SLOTS 6

struct slot {
    uint64_t number;
    struct draw draw;
    struct twin *twin;
    struct mirror mirror;
    cudaStream_t stream;
    struct verdict verdict;
    attnd_ticket ticket;
    bool skipped;
};

struct totals {
    const char *address; /* of the daemon */
    uint64_t seed;
    uint64_t cases;
    uint64_t skipped;
    uint64_t failed;
    double worst;
};

/* The same case, of 16-bit numbers. */
static struct draw draw_for_device(uint64_t seed, uint64_t number)
{
    struct draw draw = draw_case(seed, number);
    if (draw.spec.dtype == ATTN_FP32) {
        draw.spec.dtype = number % 2 == 0 ? ATTN_FP16 : ATTN_BF16;
    }
    return draw;
}

static bool submit(struct attnd *client, struct slot *slot, const struct attnd_request *request)
{
    enum attnd_status status = attnd_submit(client, slot->stream, request, 1, &slot->ticket);
    if (status != ATTND_OK) { /* no pair of features excludes another */
        (void)printf("  %s: %s\n", attnd_status_name(status), attnd_message());
        slot->verdict.failed = true;
    }
    return status == ATTND_OK;
}

static void start(struct attnd *client, struct slot *slot, uint64_t seed, uint64_t number)
{
    slot->number = number;
    slot->draw = draw_for_device(seed, number);
    slot->verdict = (struct verdict){0};
    mirror_init(&slot->mirror, &slot->draw.spec, slot->draw.lse, slot->twin);
    slot->skipped = slot->mirror.refusal != NULL;
    if (!slot->skipped && submit(client, slot, &slot->mirror.request.forward) &&
        slot->draw.direction == ATTN_BACKWARD) {
        (void)submit(client, slot, &slot->mirror.request.backward);
    }
}

static void end(struct attnd *client, struct slot *slot, struct totals *totals, bool describe)
{
    struct verdict *verdict = &slot->verdict;
    CU(cudaStreamSynchronize(slot->stream));
    if (!slot->skipped && !verdict->failed) {
        enum attnd_status status = attnd_wait(client, slot->ticket, ATTND_FOREVER);
        if (status != ATTND_OK) {
            (void)printf("  %s: %s\n", attnd_status_name(status), attnd_message());
            verdict->failed = true;
        } else {
            mirror_judge(&slot->mirror, slot->draw.direction, verdict);
        }
    }
    if (verdict->failed || describe) {
        (void)printf("case %" PRIu64 " %s, ratio %.3f\n", slot->number,
            verdict->failed ? "FAILED" : "passed", verdict->ratio);
        draw_describe(&slot->draw);
        (void)printf("  again: gpu_tests draws %s %" PRIu64 " 1 %" PRIu64 "\n", totals->address,
            totals->seed, slot->number);
    }
    totals->cases++;
    totals->skipped += slot->skipped ? 1 : 0;
    totals->failed += verdict->failed ? 1 : 0;
    totals->worst = verdict->ratio > totals->worst ? verdict->ratio : totals->worst;
    mirror_finish(&slot->mirror);
}

static struct attnd *open_client(const char *address)
{
    struct attnd *client = NULL;
    const struct attnd_open_options options = {
        .size = sizeof options, .address = address, .name = "gpu_draws"};
    if (attnd_open(&options, &client) != ATTND_OK) {
        (void)fprintf(stderr, "gpu_draws: %s\n", attnd_message());
        exit(1);
    }
    return client;
}

static void run(
    struct attnd *client, uint64_t first, uint64_t last, bool describe, struct totals *totals)
{
    static struct slot slots[SLOTS];
    for (size_t i = 0; i < SLOTS; i++) {
        slots[i].twin = mirror_twin();
        CU(cudaStreamCreateWithFlags(&slots[i].stream, cudaStreamNonBlocking));
    }
    for (; first < last; first += SLOTS) {
        uint64_t count = last - first < SLOTS ? last - first : SLOTS;
        for (uint64_t i = 0; i < count; i++) {
            start(client, &slots[i], totals->seed, first + i);
        }
        for (uint64_t i = 0; i < count; i++) {
            end(client, &slots[i], totals, describe);
        }
    }
    for (size_t i = 0; i < SLOTS; i++) {
        twin_destroy(slots[i].twin);
    }
}

int draws_main(int argc, char **argv)
{
    if (argc < 4 || argc > 5) {
        (void)fprintf(stderr, "usage: gpu_tests draws ADDRESS SEED COUNT [CASE]\n");
        return 2;
    }
    struct totals totals = {.address = argv[1], .seed = strtoull(argv[2], NULL, 10)};
    uint64_t first = argc == 5 ? strtoull(argv[4], NULL, 10) : 0;
    uint64_t last = argc == 5 ? first + 1 : strtoull(argv[3], NULL, 10);
    device_require("gpu_draws");
    struct attnd *client = open_client(argv[1]);
    run(client, first, last, argc == 5, &totals);
    attnd_close(client);
    (void)printf("gpu_draws: seed=%" PRIu64 " cases=%" PRIu64 " skipped=%" PRIu64 " failed=%" PRIu64
                 " worst_ratio=%.3f\n",
        totals.seed, totals.cases, totals.skipped, totals.failed, totals.worst);
    return totals.failed == 0 && totals.cases > totals.skipped ? 0 : 1;
}

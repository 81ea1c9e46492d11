/* Where tensors lie: any device memory that can be shared, and a clear refusal for what cannot. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "device.h"
#include "draw.h"
#include "mirror.h"
#include "pieces.h"
#include "service.h"
#include "set.h"

#define GIB ((size_t)1 << 30)
#define MIB ((size_t)1 << 20)
#define SWEEP_MS 3000

static const struct set_extents usual = {2, 200, 4, 64};

/* ---- Right values ---------------------------------------------------------------------------- */

/* A problem of moderate size with most features, of 16-bit numbers. */
static struct draw draw_device_case(uint64_t number)
{
    struct draw draw = draw_case(71, number);
    if (draw.spec.dtype == ATTN_FP32) {
        draw.spec.dtype = number % 2 == 0 ? ATTN_FP16 : ATTN_BF16;
    }
    draw.lse = draw.lse || draw.direction == ATTN_BACKWARD;
    return draw;
}

static void compute(struct attnd *client, struct mirror *mirror, enum attn_direction direction)
{
    attnd_ticket ticket = 0;
    OK(attnd_submit(client, NULL, &mirror->request.forward, 1, &ticket));
    if (direction == ATTN_BACKWARD) {
        OK(attnd_submit(client, NULL, &mirror->request.backward, 1, &ticket));
    }
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
}

/* Random calls whose tensors, lengths too, lie in one allocation. */
static void right_values(void)
{
    struct daemon daemon;
    unsigned computed = 0;
    double worst = 0;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    struct twin *twin = mirror_twin();
    for (uint64_t number = 0; number < 300; number++) {
        struct draw draw = draw_device_case(number);
        struct mirror mirror;
        struct verdict verdict = {0};
        mirror_init(&mirror, &draw.spec, draw.lse, twin);
        if (mirror.refusal == NULL) { /* else the library's interface cannot say it */
            compute(client, &mirror, draw.direction);
            mirror_judge(&mirror, draw.direction, &verdict);
            computed++;
        }
        if (verdict.failed) {
            (void)printf("case %llu of seed 71\n", (unsigned long long)number);
            draw_describe(&draw);
            CHECK(!verdict.failed);
        }
        worst = verdict.ratio > worst ? verdict.ratio : worst;
        mirror_finish(&mirror);
    }
    CHECK(computed > 200);
    uint64_t regions = service_stats(client).client.regions;
    (void)printf("  computed %u, worst error over bar %.3f, %" PRIu64 " regions\n", computed, worst,
        regions);
    CHECK(regions <= 2); /* the allocation, and one for tensors without elements */
    attnd_close(client);
    twin_destroy(twin);
    service_stop(&daemon);
}

/* ---- Allocations ---------------------------------------------------------------------------- */

/* Results in `set` against those of a set that nobody doubts. */
static void expect_same(struct attnd *client, struct set *set, struct set *plain, uint32_t seed)
{
    attnd_ticket tickets[2];
    set_fill(set, NULL, seed);
    set_fill(plain, NULL, seed);
    OK(set_forward(set, client, NULL, NULL));
    OK(set_backward(set, client, NULL, &tickets[0]));
    OK(set_forward(plain, client, NULL, NULL));
    OK(set_backward(plain, client, NULL, &tickets[1]));
    OK(attnd_wait(client, tickets[0], ATTND_FOREVER));
    OK(attnd_wait(client, tickets[1], ATTND_FOREVER));
    CHECK(work_differences(set->memory, plain->memory, SET_ALL * plain->pitch) == 0);
}

static void many_sets_in_one_allocation(void)
{
    enum { SETS = 40 };
    static struct set sets[SETS];
    struct daemon daemon;
    struct set plain;
    unsigned char *memory = NULL;
    size_t pitch = set_bytes(&usual) + 2 * 64; /* aligned to no more than 128 bytes */
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    CU(cudaMalloc((void **)&memory, SETS * pitch));
    set_alloc(&plain, &usual);
    for (uint32_t i = 0; i < SETS; i++) {
        set_init(&sets[i], &usual, memory + i * pitch);
        expect_same(client, &sets[i], &plain, i);
    }
    CHECK(service_stats(client).client.regions == 2);
    attnd_close(client);
    service_stop(&daemon);
}

/* The same address, other memory: an old mapping would show old numbers. */
static void reused_addresses(void)
{
    struct daemon daemon;
    struct set plain;
    void *before[2] = {NULL, NULL};
    unsigned reused = 0;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&plain, &usual);
    for (uint32_t i = 0; i < 60; i++) {
        struct set set;
        void *memory = NULL;
        void *other = NULL;
        CU(cudaMalloc(&memory, i % 2 == 0 ? set_bytes(&usual) : 6 * MIB)); /* shares 2 MiB or not */
        set_init(&set, &usual, memory);
        reused += memory == before[i % 2] ? 1 : 0;
        before[i % 2] = memory;
        expect_same(client, &set, &plain, i);
        set_free(&set);
        if (i % 3 == 0) { /* keeps the pages that were just freed from coming back */
            CU(cudaMalloc(&other, 8 * MIB));
            CU(cudaMemset(other, 0xff, 8 * MIB));
        }
    }
    (void)printf("  %u addresses came again\n", reused);
    CHECK(reused > 0);
    attnd_close(client);
    service_stop(&daemon);
}

static bool becomes_free(size_t wanted, int ms)
{
    for (int waited = 0; waited < ms; waited += 20) {
        if (device_free_bytes() >= wanted) {
            return true;
        }
        device_sleep_ms(20);
    }
    (void)fprintf(stderr, "%zu bytes are free, not %zu\n", device_free_bytes(), wanted);
    return false;
}

/* A set in an allocation of that size, which the daemon has mapped. */
static void *map_large(struct attnd *client, size_t bytes)
{
    struct set set;
    attnd_ticket ticket = 0;
    void *memory = NULL;
    CU(cudaMalloc(&memory, bytes));
    set_init(&set, &usual, memory);
    set_fill(&set, NULL, 1);
    OK(set_forward(&set, client, NULL, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    return memory;
}

static void trim_gives_memory_back(void)
{
    struct daemon daemon;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    CU(cudaFree(map_large(client, 64 * MIB))); /* what a first call makes for itself */
    OK(attnd_trim(client, 10 * INT64_C(1000000000)));
    size_t before = device_free_bytes();
    for (int i = 0; i < 5; i++) {
        void *memory = map_large(client, 8 * GIB);
        CHECK(device_free_bytes() <= before - 8 * GIB);
        CU(cudaFree(memory));
        OK(attnd_trim(client, 10 * INT64_C(1000000000)));
        CHECK(device_free_bytes() + 64 * MIB >= before);
    }
    void *alive =
        map_large(client, GIB); /* idle, yet alive: trim may drop it, a call brings it back */
    OK(attnd_trim(client, 10 * INT64_C(1000000000)));
    CHECK(service_stats(client).client.regions == 0);
    CU(cudaFree(alive));
    CHECK(device_free_bytes() + 64 * MIB >= before);
    attnd_close(client);
    service_stop(&daemon);
}

/* Nobody says trim: the library looks by itself. */
static void freed_memory_comes_back(void)
{
    struct daemon daemon;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    CU(cudaFree(map_large(client, 64 * MIB)));
    OK(attnd_trim(client, 10 * INT64_C(1000000000)));
    size_t before = device_free_bytes();
    CU(cudaFree(map_large(client, 8 * GIB)));
    CHECK(becomes_free(before - 64 * MIB, SWEEP_MS));
    attnd_close(client);
    service_stop(&daemon);
}

/* ---- Virtual memory -------------------------------------------------------------------------- */

/* As PyTorch's expandable segments: pieces side by side, more of them when more is needed. */
static void growing_segment(size_t piece)
{
    struct daemon daemon;
    struct pieces pieces;
    struct set plain;
    struct set set;
    const struct set_extents wide = {2, 1024, 8, 64}; /* tensors of 2 MiB: across pieces */
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&plain, &wide);
    pieces_init(&pieces, piece, 64 * piece + 256 * MIB);
    for (uint32_t round = 1; round <= 4; round++) {
        size_t place = (round - 1) * (set_bytes(&wide) + 1024);
        pieces_grow(&pieces, place + set_bytes(&wide));
        set_init(&set, &wide, pieces.base + place);
        expect_same(client, &set, &plain, round);
    }
    /* The end is given back and other memory put there, as after empty_cache(). */
    pieces_shrink(&pieces, piece);
    pieces_grow(&pieces, set_bytes(&wide));
    set_init(&set, &wide, pieces.base);
    expect_same(client, &set, &plain, 9);
    pieces_finish(&pieces);
    attnd_close(client);
    service_stop(&daemon);
}

static void segment_of_small_pieces(void)
{
    growing_segment(2 * MIB);
}

static void segment_of_large_pieces(void)
{
    growing_segment(20 * MIB);
}

/* ---- What cannot be shared ------------------------------------------------------------------- */

static void expect_refusal(struct attnd *client, void *memory)
{
    struct set set;
    set_init(&set, &usual, memory);
    REFUSED(set_forward(&set, client, NULL, NULL), ATTND_UNSUPPORTED_MEMORY);
    (void)printf("  %s\n", attnd_message());
    CHECK(strlen(attnd_message()) > 20);
}

static void memory_that_cannot_be_shared(void)
{
    struct daemon daemon;
    struct pieces pieces;
    void *memory = NULL;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    CU(cudaMallocAsync(&memory, set_bytes(&usual), NULL));
    CU(cudaStreamSynchronize(NULL));
    expect_refusal(client, memory);
    CU(cudaFreeAsync(memory, NULL));
    pieces_init_private(&pieces, 2 * MIB, 64 * MIB);
    pieces_grow(&pieces, set_bytes(&usual));
    expect_refusal(client, pieces.base);
    pieces_finish(&pieces);
    CU(cudaMallocManaged(&memory, set_bytes(&usual), cudaMemAttachGlobal));
    expect_refusal(client, memory);
    CU(cudaFree(memory));
    CU(cudaMalloc(&memory, set_bytes(&usual))); /* the client is none the worse */
    struct set set;
    attnd_ticket ticket = 0;
    set_init(&set, &usual, memory);
    set_fill(&set, NULL, 3);
    OK(set_forward(&set, client, NULL, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    attnd_close(client);
    service_stop(&daemon);
}

/* A tensor that reaches beyond the allocation. */
static void tensors_beyond_their_memory(void)
{
    struct daemon daemon;
    struct set set;
    attnd_ticket ticket = 0;
    void *memory = NULL;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    size_t whole = (set_bytes(&usual) + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
    CU(cudaMalloc(&memory, whole));
    set_init(&set, &usual, memory);
    set.tensor[SET_OUT].byte_offset = whole;
    CHECK(set_forward(&set, client, NULL, &ticket) != ATTND_OK);
    set.tensor[SET_OUT].byte_offset = UINT64_MAX - 255;
    CHECK(set_forward(&set, client, NULL, &ticket) != ATTND_OK);
    set.tensor[SET_OUT].data = memory;
    set.tensor[SET_OUT].byte_offset = whole - set.pitch / 2; /* begins inside, ends outside */
    CHECK(set_forward(&set, client, NULL, &ticket) != ATTND_OK);
    attnd_close(client);
    service_stop(&daemon);
}

/* ---- Host memory on a GPU's daemon ------------------------------------------------------------ */

static void host_tensors(void)
{
    struct daemon daemon;
    struct set set;
    struct set plain;
    void *shared = NULL;
    attnd_ticket ticket = 0;
    service_start(&daemon);
    struct attnd *client = service_open(&daemon);
    set_alloc(&plain, &usual);
    set_fill(&plain, NULL, 5);
    OK(attnd_alloc(client, set_bytes(&usual), &shared));
    unsigned char *own = malloc(set_bytes(&usual));
    CHECK(own != NULL);
    CU(cudaMemcpy(shared, plain.memory, set_bytes(&usual), cudaMemcpyDeviceToHost));
    memcpy(own, shared, set_bytes(&usual));
    OK(set_forward(&plain, client, NULL, &ticket));
    OK(attnd_wait(client, ticket, ATTND_FOREVER));
    unsigned char *const places[] = {shared, own};
    for (size_t i = 0; i < 2; i++) {
        set_init(&set, &usual, places[i]);
        for (size_t j = 0; j < SET_ALL; j++) {
            set.tensor[j].device = (DLDevice){kDLCPU, 0};
        }
        OK(set_forward(&set, client, NULL, &ticket));
        OK(attnd_wait(client, ticket, ATTND_FOREVER));
        unsigned char *copy = malloc(set_bytes(&usual));
        CU(cudaMemcpy(copy, plain.memory, set_bytes(&usual), cudaMemcpyDeviceToHost));
        CHECK(copy != NULL && memcmp(copy, places[i], set_bytes(&usual)) == 0);
        free(copy);
    }
    free(own);
    attnd_close(client);
    service_stop(&daemon);
}

const struct service_test service_memory_tests[] = {
    {"memory_right_values", right_values, false},
    {"memory_many_sets_in_one_allocation", many_sets_in_one_allocation, false},
    {"memory_reused_addresses", reused_addresses, false},
    {"memory_trim_gives_memory_back", trim_gives_memory_back, false},
    {"memory_freed_memory_comes_back", freed_memory_comes_back, false},
    {"memory_segment_of_small_pieces", segment_of_small_pieces, false},
    {"memory_segment_of_large_pieces", segment_of_large_pieces, false},
    {"memory_that_cannot_be_shared", memory_that_cannot_be_shared, false},
    {"memory_tensors_beyond_their_memory", tensors_beyond_their_memory, false},
    {"memory_host_tensors", host_tensors, false},
    {NULL, NULL, false},
};

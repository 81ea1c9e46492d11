#include "machine.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "shared.h"

namespace {
const uint32_t lanes = 32;
const uint32_t most_threads = 1024;
const uint32_t all_lanes = 0xffffffffU;
const uint32_t base = 1024; /* addresses below belong to the system */

struct copy {
    uint32_t shared;
    const void *global;
    uint32_t bytes;
};

struct thread {
    struct fiber fiber;
    uint32_t number;
    size_t argument_bytes;            /* of its argument that are not 0xff */
    enum machine_operation operation; /* that it waits for */
    struct machine_place place;
    struct machine_part *part;
    std::vector<struct copy> copies; /* under way, oldest first */
    std::vector<size_t> groups;      /* where in copies each group that is under way ends */
};

struct warp {
    uint32_t ready;   /* lanes that could run */
    uint32_t waiting; /* lanes that are at something they do together */
};

struct machine {
    struct fiber main;
    std::vector<struct thread> threads; /* as many as any block has had */
    struct warp warps[most_threads / lanes];
    uint32_t ready_warps;
    uint32_t block;
    uint32_t block_threads;
    uint32_t at_barrier;
    uint32_t ended;
    struct thread *running;
    struct shared_memory shared;

    uint64_t seed; /* of this launch */
    uint64_t launches;
    uint64_t first_seed;
    uint64_t random_state;

    void (*hook)(void *context);
    void *hook_context;

    machine();
    ~machine();
};

const char *const operation_names[MACHINE_OPERATIONS] = {"is ready to run", "has ended",
    "waits at a barrier", "shuffles (xor)", "shuffles (up)", "loads matrices",
    "loads transposed matrices", "multiplies fp16 matrices", "multiplies bf16 matrices"};

uint64_t seed_of_environment()
{
    const char *text = getenv("EMULATOR_SEED");

    return text != nullptr ? strtoull(text, nullptr, 0) : 1;
}

machine::machine()
    : warps(), ready_warps(0), block(0), block_threads(0), at_barrier(0), ended(0),
      running(nullptr), shared(), seed(0), launches(0), first_seed(seed_of_environment()),
      random_state(0), hook(nullptr), hook_context(nullptr)
{
    fiber_adopt(&main);
}

machine::~machine()
{
    for (struct thread &thread : threads) {
        fiber_destroy(&thread.fiber, sizeof(struct device_group));
    }
    shared_finish(&shared);
}

struct machine *here()
{
    static thread_local struct machine machine;
    return &machine;
}

/* -- chance --------------------------------------------------------------------------------------- */

uint32_t random_word(struct machine *m)
{
    m->random_state += UINT64_C(0x9E3779B97F4A7C15);
    uint64_t z = m->random_state;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return static_cast<uint32_t>(z >> 32);
}

/* Number of one of the bits that are set. */
uint32_t random_bit(struct machine *m, uint32_t bits)
{
    uint32_t turn = random_word(m) % lanes;
    uint32_t turned = bits >> turn | bits << (lanes - turn) % lanes;

    return (static_cast<uint32_t>(__builtin_ctz(turned)) + turn) % lanes;
}

/* -- failures ------------------------------------------------------------------------------------- */

bool same_wait(const struct thread *a, const struct thread *b)
{
    return a->operation == b->operation && a->place.line == b->place.line &&
           a->place.file == b->place.file;
}

void print_place(const struct thread *thread)
{
    if (thread->place.file != nullptr && thread->operation != MACHINE_ENDED) {
        fprintf(stderr, " at %s:%d", thread->place.file, thread->place.line);
    }
}

/* What all threads of the block are doing, those in a row that do the same in one line. */
void print_threads(const struct machine *m)
{
    for (uint32_t first = 0; first < m->block_threads;) {
        const struct thread *thread = &m->threads[first];
        uint32_t end = first + 1;
        while (end < m->block_threads && same_wait(thread, &m->threads[end])) {
            end++;
        }
        fprintf(stderr, "  thread %" PRIu32 " .. %" PRIu32 " %s", first, end - 1,
            operation_names[thread->operation]);
        print_place(thread);
        fprintf(stderr, "\n");
        first = end;
    }
}

[[noreturn]] void give_up(const struct machine *m)
{
    fprintf(stderr, "  seed %" PRIu64 " (EMULATOR_SEED), launch %" PRIu64 " with it\n",
        m->first_seed, m->launches);
    abort();
}

[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(
    struct machine_place place, const char *format, ...)
{
    struct machine *m = here();
    va_list arguments;

    fprintf(stderr, "emulator: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n  block %" PRIu32 ", thread %" PRIu32 ", %s:%d\n", m->block,
        m->running != nullptr ? m->running->number : 0,
        place.file != nullptr ? place.file : "outside of kernels", place.line);
    give_up(m);
}

[[noreturn]] void fail_all(const char *what)
{
    const struct machine *m = here();

    fprintf(stderr, "emulator: block %" PRIu32 ": %s\n", m->block, what);
    print_threads(m);
    give_up(m);
}

/* -- taking turns --------------------------------------------------------------------------------- */

void make_ready(struct machine *m, uint32_t warp, uint32_t bits)
{
    m->warps[warp].ready |= bits;
    m->ready_warps |= bits != 0 ? 1U << warp : 0;
}

/* A thread that can run: mostly of the warp that ran last, so that warps get far ahead of others. */
struct thread *pick(struct machine *m, uint32_t last_warp)
{
    uint32_t warp = last_warp;

    if (m->ready_warps == 0) {
        fail_all("threads wait for others that never come");
    }
    if (m->warps[warp].ready == 0 || random_word(m) % 16 == 0) {
        warp = random_bit(m, m->ready_warps);
    }
    uint32_t lane = random_bit(m, m->warps[warp].ready);
    m->warps[warp].ready &= ~(1U << lane);
    if (m->warps[warp].ready == 0) {
        m->ready_warps &= ~(1U << warp);
    }
    return &m->threads[warp * lanes + lane];
}

/* Lets another thread run until this one is ready and picked. */
void wait_turn(struct machine *m)
{
    struct thread *self = m->running;
    struct thread *next = pick(m, self->number / lanes);

    if (next != self) {
        m->running = next;
        fiber_switch(&self->fiber, &next->fiber);
    }
}

void set_wait(struct thread *thread, enum machine_operation operation, struct machine_place place)
{
    thread->operation = operation;
    thread->place = place;
}

/* Lanes of a warp that wait, or do the same, at other places than this one. */
void check_lanes(
    const struct machine *m, uint32_t warp, const struct thread *self, const char *what)
{
    for (uint32_t lane = 0; lane < lanes; lane++) {
        if (!same_wait(&m->threads[warp * lanes + lane], self)) {
            fail_all(what);
        }
    }
}

void release_lanes(struct machine *m, uint32_t warp)
{
    for (uint32_t lane = 0; lane < lanes; lane++) {
        m->threads[warp * lanes + lane].operation = MACHINE_RUNNING;
    }
    make_ready(m, warp, all_lanes);
}

/* -- copies --------------------------------------------------------------------------------------- */

void perform(struct machine *m, const struct copy *copy)
{
    char *to = m->shared.bytes + (copy->shared - base);

    memset(to, 0, 16);
    memcpy(to, copy->global, copy->bytes);
}

void perform_first(struct machine *m, struct thread *thread, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        perform(m, &thread->copies[i]);
    }
    thread->copies.erase(
        thread->copies.begin(), thread->copies.begin() + static_cast<ptrdiff_t>(count));
    for (size_t &end : thread->groups) {
        end -= count;
    }
}

void check_address(
    const struct machine *m, uint32_t address, const char *what, struct machine_place place)
{
    if (address % 16 != 0) {
        fail(place, "%s at shared address %" PRIu32 ", no multiple of 16", what, address);
    }
    if (address < base || address - base + 16 > m->shared.size) {
        fail(place, "%s beyond the block's %zu bytes of shared memory, at byte %" PRId64, what,
            m->shared.size, static_cast<int64_t>(address) - static_cast<int64_t>(base));
    }
}

/* -- blocks --------------------------------------------------------------------------------------- */

/* Items as far as blocks have one: most launches have few. */
size_t group_bytes(const struct device_group *group, uint32_t blocks)
{
    uint32_t items = 1;

    while (items < DEVICE_MAX_ITEMS && group->end[items - 1] < blocks) {
        items++;
    }
    return offsetof(struct device_group, item) + items * sizeof group->item[0];
}

/* Nothing stays of launches before that had more items. */
void prepare_threads(
    struct machine *m, uint32_t threads, const struct device_group *group, size_t bytes)
{
    while (m->threads.size() < threads) {
        m->threads.emplace_back();
        struct thread *thread = &m->threads.back();
        thread->number = static_cast<uint32_t>(m->threads.size()) - 1;
        fiber_create(&thread->fiber, sizeof *group);
        memset(thread->fiber.arguments, 0xff, sizeof *group);
    }
    for (uint32_t i = 0; i < threads; i++) {
        struct thread *thread = &m->threads[i];
        memcpy(thread->fiber.arguments, group, bytes);
        if (thread->argument_bytes > bytes) {
            memset(thread->fiber.arguments + bytes, 0xff, thread->argument_bytes - bytes);
        }
        thread->argument_bytes = bytes;
    }
    m->block_threads = threads;
}

void run_block(struct machine *m, machine_kernel kernel, uint32_t block)
{
    m->block = block;
    m->at_barrier = 0;
    m->ended = 0;
    shared_poison(&m->shared);
    for (uint32_t i = 0; i < m->block_threads; i++) {
        set_wait(&m->threads[i], MACHINE_RUNNING, {nullptr, 0});
        fiber_begin(&m->threads[i].fiber, reinterpret_cast<void (*)(void)>(kernel));
    }
    for (uint32_t warp = 0; warp < m->block_threads / lanes; warp++) {
        m->warps[warp] = {};
        make_ready(m, warp, all_lanes);
    }
    m->running = pick(m, random_bit(m, m->ready_warps));
    fiber_switch(&m->main, &m->running->fiber);
    m->running = nullptr;
    if (!shared_intact(&m->shared)) {
        fail({nullptr, 0}, "the block wrote beyond its %zu bytes of shared memory", m->shared.size);
    }
    if (m->hook != nullptr) {
        m->hook(m->hook_context);
    }
}

std::vector<uint32_t> random_order(struct machine *m, uint32_t count)
{
    std::vector<uint32_t> order(count);

    for (uint32_t i = 0; i < count; i++) {
        uint32_t other = random_word(m) % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    return order;
}
} // namespace

void fiber_returned(void)
{
    struct machine *m = here();
    struct thread *self = m->running;

    if (!self->copies.empty()) {
        fail({nullptr, 0}, "the thread ends, but nobody waited for %zu of its copies",
            self->copies.size());
    }
    set_wait(self, MACHINE_ENDED, {nullptr, 0});
    m->ended++;
    if (m->ended == m->block_threads) {
        fiber_leave(&self->fiber, &m->main);
    }
    m->running = pick(m, self->number / lanes);
    fiber_leave(&self->fiber, &m->running->fiber);
}

uint32_t machine_thread(void)
{
    return here()->running->number;
}

uint32_t machine_block(void)
{
    return here()->block;
}

char *machine_shared_memory(void)
{
    return here()->shared.bytes;
}

uint32_t machine_shared_address(const void *shared, struct machine_place place)
{
    const struct machine *m = here();
    ptrdiff_t offset = static_cast<const char *>(shared) - m->shared.bytes;

    if (offset < 0 || static_cast<size_t>(offset) > m->shared.size) {
        fail(place, "the address of something that is not in shared memory");
    }
    return base + static_cast<uint32_t>(offset);
}

void machine_align(
    const void *address, uintptr_t size, const char *what, struct machine_place place)
{
    if (reinterpret_cast<uintptr_t>(address) % size != 0) {
        fail(place, "%s at %p, no multiple of %d", what, address, static_cast<int>(size));
    }
}

void machine_barrier(struct machine_place place)
{
    struct machine *m = here();
    struct thread *self = m->running;

    set_wait(self, MACHINE_BARRIER, place);
    m->at_barrier++;
    if (m->at_barrier == m->block_threads) {
        m->at_barrier = 0;
        for (uint32_t warp = 0; warp < m->block_threads / lanes; warp++) {
            check_lanes(
                m, warp, &m->threads[warp * lanes], "lanes of a warp are at different barriers");
            release_lanes(m, warp);
        }
    }
    wait_turn(m);
}

void machine_together(
    enum machine_operation operation, struct machine_part *part, struct machine_place place)
{
    struct machine *m = here();
    struct thread *self = m->running;
    uint32_t warp = self->number / lanes;
    bool load = operation == MACHINE_LOAD_MATRICES || operation == MACHINE_LOAD_TRANSPOSED;

    if (load) {
        check_address(m, part->parameter, "matrices are loaded", place);
        part->parameter -= base;
    }
    set_wait(self, operation, place);
    self->part = part;
    m->warps[warp].waiting |= 1U << self->number % lanes;
    if (m->warps[warp].waiting == all_lanes) {
        struct machine_part *parts[lanes];
        check_lanes(m, warp, self, "lanes of a warp do different things together");
        for (uint32_t lane = 0; lane < lanes; lane++) {
            parts[lane] = m->threads[warp * lanes + lane].part;
            if (!load && parts[lane]->parameter != part->parameter) {
                fail(place, "lanes of a warp shuffle by different distances");
            }
        }
        warp_together(operation, parts, m->shared.bytes);
        m->warps[warp].waiting = 0;
        release_lanes(m, warp);
    }
    wait_turn(m);
}

void machine_copy(uint32_t shared, const void *global, uint32_t bytes, struct machine_place place)
{
    struct machine *m = here();

    check_address(m, shared, "a copy arrives", place);
    machine_align(global, 16, "a copy begins", place);
    if (bytes > 16) {
        fail(place, "a copy of %" PRIu32 " bytes, more than 16", bytes);
    }
    memset(m->shared.bytes + (shared - base), 0xff, 16);
    m->running->copies.push_back({shared, global, bytes});
}

void machine_copy_commit(void)
{
    struct thread *self = here()->running;

    self->groups.push_back(self->copies.size());
}

void machine_copy_wait(size_t pending)
{
    struct machine *m = here();
    struct thread *self = m->running;

    if (self->groups.size() > pending) {
        size_t done = self->groups.size() - pending;
        size_t count = self->groups[done - 1];
        self->groups.erase(
            self->groups.begin(), self->groups.begin() + static_cast<ptrdiff_t>(done));
        perform_first(m, self, count);
    }
}

void machine_launch(machine_kernel kernel, uint32_t blocks, uint32_t threads, size_t shared_bytes,
    const struct device_group *group)
{
    struct machine *m = here();

    m->launches++;
    m->random_state = m->first_seed * UINT64_C(0xD1342543DE82EF95) + (m->launches << 32);
    shared_resize(&m->shared, shared_bytes);
    prepare_threads(m, threads, group, group_bytes(group, blocks));
    for (uint32_t block : random_order(m, blocks)) {
        run_block(m, kernel, block);
    }
}

void emulator_seed(uint64_t seed)
{
    struct machine *m = here();

    m->first_seed = seed;
    m->launches = 0;
}

void emulator_after_blocks(void (*hook)(void *context), void *context)
{
    here()->hook = hook;
    here()->hook_context = context;
}

/*
 * Sequence lengths: every kind of nonsense in them, and somebody who changes them all the time.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if defined(TESTED_EMULATED)
#include "emulator.h"
#endif
#include "executor.h"
#include "judge.h"
#include "tested.h"
#include "trial.h"

#define BATCH 4

static struct trial_spec packed_spec(void)
{
    struct trial_spec spec = trial_spec_default();
    spec.dtype = ATTN_BF16;
    spec.batch = BATCH;
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.head_dim_qk = 20;
    spec.head_dim_v = 9;
    spec.seqlen_q = 70;
    spec.seqlen_k = 70;
    spec.scale = 0.2F;
    spec.varlen_q = true;
    spec.varlen_k = true;
    spec.key_lengths = true;
    spec.window_right = 0;
    spec.softcap = 4;
    spec.dropout_threshold = 9000;
    spec.slopes = true;
    spec.dslopes = true;
    spec.sinks = true;
    spec.dsinks = true;
    spec.bias = true;
    spec.dbias = true;
    spec.dlse = true;
    spec.deterministic = true;
    return spec;
}

static void solve(const char *name, struct trial *trial, uint64_t tiles_per_launch)
{
    struct verdict verdict = tested_judge(trial, 3, tiles_per_launch);
    cr_expect(!verdict.failed, "%s, ratio %g", name, verdict.ratio);
}

/* Gives packed tensors at most 80 rows, of those that they have. */
static void cut_rows(struct attn_lengths *lengths)
{
    int64_t total = lengths->total_q < lengths->total_k ? lengths->total_q : lengths->total_k;
    total = total < 80 ? total : 80;
    lengths->total_q = total;
    lengths->total_k = total;
}

Test(kernels_lengths, nonsense_is_clamped)
{
    static const struct {
        const char *name;
        int32_t q[BATCH + 1];
        int32_t k[BATCH + 1];
        int32_t keys[BATCH];
    } cases[] = {
        {"in order", {0, 20, 40, 60, 80}, {0, 10, 40, 50, 80}, {10, 30, 10, 30}},
        {"nothing", {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}, {0, 0, 0, 0}},
        {"no queries", {0, 0, 0, 0, 0}, {0, 10, 40, 50, 80}, {10, 30, 10, 30}},
        {"no keys", {0, 20, 40, 60, 80}, {80, 80, 80, 80, 80}, {9, 9, 9, 9}},
        {"all in the last", {0, 0, 0, 0, 80}, {0, 0, 0, 0, 80}, {80, 80, 80, 80}},
        {"falling", {80, 60, 40, 20, 0}, {80, 60, 40, 20, 0}, {80, 80, 80, 80}},
        {"saw", {0, 50, 10, 60, 20}, {0, 30, 10, 80, 20}, {80, 20, 80, 5}},
        {"negative", {-1, -20, -3, INT32_MIN, -1}, {-1, 30, -1, 60, -9}, {-1, -5, 3, INT32_MIN}},
        {"beyond", {0, 1000, 2000, 3000, INT32_MAX}, {70, 79, 81, 90, INT32_MAX},
            {INT32_MAX, INT32_MAX, 1, 2}},
        {"extremes", {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX},
            {INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN},
            {INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN}},
        {"longer than the longest", {0, 80, 80, 80, 80}, {0, 75, 75, 75, 80}, {80, 80, 80, 80}},
    };

    struct trial_spec spec = packed_spec();
    spec.seqlen_q = 40;
    spec.seqlen_k = 50;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (uint64_t tiles = 0; tiles < 2; tiles++) {
            struct trial trial;
            trial_init(&trial, &spec);
            cut_rows(&trial.problem.lengths);
            memcpy(trial.lengths[TRIAL_CU_SEQLENS_Q].bytes, cases[c].q, sizeof cases[c].q);
            memcpy(trial.lengths[TRIAL_CU_SEQLENS_K].bytes, cases[c].k, sizeof cases[c].k);
            memcpy(trial.lengths[TRIAL_SEQLENS_K].bytes, cases[c].keys, sizeof cases[c].keys);
            trial_refill(&trial, &spec);
            solve(cases[c].name, &trial, tiles);
            trial_finish(&trial);
        }
    }
}

/* Sums of a vector are there for rows that there are, and no others are added. */
Test(kernels_lengths, of_a_vectors_gradient)
{
    static const int32_t starts[BATCH + 1] = {0, 3, 140, 140, 230};
    static const int32_t keys[BATCH] = {2, 130, 9, 70};
    static const bool one[][4] = {{true, false, true, false}, {false, true, true, false},
        {true, false, false, true}, {false, false, false, true}, {true, true, true, true}};

    for (int n = 0; n < 10; n++) {
        struct trial_spec spec = packed_spec();
        spec.dtype = tested_dtype(n);
        spec.seqlen_q = 230; /* four times what all blocks of the sequences are */
        spec.seqlen_k = 230;
        spec.key_lengths = n > 4;
        memcpy(spec.bias_one, one[n % 5], sizeof one[0]);
        struct trial trial;
        trial_init(&trial, &spec);
        for (enum trial_lengths side = TRIAL_CU_SEQLENS_Q; side <= TRIAL_CU_SEQLENS_K; side++) {
            memcpy(trial.lengths[side].bytes, starts, sizeof starts);
        }
        if (spec.key_lengths) {
            memcpy(trial.lengths[TRIAL_SEQLENS_K].bytes, keys, sizeof keys);
        }
        struct attn_lengths *lengths = &trial.problem.lengths;
        cr_assert(lengths->total_q >= starts[BATCH] && lengths->total_k >= starts[BATCH]);
        lengths->total_q = lengths->total_k = starts[BATCH];
        trial_refill(&trial, &spec);
        solve("a vector", &trial, (uint64_t)n % 2 * 3);
        trial_finish(&trial);
    }
}

/* -- somebody changes them ------------------------------------------------------------------ */

typedef int32_t lengths_table[TRIAL_LENGTHS][BATCH + 1];

static void scramble(lengths_table table, struct trial_rng *rng)
{
    int64_t which = trial_range(rng, 0, TRIAL_LENGTHS - 1);
    int64_t place = trial_range(rng, 0, BATCH);
    const int64_t values[] = {trial_range(rng, 0, 300), trial_range(rng, 0, 300),
        trial_range(rng, -10, 10), INT32_MIN, INT32_MAX, place * 60};
    int32_t value = (int32_t)values[trial_range(rng, 0, 5)];
    __atomic_store_n(&table[which][place], value, __ATOMIC_RELAXED);
}

/* Lets a trial take its lengths from the table. */
static void use_table(struct trial *trial, const struct trial_spec *spec, lengths_table table)
{
    struct attn_lengths *lengths = &trial->problem.lengths;
    for (int i = 0; i < TRIAL_LENGTHS; i++) {
        if (trial->lengths[i].bytes != NULL) {
            memcpy(table[i], trial->lengths[i].bytes, trial->lengths[i].size);
        }
    }
    lengths->cu_seqlens_q = spec->varlen_q ? table[TRIAL_CU_SEQLENS_Q] : NULL;
    lengths->cu_seqlens_k = spec->varlen_k ? table[TRIAL_CU_SEQLENS_K] : NULL;
    lengths->seqlens_k = table[TRIAL_SEQLENS_K];
}

static struct trial_spec spec_of_round(int round)
{
    struct trial_spec spec = packed_spec();
    spec.seed = (uint64_t)round;
    spec.dtype = tested_dtype(round);
    spec.varlen_q = round % 4 != 1;
    spec.varlen_k = round % 4 != 2;
    return spec;
}

/* What comes out is anybody's guess, but it lies where outputs belong. */
static void solve_guarded(struct executor *executor, struct trial *trial, uint64_t tiles_per_launch)
{
    bool written[TENSOR_COUNT];
    struct attn_problem forward = trial_forward(trial);
    cr_expect(executor_solve(executor, ATTN_FORWARD, &forward, 1, tiles_per_launch) == 0);
    cr_expect(executor_solve(executor, ATTN_BACKWARD, &trial->problem, 1, tiles_per_launch) == 0);
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        written[id] = trial_forward_outputs[id] || trial_backward_outputs[id];
    }
    cr_expect(trial_intact(trial, written), "%u workers, %d tiles: written elsewhere",
        executor->base.workers, (int)tiles_per_launch);
}

struct vandal {
    lengths_table table;
    atomic_bool done;
};

static void *change_lengths(void *argument)
{
    struct vandal *vandal = argument;
    struct trial_rng rng = {99};
    while (!atomic_load(&vandal->done)) {
        scramble(vandal->table, &rng);
    }
    return NULL;
}

Test(kernels_lengths, may_change_while_kernels_run)
{
    struct vandal vandal = {.done = false};
    pthread_t thread;
    cr_assert(pthread_create(&thread, NULL, change_lengths, &vandal) == 0);
    for (int round = 0; round < (ORACLE_QUICK ? 20 : 120); round++) {
        struct trial_spec spec = spec_of_round(round);
        struct executor executor;
        struct trial trial;
        executor_init(&executor, tested_family(), 1 + (unsigned)round % 3);
        trial_init(&trial, &spec);
        use_table(&trial, &spec, vandal.table);
        solve_guarded(&executor, &trial, (uint64_t)round % 3);
        executor_finish(&executor);
        trial_finish(&trial);
    }
    atomic_store(&vandal.done, true);
    pthread_join(thread, NULL);
}

/* Who changes lengths between the items, or the blocks, of a launch. */
static struct {
    lengths_table table;
    struct trial_rng rng;
    uint64_t items;
    uint64_t patience; /* items that he leaves alone */
} saboteur;

static void sabotage(void *context)
{
    (void)context;
    saboteur.items++;
    for (int i = 0; i < 20 && saboteur.items > saboteur.patience; i++) {
        scramble(saboteur.table, &saboteur.rng);
    }
}

#if defined(TESTED_EMULATED)
static void open_gate(struct executor *executor)
{
    (void)executor;
    emulator_after_blocks(sabotage, NULL);
}
#else
static void run_with_saboteur(
    const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context)
{
    (void)executor;
    for (uint64_t item = 0; item < items; item++) {
        work(context, item, 0);
        sabotage(NULL);
    }
}

static void open_gate(struct executor *executor)
{
    executor->base.run = run_with_saboteur;
}
#endif

Test(kernels_lengths, may_change_between_any_two_items)
{
    struct executor executor;
    executor_init(&executor, tested_family(), 1);
    open_gate(&executor);
    for (int round = 0; round < (ORACLE_QUICK ? 20 : 60); round++) {
        struct trial_spec spec = spec_of_round(round);
        struct trial trial;
        trial_init(&trial, &spec);
        use_table(&trial, &spec, saboteur.table);
        solve_guarded(&executor, &trial, (uint64_t)round % 2);
        trial_finish(&trial);
    }
    executor_finish(&executor);
}

/* Runs a direction, lengths changing after so many items. Returns how many items there were. */
static uint64_t solve_with_patience(struct executor *executor, struct trial *trial,
    const struct trial_spec *spec, enum attn_direction direction, uint64_t patience)
{
    use_table(trial, spec, saboteur.table);
    saboteur.items = 0;
    saboteur.patience = patience;
    struct attn_problem forward = trial_forward(trial);
    const struct attn_problem *problem = direction == ATTN_FORWARD ? &forward : &trial->problem;
    cr_expect(executor_solve(executor, direction, problem, 1, 1) == 0);
    return saboteur.items;
}

/* Once the first tiles have read the lengths, nothing depends on what becomes of them. */
Test(kernels_lengths, are_read_in_the_first_tiles_only)
{
    static const enum attn_direction directions[] = {ATTN_FORWARD, ATTN_BACKWARD};
    struct executor executor;
    executor_init(&executor, tested_family(), 1);
    open_gate(&executor);
    for (int round = 0; round < 12; round++) {
        struct trial_spec spec = spec_of_round(round);
        struct trial calm;
        struct trial changed;
        trial_init(&calm, &spec);
        trial_init(&changed, &spec);
        for (int d = 0; d < 2; d++) {
            uint64_t items =
                solve_with_patience(&executor, &calm, &spec, directions[d], UINT64_MAX);
            cr_expect(items >= 8, "only %d items", (int)items);
            solve_with_patience(&executor, &changed, &spec, directions[d], items / 4);
        }
        for (size_t i = TENSOR_OUT; i < TENSOR_COUNT; i++) {
            const struct trial_storage *a = &calm.storage[i];
            const struct trial_storage *b = &changed.storage[i];
            cr_expect(memcmp(a->bytes, b->bytes, a->size) == 0, "round %d: %s", round,
                tensor_name((enum tensor_id)i));
        }
        trial_finish(&calm);
        trial_finish(&changed);
    }
    executor_finish(&executor);
}

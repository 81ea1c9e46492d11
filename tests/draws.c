/*
 * Random problems through a kernel family, held against the float64 reference.
 *
 * Each case is a function of the seed and its own number, so that one can be run again alone.
 */
#include <argp.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "attn.h"
#include "bar.h"
#include "executor.h"
#include "trial.h"

struct options {
    const char *family;
    uint64_t count;
    uint64_t seed;
    uint64_t only;    /* UINT64_MAX: all */
    unsigned threads; /* 0: drawn */
};

/* One case: what to compute and how to run it. */
struct draw {
    struct trial_spec spec;
    enum attn_direction direction;
    bool lse; /* forward returns it */
    unsigned workers;
    uint64_t tiles_per_launch;
};

struct totals {
    uint64_t cases;
    uint64_t skipped;
    uint64_t failed;
    double worst_ratio;
    uint64_t worst_case;
};

/* -- drawing -------------------------------------------------------------------------------- */

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define PICK(rng, array) ((array)[trial_range(rng, 0, (int64_t)COUNT_OF(array) - 1)])

static int64_t draw_length(struct trial_rng *rng)
{
    static const int64_t edges[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64,
        65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257};
    switch (trial_range(rng, 0, 9)) {
    case 0:
        return trial_range(rng, 0, 3);
    case 1:
    case 2:
    case 3:
    case 4:
        return PICK(rng, edges);
    default:
        return trial_range(rng, 1, 300);
    }
}

static int32_t draw_head_dim(struct trial_rng *rng)
{
    static const int32_t edges[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 48, 59, 63, 64,
        65, 80, 96, 111, 127, 128, 129, 160, 192, 224, 255, 256};
    return trial_chance(rng, 3) ? (int32_t)trial_range(rng, 1, ATTN_MAX_HEAD_DIM)
                                : PICK(rng, edges);
}

static void draw_shape(struct trial_rng *rng, struct trial_spec *spec)
{
    static const int32_t ratios[] = {1, 1, 2, 3, 4, 8};
    spec->batch = trial_chance(rng, 50) ? 0 : (int32_t)trial_range(rng, 1, 3);
    spec->heads_kv = (int32_t)trial_range(rng, 1, 3);
    spec->heads_q = spec->heads_kv * PICK(rng, ratios);
    spec->head_dim_qk = draw_head_dim(rng);
    spec->head_dim_v = trial_chance(rng, 2) ? spec->head_dim_qk : draw_head_dim(rng);
    spec->seqlen_q = draw_length(rng);
    spec->seqlen_k = trial_chance(rng, 3) ? spec->seqlen_q : draw_length(rng);
}

/* The reference is slow: large lengths come with few heads. */
static void bound_work(struct trial_spec *spec)
{
    const int64_t budget = 6000000;
    for (;;) {
        int64_t work = spec->batch * spec->heads_q * spec->seqlen_q * spec->seqlen_k *
                       (spec->head_dim_qk + spec->head_dim_v);
        if (work <= budget) {
            return;
        }
        if (spec->batch > 1) {
            spec->batch--;
        } else if (spec->heads_kv > 1) {
            spec->heads_q -= spec->heads_q / spec->heads_kv;
            spec->heads_kv--;
        } else if (spec->heads_q > 2) {
            spec->heads_q--;
        } else {
            return;
        }
    }
}

static int64_t draw_window(struct trial_rng *rng)
{
    static const int64_t edges[] = {ATTN_UNBOUNDED, 0, 1, 15, 16, 17, 63, 64, 300, INT64_MAX};
    return trial_chance(rng, 2) ? PICK(rng, edges) : trial_range(rng, 0, 200);
}

static void draw_mask(struct trial_rng *rng, struct trial_spec *spec)
{
    spec->alignment = trial_chance(rng, 2) ? ATTN_TOP_LEFT : ATTN_BOTTOM_RIGHT;
    switch (trial_range(rng, 0, 3)) {
    case 0:
        break;
    case 1:
        spec->window_right = 0;
        break;
    default:
        spec->window_left = draw_window(rng);
        spec->window_right = draw_window(rng);
    }
}

static void draw_layouts(struct trial_rng *rng, struct trial_spec *spec)
{
    spec->packed = spec->seqlen_q == spec->seqlen_k && trial_chance(rng, 4);
    for (enum tensor_id id = 0; id < TENSOR_COUNT && !trial_chance(rng, 4); id++) {
        int64_t layouts = id < TENSOR_OUT ? TRIAL_INPUT_LAYOUTS : TRIAL_OUTPUT_LAYOUTS;
        spec->layout[id] = (enum trial_layout)trial_range(rng, 0, layouts - 1);
    }
}

static void draw_values(struct trial_rng *rng, struct trial_spec *spec)
{
    static const double query_sizes[] = {1, 1, 1, 0.1, 10, 100};
    static const double value_sizes[] = {1, 8, 0.1, 30};
    spec->query_size = PICK(rng, query_sizes);
    spec->value_size = PICK(rng, value_sizes);
    spec->values = trial_chance(rng, 8) ? (enum trial_values)trial_range(rng, 0, TRIAL_VALUES - 1)
                                        : TRIAL_NORMAL;
    float usual = 1.0F / sqrtf((float)spec->head_dim_qk);
    spec->scale = trial_chance(rng, 8) ? -0.7F * usual : usual;
    spec->dlse = trial_chance(rng, 3);
}

static struct draw draw_case(uint64_t seed, uint64_t number)
{
    struct trial_rng rng = {seed * UINT64_C(0xD1342543DE82EF95) + number};
    struct draw draw = {.spec = trial_spec_default()};
    struct trial_spec *spec = &draw.spec;
    draw_shape(&rng, spec);
    bound_work(spec);
    draw_mask(&rng, spec);
    draw_layouts(&rng, spec);
    draw_values(&rng, spec);
    spec->dtype = (enum attn_dtype)trial_range(&rng, ATTN_FP16, ATTN_FP32);
    spec->seed = trial_next(&rng);
    draw.direction = trial_chance(&rng, 3) ? ATTN_FORWARD : ATTN_BACKWARD;
    draw.lse = draw.direction == ATTN_BACKWARD || trial_chance(&rng, 2);
    draw.workers = (unsigned)trial_range(&rng, 1, 4);
    draw.tiles_per_launch = trial_chance(&rng, 3) ? (uint64_t)trial_range(&rng, 1, 5) : 0;
    return draw;
}

/* -- judging -------------------------------------------------------------------------------- */

struct verdict {
    double ratio;
    bool failed;
};

static void complain(struct verdict *verdict, const char *what, const char *tensor)
{
    printf("  %s%s%s\n", what, *tensor != '\0' ? " " : "", tensor);
    verdict->failed = true;
}

static void judge_tensor(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum tensor_id id)
{
    struct bar bar = bar_tensor(reference, problem, id);
    if (bar.ratio > verdict->ratio) {
        verdict->ratio = bar.ratio;
    }
    if (!(bar.ratio <= 1)) {
        struct tensor tensor = tensor_of(problem, id);
        printf("  %s[%" PRId64 "] = %.9g, not %.9g: error %.3g, allowed %.3g\n", tensor_name(id),
            bar.worst, tensor_get(&tensor, bar.worst), reference->exact[id][bar.worst], bar.error,
            bar.limit);
        verdict->failed = true;
    }
}

/* Rows that see no key are exactly zero, whatever the bar allows. */
static void judge_empty_rows(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum tensor_id id)
{
    struct tensor tensor = tensor_of(problem, id);
    for (int64_t i = 0; i < reference->count[id]; i++) {
        bool empty = reference->exact[TENSOR_LSE][i / tensor.columns] == -INFINITY;
        if (empty && tensor_get(&tensor, i) != 0) {
            complain(verdict, "a row without keys is not zero in", tensor_name(id));
            return;
        }
    }
}

static void judge_forward(
    struct verdict *verdict, const struct reference *reference, const struct attn_problem *problem)
{
    judge_tensor(verdict, reference, problem, TENSOR_OUT);
    judge_empty_rows(verdict, reference, problem, TENSOR_OUT);
    if (problem->lse.data != NULL) {
        judge_tensor(verdict, reference, problem, TENSOR_LSE);
    }
}

static void judge_backward(
    struct verdict *verdict, const struct reference *reference, const struct attn_problem *problem)
{
    judge_tensor(verdict, reference, problem, TENSOR_DQ);
    judge_tensor(verdict, reference, problem, TENSOR_DK);
    judge_tensor(verdict, reference, problem, TENSOR_DV);
    judge_empty_rows(verdict, reference, problem, TENSOR_DQ);
}

static void compute(struct verdict *verdict, const struct attn_family *family,
    const struct draw *draw, struct trial *trial)
{
    struct executor executor;
    executor_init(&executor, family, draw->workers);
    struct reference *reference = reference_create(draw->direction, &trial->problem);
    struct attn_problem forward = trial_forward(trial);
    if (!draw->lse) {
        forward.lse.data = NULL;
    }
    if (executor_solve(&executor, ATTN_FORWARD, &forward, 1, draw->tiles_per_launch) != 0) {
        complain(verdict, "forward returned an error", "");
    }
    bool written[TENSOR_COUNT] = {[TENSOR_OUT] = true, [TENSOR_LSE] = draw->lse};
    if (!trial_intact(trial, written)) {
        complain(verdict, "forward wrote outside its outputs", "");
    }
    judge_forward(verdict, reference, &forward);
    if (draw->direction == ATTN_BACKWARD) {
        trial_snapshot(trial);
        if (executor_solve(&executor, ATTN_BACKWARD, &trial->problem, 1, draw->tiles_per_launch) !=
            0) {
            complain(verdict, "backward returned an error", "");
        }
        if (!trial_intact(trial, trial_backward_outputs)) {
            complain(verdict, "backward wrote outside its outputs", "");
        }
        judge_backward(verdict, reference, &trial->problem);
    }
    reference_destroy(reference);
    executor_finish(&executor);
}

static void describe(const struct options *options, const struct draw *draw, uint64_t number)
{
    static const char *const dtypes[] = {"", "fp16", "bf16", "fp32"};
    const struct trial_spec *s = &draw->spec;
    printf("  %s %s batch=%d heads=%d/%d dims=%d/%d lengths=%" PRId64 "/%" PRId64 " window=%" PRId64
           "/%" PRId64 " %s scale=%g q=%g v=%g values=%d packed=%d dlse=%d lse=%d workers=%u"
           " tiles_per_launch=%" PRIu64 " layouts=",
        dtypes[s->dtype], draw->direction == ATTN_FORWARD ? "forward" : "backward", s->batch,
        s->heads_q, s->heads_kv, s->head_dim_qk, s->head_dim_v, s->seqlen_q, s->seqlen_k,
        s->window_left, s->window_right,
        s->alignment == ATTN_TOP_LEFT ? "top-left" : "bottom-right", (double)s->scale,
        s->query_size, s->value_size, (int)s->values, s->packed, s->dlse, draw->lse, draw->workers,
        draw->tiles_per_launch);
    for (enum tensor_id id = 0; id < TENSOR_COUNT; id++) {
        printf("%d", (int)s->layout[id]);
    }
    printf("\n  again: draws --family %s --seed %" PRIu64 " --case %" PRIu64 " --threads %u\n",
        options->family, options->seed, number, draw->workers);
}

static void run_case(const struct options *options, const struct attn_family *family,
    uint64_t number, struct totals *totals)
{
    struct draw draw = draw_case(options->seed, number);
    draw.workers = options->threads > 0 ? options->threads : draw.workers;
    struct trial trial;
    trial_init(&trial, &draw.spec);
    struct attn_problem forward = trial_forward(&trial);
    const char *refusal = attn_unsupported(family, ATTN_FORWARD, &forward);
    if (refusal == NULL && draw.direction == ATTN_BACKWARD) {
        refusal = attn_unsupported(family, ATTN_BACKWARD, &trial.problem);
    }
    totals->cases++;
    if (refusal != NULL) {
        printf("case %" PRIu64 " skipped: %s\n", number, refusal);
        totals->skipped++;
        trial_finish(&trial);
        return;
    }
    struct verdict verdict = {0};
    compute(&verdict, family, &draw, &trial);
    if (verdict.failed || options->only == number) {
        printf("case %" PRIu64 " %s, ratio %.3f\n", number, verdict.failed ? "FAILED" : "passed",
            verdict.ratio);
        describe(options, &draw, number);
    }
    totals->failed += verdict.failed ? 1 : 0;
    if (verdict.ratio > totals->worst_ratio) {
        totals->worst_ratio = verdict.ratio;
        totals->worst_case = number;
    }
    trial_finish(&trial);
}

/* -- the program ---------------------------------------------------------------------------- */

static uint64_t number_of(const char *text, struct argp_state *state)
{
    char *end = NULL;
    unsigned long long number = strtoull(text, &end, 0);
    if (*text == '\0' || *end != '\0') {
        argp_error(state, "'%s' is not a number", text);
    }
    return number;
}

static error_t on_option(int key, char *text, struct argp_state *state)
{
    struct options *options = state->input;
    switch (key) {
    case 'f':
        options->family = text;
        return 0;
    case 'n':
        options->count = number_of(text, state);
        return 0;
    case 's':
        options->seed = number_of(text, state);
        return 0;
    case 'c':
        options->only = number_of(text, state);
        return 0;
    case 't':
        options->threads = (unsigned)number_of(text, state);
        if (options->threads > EXECUTOR_MAX_WORKERS) {
            argp_error(state, "at most %d threads", EXECUTOR_MAX_WORKERS);
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char **argv)
{
    static const struct argp_option list[] = {
        {"family", 'f', "NAME", 0, "Kernel family (cpu)", 0},
        {"count", 'n', "N", 0, "Number of cases (500)", 0},
        {"seed", 's', "S", 0, "Seed of all cases (1)", 0},
        {"case", 'c', "ID", 0, "Run this case alone and describe it", 0},
        {"threads", 't', "N", 0, "Workers of the executor (drawn for each case)", 0},
        {0},
    };
    const struct argp argp = {list, on_option, NULL,
        "Holds random problems against a float64 reference.", NULL, NULL, NULL};
    struct options options = {"cpu", 500, 1, UINT64_MAX, 0};
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct attn_family *family = attn_family_find(options.family);
    if (family == NULL) {
        fprintf(stderr, "draws: no kernel family '%s' in this build\n", options.family);
        return 1;
    }
    struct totals totals = {0};
    bool alone = options.only != UINT64_MAX;
    uint64_t first = alone ? options.only : 0;
    uint64_t end = alone ? options.only + 1 : options.count;
    for (uint64_t number = first; number < end; number++) {
        run_case(&options, family, number, &totals);
    }
    printf("draws: family=%s seed=%" PRIu64 " cases=%" PRIu64 " skipped=%" PRIu64 " failed=%" PRIu64
           " worst_ratio=%.3f worst_case=%" PRIu64 "\n",
        options.family, options.seed, totals.cases, totals.skipped, totals.failed,
        totals.worst_ratio, totals.worst_case);
    return totals.failed == 0 && totals.cases > totals.skipped ? 0 : 1;
}

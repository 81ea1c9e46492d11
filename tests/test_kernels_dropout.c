/*
 * Which probabilities dropout keeps: known answers, statistics, and the masks that kernels really use.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device/philox.h"
#include "executor.h"
#include "formula.h"
#include "tested.h"
#include "trial.h"

/* -- the generator -------------------------------------------------------------------------- */

Test(kernels_dropout, philox_gives_the_known_answers)
{
    static const struct {
        struct philox_stream stream;
        uint32_t query;
        uint32_t key;
        uint32_t answer[4];
    } cases[] = {
        {{0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{UINT64_MAX, UINT32_MAX, UINT32_MAX}, UINT32_MAX, UINT32_MAX,
            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{UINT64_C(0x299f31d0a4093822), 0x03707344, 0x13198a2e}, 0x243f6a88, 0x85a308d3,
            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct philox_values draw = philox_draw(cases[c].stream, cases[c].query, cases[c].key);
        cr_expect(memcmp(draw.word, cases[c].answer, sizeof draw.word) == 0, "case %zu", c);
    }
}

Test(kernels_dropout, decisions_are_those_of_the_rule)
{
    struct trial_rng rng = {7};
    for (int n = 0; n < 100000; n++) {
        int64_t far = n % 2 == 0 ? 100 : INT64_C(1) << 31;
        int64_t row = trial_range(&rng, 0, far);
        int64_t key = trial_range(&rng, 0, far);
        struct philox_stream stream = {
            trial_next(&rng), (uint32_t)trial_next(&rng), (uint32_t)trial_next(&rng)};
        struct attn_problem p = {.dropout_threshold = (uint32_t)trial_range(&rng, 0, 65535),
            .dropout_offset = stream.offset,
            .dropout_seed = stream.seed};
        cr_assert(philox_keeps(stream, row, key, p.dropout_threshold) ==
                      formula_kept(&p, row, key, stream.head),
            "(%lld, %lld)", (long long)row, (long long)key);
    }
}

/* -- statistics ----------------------------------------------------------------------------- */

#define SIDE 512

/* 1 - p or -p: sums to nothing on average. */
static double deviation(struct philox_stream stream, int64_t i, int64_t j, uint32_t threshold)
{
    double p = 1 - threshold / 65536.0;
    return (philox_keeps(stream, i, j, threshold) ? 1 : 0) - p;
}

Test(kernels_dropout, as_many_are_kept_as_should)
{
    static const uint32_t thresholds[] = {1, 655, 6554, 32768, 58982, 65535};

    for (size_t t = 0; t < sizeof thresholds / sizeof thresholds[0]; t++) {
        double p = thresholds[t] / 65536.0;
        double sum = 0;
        for (int64_t i = 0; i < SIDE; i++) {
            for (int64_t j = 0; j < SIDE; j++) {
                sum += deviation((struct philox_stream){11, 0, 3}, i, j, thresholds[t]);
            }
        }
        double sigma = sqrt(SIDE * SIDE * p * (1 - p));
        cr_expect(fabs(sum) < 5 * sigma, "threshold %u: %g sigma", thresholds[t], sum / sigma);
    }
}

Test(kernels_dropout, neighbours_do_not_know_each_other)
{
    static const struct {
        int64_t rows;
        int64_t keys;
        uint32_t heads;
        uint32_t offset;
        uint64_t seed;
    } steps[] = {{0, 1, 0, 0, 0}, {1, 0, 0, 0, 0}, {1, 1, 0, 0, 0}, {0, 2, 0, 0, 0},
        {0, 8, 0, 0, 0}, {8, 0, 0, 0, 0}, {8, 8, 0, 0, 0}, {16, 0, 0, 0, 0}, {0, 16, 0, 0, 0},
        {0, 0, 1, 0, 0}, {0, 0, 0, 1, 0}, {0, 0, 0, 0, 1}, {0, 0, 0, 0, UINT64_C(1) << 32}};

    const uint32_t threshold = 32768;

    for (size_t s = 0; s < sizeof steps / sizeof steps[0]; s++) {
        struct philox_stream here = {5, 0, 0};
        struct philox_stream there = {5 + steps[s].seed, steps[s].offset, steps[s].heads};
        double sum = 0;
        for (int64_t i = 0; i < SIDE; i++) {
            for (int64_t j = 0; j < SIDE; j++) {
                sum += deviation(here, i, j, threshold) *
                       deviation(there, i + steps[s].rows, j + steps[s].keys, threshold);
            }
        }
        double sigma = 0.25 * SIDE; /* each product is a quarter, with either sign */
        cr_expect(fabs(sum) < 5 * sigma, "step %zu: %g sigma", s, sum / sigma);
    }
}

/* -- masks in kernels ----------------------------------------------------------------------- */

/*
 * Equal scores, values that are rows of the unit matrix: out (forward) holds the mask by query and
 * key; with such douts dv (backward) holds it by key and query.
 */
static void reveal(struct trial *trial, bool backward)
{
    enum tensor_id id = backward ? TENSOR_DOUT : TENSOR_V;
    struct tensor units = tensor_of(&trial->problem, id);
    for (int64_t i = 0; i < tensor_elements(&units); i++) {
        int64_t row = i / (units.heads * units.columns) % units.rows;
        tensor_set(&units, i, row == i % units.columns ? 1 : 0);
    }
    struct attn_problem forward = trial_forward(trial);
    struct executor executor;
    executor_init(&executor, tested_family(), 2);
    cr_expect(executor_solve(&executor, ATTN_FORWARD, &forward, 1, 0) == 0);
    if (backward) {
        cr_expect(executor_solve(&executor, ATTN_BACKWARD, &trial->problem, 1, 0) == 0);
    }
    executor_finish(&executor);
}

static void expect_mask(const struct trial *trial, bool backward)
{
    const struct attn_problem *p = &trial->problem;
    struct tensor result = tensor_of(p, backward ? TENSOR_DV : TENSOR_OUT);
    double kept = 65536.0 / (65536 - p->dropout_threshold) / (double)p->seqlen_k;
    int64_t wrong = 0;
    for (int64_t i = 0; i < tensor_elements(&result); i++) {
        int64_t column = i % result.columns;
        int64_t head = i / result.columns % result.heads;
        int64_t row = i / (result.columns * result.heads) % result.rows;
        int64_t batch = i / (result.columns * result.heads * result.rows);
        uint32_t lane = (uint32_t)(batch * p->heads_q + head);
        bool keeps = formula_kept(p, backward ? column : row, backward ? row : column, lane);
        double expected = column < (backward ? p->seqlen_q : p->seqlen_k) && keeps ? kept : 0;
        wrong += fabs(tensor_get(&result, i) - expected) <= 4e-3 * kept ? 0 : 1;
    }
    cr_expect(wrong == 0, "%s of %dx%d, dtype %d: %d wrong", backward ? "backward" : "forward",
        (int)p->seqlen_q, (int)p->seqlen_k, (int)p->dtype, (int)wrong);
}

/* Any shape shows the same part of the one mask that the coordinates make. */
Test(kernels_dropout, masks_are_made_of_coordinates_in_both_directions)
{
    static const int64_t lengths[][2] = {{1, 1}, {17, 5}, {64, 64}, {100, 33}, {200, 250}};

    for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
        for (int n = 0; n < 6; n++) {
            struct trial_spec spec = trial_spec_default();
            spec.dtype = tested_dtype(n);
            spec.batch = 2;
            spec.heads_q = 3;
            spec.heads_kv = 3;
            spec.seqlen_q = lengths[l][0];
            spec.seqlen_k = lengths[l][1];
            spec.head_dim_v = 250;
            spec.values = TRIAL_ZERO_KEYS;
            spec.dropout_threshold = 26214;
            spec.dropout_seed = UINT64_C(0xfedcba9876543210);
            spec.dropout_offset = 9;
            struct trial trial;
            trial_init(&trial, &spec);
            reveal(&trial, n % 2 == 1);
            expect_mask(&trial, n % 2 == 1);
            trial_finish(&trial);
        }
    }
}

/*
 * The gradient of a bias that is a vector or one number, which kernels have ways of their own to: it is
 * what a matrix has, summed up.
 */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tested.h"
#include "trial.h"

/* -- a vector and the matrix ---------------------------------------------------------------------- */

/* Makes bias the same everywhere, and all other inputs those of another trial. */
static void fill_alike(struct trial *trial, const struct trial *from)
{
    for (enum tensor_id id = TENSOR_Q; id <= TENSOR_DLSE; id++) {
        struct tensor to = tensor_of(&trial->problem, id);
        struct tensor other = tensor_of(&from->problem, id);
        for (int64_t i = 0; to.view.data != NULL && i < tensor_elements(&to); i++) {
            tensor_set(&to, i, id == TENSOR_BIAS ? -0.25 : tensor_get(&other, i));
        }
    }
}

/* Which of the vector's elements an element of the matrix is a part of. */
static int64_t part_of(const struct tensor *vector, const struct tensor *matrix, int64_t element)
{
    int64_t key = element % matrix->columns;
    int64_t head = element / matrix->columns % matrix->heads;
    int64_t row = element / (matrix->columns * matrix->heads) % matrix->rows;
    int64_t batch = element / (matrix->columns * matrix->heads * matrix->rows);
    int64_t at = vector->batch == 1 ? 0 : batch;
    at = at * vector->rows + (vector->rows == 1 ? 0 : row);
    at = at * vector->heads + (vector->heads == 1 ? 0 : head);
    return at * vector->columns + (vector->columns == 1 ? 0 : key);
}

/* How many elements of the vector are not the sums of the matrix. tolerance: of the root of the sum of
 * squares of what is summed up. */
static int64_t wrong_elements(
    const struct trial *summed, const struct trial *whole, double tolerance)
{
    struct tensor vector = tensor_of(&summed->problem, TENSOR_DBIAS);
    struct tensor matrix = tensor_of(&whole->problem, TENSOR_DBIAS);
    double *sums = calloc((size_t)tensor_elements(&vector), sizeof *sums);
    double *squares = calloc((size_t)tensor_elements(&vector), sizeof *squares);
    int64_t wrong = 0;
    cr_assert(sums != NULL && squares != NULL);
    for (int64_t i = 0; i < tensor_elements(&matrix); i++) {
        double ds = tensor_get(&matrix, i);
        sums[part_of(&vector, &matrix, i)] += ds;
        squares[part_of(&vector, &matrix, i)] += ds * ds;
    }
    for (int64_t i = 0; i < tensor_elements(&vector); i++) {
        double error = fabs(tensor_get(&vector, i) - sums[i]);
        wrong += error <= tolerance * sqrt(squares[i]) ? 0 : 1;
    }
    free(squares);
    free(sums);
    return wrong;
}

/* shape: which of batch, head, query and key have extent 1. */
static int64_t wrong_of_shape(struct trial_spec spec, unsigned shape, const struct trial *whole)
{
    struct trial summed;
    for (unsigned dim = 0; dim < 4; dim++) {
        spec.bias_one[dim] = (shape >> dim & 1) != 0;
    }
    trial_init(&summed, &spec);
    fill_alike(&summed, whole);
    cr_assert(tested_compute(&summed, tested_family(), tested_family(), 1));
    /* Without sinks a query's sum is not made of ds; all others are of the same numbers as the matrix. */
    int64_t wrong = wrong_elements(&summed, whole, spec.bias_one[3] && !spec.sinks ? 0.1 : 1e-3);
    if (wrong > 0) {
        (void)fprintf(
            stderr, "shape %u, dtype %d: %" PRId64 " wrong\n", shape, (int)spec.dtype, wrong);
    }
    trial_finish(&summed);
    return wrong;
}

/* Of all shapes. sink: what all sinks are, if there are any; 0: as they were drawn. */
static int64_t wrong_sums(const struct trial_spec *features, double sink)
{
    static const unsigned shapes[] = {
        4, 7, 6, 8, 11, 9, 12, 15}; /* queries or keys are summed up */
    struct trial_spec spec = *features;
    struct trial whole;
    int64_t wrong = 0;
    spec.bias = spec.dbias = spec.bias_fp32 = true;
    trial_init(&whole, &spec);
    fill_alike(&whole, &whole);
    struct tensor sinks = tensor_of(&whole.problem, TENSOR_SINKS);
    for (int64_t i = 0; sink != 0 && i < tensor_elements(&sinks); i++) {
        tensor_set(&sinks, i, sink);
    }
    cr_assert(tested_compute(&whole, tested_family(), tested_family(), 1));
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        wrong += wrong_of_shape(spec, shapes[i], &whole);
    }
    trial_finish(&whole);
    return wrong;
}

static struct trial_spec general_spec(enum attn_dtype dtype)
{
    struct trial_spec spec = tested_spec(dtype);
    spec.softcap = 2;
    spec.dropout_threshold = 9000;
    spec.slopes = true;
    spec.sinks = true;
    return spec;
}

Test(kernels_dbias, a_vector_has_the_sums_of_a_matrix)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = tested_spec(tested_dtype(d));
        cr_expect_eq(wrong_sums(&spec, 0), 0, "plain");
        spec.window_left = 30;
        spec.window_right = 5;
        spec.deterministic = false;
        cr_expect_eq(wrong_sums(&spec, 0), 0, "window");
        spec.head_dim_v = 72 + 80 * d;
        spec.sinks = true;
        cr_expect_eq(wrong_sums(&spec, 0), 0, "sinks, wider heads");
    }
}

/* So little that 1 less the sink's probability does not tell. */
Test(kernels_dbias, a_sink_leaves_little)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = tested_spec(tested_dtype(d));
        spec.sinks = true;
        cr_expect_eq(wrong_sums(&spec, 16), 0, "a great sink");
        spec.dlse = !spec.dlse;
        cr_expect_eq(wrong_sums(&spec, 16), 0, "a great sink, dlse otherwise");
    }
}

Test(kernels_dbias, sums_are_of_ds_before_the_cap)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = general_spec(tested_dtype(d));
        cr_expect_eq(wrong_sums(&spec, 0), 0, "general");
        spec.head_dim_qk = 128;
        spec.window_right = 0;
        cr_expect_eq(wrong_sums(&spec, 0), 0, "general, causal");
    }
}

Test(kernels_dbias, sums_are_of_each_sequence)
{
    for (int d = 0; d < TESTED_DTYPES; d++) {
        struct trial_spec spec = general_spec(tested_dtype(d));
        spec.softcap = 0;
        spec.varlen_q = true;
        spec.varlen_k = true;
        spec.seed = 3 + (uint64_t)d;
        cr_expect_eq(wrong_sums(&spec, 0), 0, "packed");
        spec.varlen_q = spec.varlen_k = false;
        spec.key_lengths = true;
        cr_expect_eq(wrong_sums(&spec, 0), 0, "key lengths");
    }
}

/* -- what is no number ---------------------------------------------------------------------------- */

static struct trial_spec queries_spec(int n)
{
    struct trial_spec spec = tested_spec(tested_dtype(n));
    spec.sinks = n >= TESTED_DTYPES;
    spec.bias = true;
    spec.dbias = true;
    spec.bias_one[3] = true;
    return spec;
}

static void spoil(const struct trial *trial, enum tensor_id id, int64_t row, double value)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    for (int64_t i = 0; i < tensor_elements(&tensor); i++) {
        if (i / (tensor.columns * tensor.heads) % tensor.rows == row) {
            tensor_set(&tensor, i, value);
        }
    }
}

/* What the elements of dbias of a query are: of those before `first` 0, of `nan` NaN, else numbers. */
static void expect_queries(const struct trial *trial, int n, int64_t first, int64_t nan)
{
    struct tensor dbias = tensor_of(&trial->problem, TENSOR_DBIAS);
    int64_t wrong = 0;
    for (int64_t i = 0; i < tensor_elements(&dbias); i++) {
        int64_t row = i / dbias.heads % dbias.rows;
        double ours = tensor_get(&dbias, i);
        wrong += (row < first ? ours == 0 : isnan(ours) == (row == nan)) ? 0 : 1;
    }
    cr_expect(wrong == 0, "case %d: %d of %d", n, (int)wrong, (int)tensor_elements(&dbias));
}

/* They see no key: only the sink has a probability of theirs. */
Test(kernels_dbias, of_a_query_that_sees_nothing_is_0)
{
    for (int n = 0; n < 2 * TESTED_DTYPES; n++) {
        struct trial_spec spec = queries_spec(n);
        struct trial trial;
        spec.seqlen_q = 110;
        spec.window_right = 0; /* 20 see no key */
        trial_init(&trial, &spec);
        for (int64_t row = 0; row < 12; row++) { /* others share a block of family cpu's */
            spoil(&trial, row % 2 == 0 ? TENSOR_DOUT : TENSOR_DLSE, row, NAN);
        }
        cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
        expect_queries(&trial, n, 20, -1);
        trial_finish(&trial);
    }
}

/* And so it is where a bias of -inf takes the keys away. */
Test(kernels_dbias, of_a_query_of_the_sinks_alone_is_0)
{
    for (int n = TESTED_DTYPES; n < 2 * TESTED_DTYPES; n++) {
        struct trial_spec spec = queries_spec(n);
        struct trial trial;
        trial_init(&trial, &spec);
        for (int64_t row = 0; row < 9; row++) {
            spoil(&trial, TENSOR_BIAS, row, -INFINITY);
        }
        cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
        expect_queries(&trial, n, 9, -1);
        trial_finish(&trial);
    }
}

/* One key has all of the probability, however far its score is, or the sink has. */
Test(kernels_dbias, of_a_query_far_away_is_dlse)
{
    for (int n = 0; n < 2 * TESTED_DTYPES; n++) {
        struct trial_spec spec = queries_spec(n);
        struct trial trial;
        int64_t wrong = 0;
        spec.bias_fp32 = true;
        spec.seqlen_k = 1;
        trial_init(&trial, &spec);
        for (int64_t row = 0; row < spec.seqlen_q; row++) {
            spoil(&trial, TENSOR_BIAS, row, row % 2 == 0 ? -1e30 : -1e7);
        }
        cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
        struct tensor dbias = tensor_of(&trial.problem, TENSOR_DBIAS);
        struct tensor dlse = tensor_of(&trial.problem, TENSOR_DLSE);
        for (int64_t i = 0; i < tensor_elements(&dbias); i++) {
            double expected = spec.sinks ? 0 : tensor_get(&dlse, i);
            wrong += fabs(tensor_get(&dbias, i) - expected) < 0.1 ? 0 : 1;
        }
        cr_expect(wrong == 0, "case %d: %d of %d", n, (int)wrong, (int)tensor_elements(&dbias));
        trial_finish(&trial);
    }
}

Test(kernels_dbias, of_a_query_that_is_nan_is_nan)
{
    static const enum tensor_id inputs[] = {TENSOR_Q, TENSOR_DOUT, TENSOR_DLSE};

    for (int n = 0; n < 2 * TESTED_DTYPES; n++) {
        for (size_t t = 0; t < sizeof inputs / sizeof inputs[0]; t++) {
            struct trial_spec spec = queries_spec(n);
            struct trial trial;
            trial_init(&trial, &spec);
            spoil(&trial, inputs[t], 33, NAN);
            cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
            expect_queries(&trial, n, 0, 33);
            trial_finish(&trial);
        }
    }
}

/* A key that it does not see has a number, but for family cpu near those that it sees. */
#if defined(TESTED_EMULATED)
#define NEAR 0
#else
#define NEAR 32
#endif

Test(kernels_dbias, of_keys_is_nan_where_a_query_is_that_sees_them)
{
    for (int n = 0; n < 2 * TESTED_DTYPES; n++) {
        struct trial_spec spec =
            n < TESTED_DTYPES ? tested_spec(tested_dtype(n)) : general_spec(tested_dtype(n));
        struct trial trial;
        int64_t wrong = 0;
        spec.bias = spec.dbias = true;
        spec.bias_one[2] = true;
        spec.seqlen_q = spec.seqlen_k;
        spec.window_left = 10;
        spec.window_right = 3;
        trial_init(&trial, &spec);
        spoil(&trial, n % 3 == 0 ? TENSOR_DOUT : TENSOR_Q, 33, NAN);
        cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
        struct tensor dbias = tensor_of(&trial.problem, TENSOR_DBIAS);
        for (int64_t i = 0; i < tensor_elements(&dbias); i++) {
            int64_t key = i % dbias.columns;
            bool seen = key >= 33 - 10 && key <= 33 + 3;
            bool near = key >= 33 - 10 - NEAR && key <= 33 + 3 + NEAR;
            bool nan = isnan(tensor_get(&dbias, i));
            wrong += nan ? !near : seen;
        }
        cr_expect(wrong == 0, "case %d: %d of %d", n, (int)wrong, (int)tensor_elements(&dbias));
        trial_finish(&trial);
    }
}

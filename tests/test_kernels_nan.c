/*
 * NaN and infinities stay where they belong: what no gradient is made of may be anything, and what one
 * is made of is not hidden.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "executor.h"
#include "tested.h"
#include "trial.h"

/* -- specs ---------------------------------------------------------------------------------------- */

enum features {
    PLAIN,
    MATRIX, /* a bias of the tensors' dtype */
    MATRIX_FP32,
    MATRIX_SHARED, /* by batches and heads */
    KEY_VECTOR,
    QUERY_VECTOR,
    SLOPES,
    SINKS,
    GENERAL, /* several of them, and dropout */
    FEATURES,
};

static void add_bias(struct trial_spec *spec, enum features features)
{
    spec->bias = features != PLAIN && features != SLOPES && features != SINKS;
    spec->dbias = spec->bias;
    spec->bias_fp32 = features == MATRIX_FP32;
    spec->bias_one[0] = features == MATRIX_SHARED || features == KEY_VECTOR;
    spec->bias_one[1] = features == MATRIX_SHARED;
    spec->bias_one[2] = features == KEY_VECTOR;
    spec->bias_one[3] = features == QUERY_VECTOR;
}

static struct trial_spec spec_of(enum features features, int n)
{
    static const int32_t dims[] = {64, 256, 128};
    struct trial_spec spec = trial_spec_default();
    spec.dtype = tested_dtype(n);
    spec.batch = 2;
    spec.heads_q = 2;
    spec.heads_kv = 1 + n % 2;
    spec.aligned = n % 4 < 2; /* each of these is loaded in its own way */
    spec.head_dim_qk = spec.aligned ? dims[n % 3] : 24;
    spec.head_dim_v = spec.aligned ? dims[n % 3] : 40;
    spec.scale = 0.2F;
    spec.deterministic = n % 5 < 2;
    add_bias(&spec, features);
    spec.slopes = features == SLOPES || features == GENERAL;
    spec.dslopes = spec.slopes;
    spec.sinks = features == SINKS || features == GENERAL;
    spec.dsinks = spec.sinks;
    spec.softcap = features == GENERAL ? 3 : 0;
    spec.dropout_threshold = features == GENERAL ? 9000 : 0;
    return spec;
}

/* -- running -------------------------------------------------------------------------------------- */

/* Sets an element of each head's row, of all batches. */
static void spoil_row(struct trial *trial, enum tensor_id id, int64_t row, double value)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    int64_t lines = tensor_elements(&tensor) / tensor.columns;
    for (int64_t line = 0; line < lines; line++) {
        if (line / tensor.heads % tensor.rows == row) {
            tensor_set(&tensor, line * tensor.columns + 7, value);
        }
    }
}

static void expect_same(const char *name, enum features features, int n,
    const struct trial *expected, const struct trial *ours)
{
    for (enum tensor_id id = TENSOR_DQ; id < TENSOR_COUNT; id++) {
        struct tensor a = tensor_of(&expected->problem, id);
        struct tensor b = tensor_of(&ours->problem, id);
        int64_t wrong = 0;
        if (a.view.data == NULL) {
            continue;
        }
        for (int64_t i = 0; i < tensor_elements(&a); i++) {
            wrong += tensor_get(&a, i) == tensor_get(&b, i) ? 0 : 1;
        }
        cr_expect(wrong == 0, "%s, features %d, case %d: %d of %s", name, (int)features, n,
            (int)wrong, tensor_name(id));
    }
}

/* -- queries that see no key ---------------------------------------------------------------------- */

/* Family cpu takes some of these together with those that do see a key; and of what it takes, the
 * softcap's derivative reaches its own dq. */
#if defined(TESTED_EMULATED)
#define SPARED 0
#else
#define SPARED 8
#endif

struct blind_case {
    const char *name;
    int64_t seqlen_q;
    int64_t seqlen_k;
    int64_t left;
    int64_t right;
    enum attn_alignment alignment;
    int64_t first;
    int64_t last;
};

static const struct blind_case blind_cases[] = {
    {"first ones of a tile", 60, 40, -1, 0, ATTN_BOTTOM_RIGHT, 0, 19},
    {"some tiles and a part of one", 240, 40, -1, 0, ATTN_BOTTOM_RIGHT, 0, 199},
    {"last ones of a tile", 60, 20, 5, -1, ATTN_TOP_LEFT, 25, 59},
    {"last tiles and a part of one", 220, 80, 7, 0, ATTN_TOP_LEFT, 87, 219},
};

static void check_blind(const struct blind_case *blind, enum features features, int n)
{
    struct trial_spec spec = spec_of(features, n);
    struct trial calm;
    struct trial spoilt;
    spec.seqlen_q = blind->seqlen_q;
    spec.seqlen_k = blind->seqlen_k;
    spec.window_left = blind->left;
    spec.window_right = blind->right;
    spec.alignment = blind->alignment;
    spec.softcap = SPARED > 0 ? 0 : spec.softcap;
    trial_init(&calm, &spec);
    trial_init(&spoilt, &spec);
    int64_t first = blind->first > 0 ? blind->first + SPARED : 0;
    int64_t last = blind->first > 0 ? blind->last : blind->last - SPARED;
    for (int64_t row = first; row <= last; row++) {
        /* With a sink's probability dout of such a query has an effect, if on dsinks alone. */
        spoil_row(&spoilt, row % 2 == 0 || spec.sinks ? TENSOR_Q : TENSOR_DOUT, row,
            row % 3 == 0 ? (double)NAN : (double)INFINITY);
    }
    cr_assert(tested_compute(&calm, tested_family(), tested_family(), 1));
    cr_assert(tested_compute(&spoilt, tested_family(), tested_family(), 1));
    expect_same(blind->name, features, n, &calm, &spoilt);
    trial_finish(&calm);
    trial_finish(&spoilt);
}

Test(kernels_nan, of_queries_that_see_no_key_reaches_nothing)
{
    for (size_t c = 0; c < sizeof blind_cases / sizeof blind_cases[0]; c++) {
        for (int n = 0; n < (TESTED_SLOWLY ? FEATURES : 4 * FEATURES); n++) {
            check_blind(&blind_cases[c], (enum features)(n % FEATURES), n / FEATURES + n);
        }
    }
}

/* -- keys beyond the lengths ---------------------------------------------------------------------- */

#define LENGTH 10 /* of the first sequence's keys */

/* Which key a gradient's element belongs to. */
static int64_t key_of(const struct tensor *tensor, enum tensor_id id, int64_t element)
{
    return id == TENSOR_DBIAS ? element % tensor->columns
                              : element / tensor->columns / tensor->heads % tensor->rows;
}

/* Those of the first sequence are 0, sums with the others' are numbers. */
static void expect_clean_padding(const struct trial *trial, enum tensor_id id, int features, int n)
{
    struct tensor tensor = tensor_of(&trial->problem, id);
    int64_t each = tensor.batch > 0 ? tensor_elements(&tensor) / tensor.batch : 0;
    int64_t wrong = 0;
    if (tensor.view.data == NULL || (id == TENSOR_DBIAS && tensor.columns == 1)) {
        return;
    }
    for (int64_t i = 0; i < each; i++) {
        double ours = tensor_get(&tensor, i);
        bool right = tensor.batch > 1 ? ours == 0 : isfinite(ours);
        wrong += key_of(&tensor, id, i) < LENGTH || right ? 0 : 1;
    }
    cr_expect(
        wrong == 0, "features %d, case %d: %d of %s", features, n, (int)wrong, tensor_name(id));
}

Test(kernels_nan, of_queries_does_not_reach_keys_beyond_the_lengths)
{
    for (int n = 0; n < (TESTED_SLOWLY ? FEATURES : 4 * FEATURES); n++) {
        enum features features = (enum features)(n % FEATURES);
        struct trial_spec spec = spec_of(features, n / FEATURES + n);
        struct trial trial;
        spec.seqlen_q = 20;
        spec.seqlen_k = 140;
        spec.key_lengths = true;
        trial_init(&trial, &spec);
        int32_t *lengths = (int32_t *)(void *)trial.lengths[TRIAL_SEQLENS_K].bytes;
        lengths[0] = LENGTH;
        lengths[1] = 140;
        trial_refill(&trial, &spec);
        struct tensor q = tensor_of(&trial.problem, TENSOR_Q);
        tensor_set(&q, 0, NAN); /* of the first sequence */
        cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
        expect_clean_padding(&trial, TENSOR_DK, (int)features, n);
        expect_clean_padding(&trial, TENSOR_DV, (int)features, n);
        expect_clean_padding(&trial, TENSOR_DBIAS, (int)features, n);
        trial_finish(&trial);
    }
}

/* -- sinks ---------------------------------------------------------------------------------------- */

Test(kernels_nan, of_a_query_is_seen_in_the_gradient_of_its_sink)
{
    for (int n = 0; n < 2 * TESTED_DTYPES; n++) {
        struct trial_spec spec = spec_of(n < TESTED_DTYPES ? SINKS : GENERAL, n);
        struct trial trial;
        spec.seqlen_q = 70;
        spec.seqlen_k = 50;
        trial_init(&trial, &spec);
        struct tensor q = tensor_of(&trial.problem, TENSOR_Q);
        tensor_set(&q, 60 * q.heads * q.columns + q.columns, NAN); /* head 1 */
        cr_assert(tested_compute(&trial, tested_family(), tested_family(), 1));
        struct tensor dsinks = tensor_of(&trial.problem, TENSOR_DSINKS);
        cr_expect(isfinite(tensor_get(&dsinks, 0)), "case %d", n);
        cr_expect(isnan(tensor_get(&dsinks, 1)), "case %d: %g", n, tensor_get(&dsinks, 1));
        trial_finish(&trial);
    }
}

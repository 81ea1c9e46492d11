#include "backward.h"

#include "backward_layout.h"

/* Bytes that nobody has: problems that take more are not added up. */
#define WORKSPACE_MAX 0x1p60

static const struct backward_kernels *const widths[SM80_WIDTHS] = {
    &sm80_backward_d32,
    &sm80_backward_d64,
    &sm80_backward_d96,
    &sm80_backward_d128,
    &sm80_backward_d192,
    &sm80_backward_d256,
};

/* -- what both directions have -------------------------------------------------------------------- */

static uint64_t lengths_tiles(const struct attn_problem *problem)
{
    return lengths_stage.tiles(problem);
}

static const struct sm80_kernel *lengths_kernel(const struct attn_problem *problem)
{
    return lengths_stage.kernel(problem);
}

static uint64_t padding_tiles(const struct attn_problem *problem)
{
    return padding_backward_stage.tiles(problem);
}

static const struct sm80_kernel *padding_kernel(const struct attn_problem *problem)
{
    return padding_backward_stage.kernel(problem);
}

/* -- delta ---------------------------------------------------------------------------------------- */

static uint64_t query_tiles(const struct attn_problem *problem)
{
    return (uint64_t)lengths_blocks(problem, LENGTHS_QUERIES, BACKWARD_ROWS) *
           (uint64_t)problem->heads_q;
}

static const struct sm80_kernel *delta_kernel(const struct attn_problem *problem)
{
    return &sm80_backward_delta[sm80_key_of(problem).bf16];
}

/* -- dk, dv and dq -------------------------------------------------------------------------------- */

static const struct sm80_kernel *columns_kernel(const struct attn_problem *problem)
{
    struct sm80_key key = sm80_key_of(problem);
    const struct backward_kernels *kernels = widths[key.width];

    return key.sums ? &kernels->summing[key.bf16][key.kind == SCORE_GENERAL]
                    : &kernels->columns.kernel[key.bf16][key.kind];
}

static uint64_t columns_tiles(const struct attn_problem *problem)
{
    return (uint64_t)lengths_blocks(problem, LENGTHS_KEYS, columns_kernel(problem)->keys) *
           (uint64_t)problem->heads_kv;
}

static uint64_t rows_tiles(const struct attn_problem *problem)
{
    return backward_owns_queries(problem) ? query_tiles(problem) : 0;
}

static const struct sm80_kernel *rows_kernel(const struct attn_problem *problem)
{
    struct sm80_key key = sm80_key_of(problem);

    return &widths[key.width]->rows[key.bf16][key.kind != SCORE_PLAIN];
}

static uint64_t convert_tiles(const struct attn_problem *problem)
{
    return backward_owns_queries(problem) ? 0 : query_tiles(problem);
}

static const struct sm80_kernel *convert_kernel(const struct attn_problem *problem)
{
    return &sm80_backward_convert[sm80_key_of(problem).bf16];
}

/* -- dbias and the last sums ---------------------------------------------------------------------- */

static const struct sm80_kernel *dbias_kernel(const struct attn_problem *problem)
{
    struct sm80_key key = sm80_key_of(problem);

    return &widths[key.width]->dbias[key.bf16][key.kind == SCORE_GENERAL];
}

/* Blocks of a vector's gradient. */
static uint64_t vector_tiles(const struct attn_problem *problem)
{
    enum backward_dbias kind = backward_dbias_of(problem);

    if (kind != BACKWARD_DBIAS_KEYS && kind != BACKWARD_DBIAS_QUERIES) {
        return 0;
    }
    return (problem->bias_broadcast[0] ? 1 : (uint64_t)problem->batch) *
           (problem->bias_broadcast[1] ? 1 : (uint64_t)problem->heads_q) *
           (uint64_t)backward_vector_blocks(problem);
}

static uint64_t sums_tiles(const struct attn_problem *problem)
{
    return (uint64_t)backward_slope_tiles(problem) + (uint64_t)backward_sink_tiles(problem) +
           vector_tiles(problem);
}

static const struct sm80_kernel *sums_kernel(const struct attn_problem *problem)
{
    return &sm80_backward_sums[sm80_key_of(problem).bf16];
}

/* -- the direction -------------------------------------------------------------------------------- */

/* What the layout's parts take at most, as numbers that cannot overflow. */
static double most_bytes(const struct attn_problem *problem)
{
    double queries = (double)lengths_rows(problem, LENGTHS_QUERIES) + BACKWARD_GROUP;
    double keys = (double)lengths_rows(problem, LENGTHS_KEYS);
    double heads = (double)problem->heads_q * ((double)problem->batch + 1);

    return 4 * heads * (queries * (4 + ATTN_MAX_HEAD_DIM + BACKWARD_GROUP) + keys);
}

static size_t workspace_bytes(const struct attn_problem *problem)
{
    return most_bytes(problem) > WORKSPACE_MAX ? SIZE_MAX : backward_layout_of(problem).bytes;
}

/* In order: what a stage needs is complete before it begins. */
static const struct sm80_stage stages[] = {
    {lengths_tiles, lengths_kernel},
    {query_tiles, delta_kernel},
    {columns_tiles, columns_kernel},
    {rows_tiles, rows_kernel},
    {convert_tiles, convert_kernel},
    {backward_dbias_tiles, dbias_kernel},
    {sums_tiles, sums_kernel},
    {padding_tiles, padding_kernel},
};

/* Kernels of a head dim tile, one after another. */
static const struct sm80_kernel *width_kernel_at(
    const struct backward_kernels *kernels, size_t index)
{
    size_t columns = (size_t)2 * SCORE_KINDS;

    if (index < columns) {
        return &kernels->columns.kernel[index % 2][index / 2];
    }
    index -= columns;
    return index < 4   ? &kernels->summing[index % 2][index / 2]
           : index < 8 ? &kernels->rows[index % 2][index / 2 - 2]
                       : &kernels->dbias[index % 2][index / 2 - 4];
}

static const struct sm80_kernel *kernel_at(size_t index)
{
    static const struct sm80_kernel *const shared[] = {
        &sm80_backward_delta[0],
        &sm80_backward_delta[1],
        &sm80_backward_convert[0],
        &sm80_backward_convert[1],
        &sm80_backward_sums[0],
        &sm80_backward_sums[1],
    };
    size_t each = 2 * SCORE_KINDS + 12;

    if (index < SM80_WIDTHS * each) {
        return width_kernel_at(widths[index / each], index % each);
    }
    index -= SM80_WIDTHS * each;
    return index < sizeof(shared) / sizeof(shared[0]) ? shared[index] : NULL;
}

const struct sm80_direction sm80_backward = {
    .stages = stages,
    .stage_count = sizeof(stages) / sizeof(stages[0]),
    .workspace_bytes = workspace_bytes,
    .kernel_at = kernel_at,
};

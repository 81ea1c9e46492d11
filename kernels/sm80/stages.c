/*
 * The forward direction's stages, and those that both directions have.
 */
#include "sm80.h"

#include "backward_layout.h"

#include "device/lengths.h"

static const int widths[SM80_WIDTHS] = {32, 64, 96, 128, 192, 256};

static const struct sm80_kernels *const forward_kernels[SM80_WIDTHS] = {
    &sm80_forward_d32,
    &sm80_forward_d64,
    &sm80_forward_d96,
    &sm80_forward_d128,
    &sm80_forward_d192,
    &sm80_forward_d256,
};

static uint64_t lengths_tiles(const struct attn_problem *problem)
{
    return lengths_given(problem);
}

static const struct sm80_kernel *lengths_kernel(const struct attn_problem *problem)
{
    (void)problem;
    return &sm80_lengths;
}

static const struct sm80_kernel *forward_kernel(const struct attn_problem *problem)
{
    struct sm80_key key = sm80_key_of(problem);

    return &forward_kernels[key.width]->kernel[key.bf16][key.kind];
}

static uint64_t forward_tiles(const struct attn_problem *problem)
{
    int64_t blocks = lengths_blocks(problem, LENGTHS_QUERIES, forward_kernel(problem)->rows);

    return (uint64_t)blocks * (uint64_t)problem->heads_q;
}

/* Blocks of a packed side's rows; 0: nothing is between sequences. */
static uint64_t padding_blocks(
    const struct attn_problem *problem, enum lengths_side side, uint32_t rows)
{
    int64_t all = lengths_packed(problem, side) ? lengths_rows(problem, side) : 0;

    return ((uint64_t)all + rows - 1) / rows;
}

static uint64_t padding_forward_tiles(const struct attn_problem *problem)
{
    return padding_blocks(problem, LENGTHS_QUERIES, sm80_padding_forward.rows);
}

static const struct sm80_kernel *padding_forward_kernel(const struct attn_problem *problem)
{
    (void)problem;
    return &sm80_padding_forward;
}

static uint64_t padding_backward_tiles(const struct attn_problem *problem)
{
    return padding_blocks(problem, LENGTHS_QUERIES, sm80_padding_backward.rows) +
           padding_blocks(problem, LENGTHS_KEYS, sm80_padding_backward.rows);
}

static const struct sm80_kernel *padding_backward_kernel(const struct attn_problem *problem)
{
    (void)problem;
    return &sm80_padding_backward;
}

static const struct sm80_stage forward_stages[] = {
    {lengths_tiles, lengths_kernel},
    {forward_tiles, forward_kernel},
    {padding_forward_tiles, padding_forward_kernel},
};

static const struct sm80_kernel *forward_kernel_at(size_t index)
{
    static const struct sm80_kernel *const shared[] = {
        &sm80_lengths,
        &sm80_padding_forward,
        &sm80_padding_backward,
    };
    size_t kinds = sizeof(forward_kernels[0]->kernel) / sizeof(forward_kernels[0]->kernel[0][0]);

    if (index < SM80_WIDTHS * kinds) {
        return &forward_kernels[index / kinds]->kernel[index % 2][index / 2 % SCORE_KINDS];
    }
    index -= SM80_WIDTHS * kinds;
    return index < sizeof(shared) / sizeof(shared[0]) ? shared[index] : NULL;
}

struct sm80_key sm80_key_of(const struct attn_problem *problem)
{
    int32_t wider =
        problem->head_dim_qk > problem->head_dim_v ? problem->head_dim_qk : problem->head_dim_v;
    struct sm80_key key = {
        .bf16 = problem->dtype == ATTN_BF16,
        .kind = score_kind_of(problem),
        .sums = backward_dbias_of(problem) == BACKWARD_DBIAS_KEYS,
    };

    while (widths[key.width] < wider) {
        key.width++;
    }
    return key;
}

const struct sm80_stage lengths_stage = {lengths_tiles, lengths_kernel};
const struct sm80_stage padding_forward_stage = {padding_forward_tiles, padding_forward_kernel};
const struct sm80_stage padding_backward_stage = {padding_backward_tiles, padding_backward_kernel};

const struct sm80_direction sm80_forward = {
    .stages = forward_stages,
    .stage_count = sizeof(forward_stages) / sizeof(forward_stages[0]),
    .workspace_bytes = lengths_bytes,
    .kernel_at = forward_kernel_at,
};

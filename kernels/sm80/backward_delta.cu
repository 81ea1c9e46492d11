/*
 * The stage of the backward pass before all others that meet scores: of each query delta and lse, as
 * its probabilities need them, into the workspace, and the sum of its ds, where that follows from them.
 * Clears the sums of dq. Eight lanes have a row.
 */
#include "sm80.h"

#include "backward_parts.cuh"
#include "backward_seen.cuh"

#define DELTA_THREADS 256
#define DELTA_LANES 8

/* Eight elements of a row from a column on, those that do not exist being 0. */
template <bool Bf16>
PTX_FUNCTION void delta_load(const struct tile_rows &rows, int row, int column, float (&x)[8])
{
    const char *from = rows.first + (row * rows.stride + column) * 2;
    struct ptx_words4 words = {{0, 0, 0, 0}};

    if (rows.aligned && column + 8 <= rows.columns) {
        words = ptx_load_16(from);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t element = column + i < rows.columns ? ((const uint16_t *)from)[i] : 0U;
            words.word[i / 2] |= element << 16 * (i % 2);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] = score_float_of<Bf16>((uint16_t)(words.word[i / 2] >> 16 * (i % 2)));
    }
}

/* A lane's part of a row's dout . out. */
template <bool Bf16>
PTX_FUNCTION float delta_dot(const struct tile_rows &out, const struct tile_rows &dout, int row)
{
    float sum = 0.0F;

    for (int column = (int)ptx_thread() % DELTA_LANES * 8; column < out.columns;
         column += DELTA_LANES * 8) {
        float a[8];
        float b[8];
        delta_load<Bf16>(out, row, column, a);
        delta_load<Bf16>(dout, row, column, b);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sum += a[i] * b[i];
        }
    }
    return sum;
}

/* Element of an fp32 tensor without head_dim. */
PTX_FUNCTION float delta_scalar(
    const struct attn_view &view, const struct backward_place &place, int row)
{
    return ((const float *)
                view.data)[view.batch_stride * place.queries.batch + view.head_stride * place.head +
                           view.row_stride * (place.queries.first + place.row + row)];
}

/* The sum of a query's ds over its keys, where no sink takes part: p's sum is 1, so that delta goes out
 * and dlse is left, or NaN, which `product`, rowsum(dout * out), and lse show. */
PTX_FUNCTION float delta_sum(const struct device_item &item, const struct backward_place &place,
    int row, float product, float lse, float dlse)
{
    const struct attn_problem &problem = item.problem;
    struct lengths_sequence keys =
        lengths_sequence_of(&problem, item.workspace, LENGTHS_KEYS, place.batch);
    struct backward_seen seen = backward_seen_of(
        score_head_of(problem, place.batch, place.head, place.queries.length, keys.length));
    bool sees = place.row + row >= seen.first && place.row + row < seen.end;
    return sees ? dlse + 0.0F * (product + lse) : 0.0F;
}

PTX_FUNCTION void delta_store(
    const struct device_item &item, const struct backward_place &place, int row, float sum)
{
    const struct attn_problem &problem = item.problem;
    struct backward_layout layout = backward_layout_of(&problem);
    const float infinity = ptx_float_of_bits(0x7f800000U);
    float lse = delta_scalar(problem.lse, place, row);
    float dlse = problem.dlse.data != NULL ? delta_scalar(problem.dlse, place, row) : 0.0F;

    /* Makes every probability of a query that sees nothing 0 and not e^(s + inf), whatever dlse is. */
    bool nothing = lse == -infinity;
    float unit = score_kind_of(&problem) == SCORE_PLAIN ? SCORE_LOG2E : 1.0F;
    ((float *)(item.workspace + layout.delta))[place.at + row] = nothing ? 0.0F : sum - dlse;
    ((float *)(item.workspace + layout.lse))[place.at + row] = nothing ? infinity : lse * unit;
    if (backward_dbias_of(&problem) == BACKWARD_DBIAS_QUERIES && !backward_sums_queries(&problem)) {
        ((float *)(item.workspace + layout.bias))[place.at + row] =
            nothing ? 0.0F : delta_sum(item, place, row, sum, lse, dlse);
    }
}

/* Groups that the block's rows are in; others have the rest of a sequence's last one. */
PTX_FUNCTION void delta_clear_dq(const struct device_item &item, const struct backward_place &place)
{
    const struct attn_problem &problem = item.problem;
    int width = backward_width(&problem);
    int32_t rest = place.queries.length - place.row;
    int rows = rest < BACKWARD_ROWS ? (rest + BACKWARD_GROUP - 1) / BACKWARD_GROUP * BACKWARD_GROUP
                                    : BACKWARD_ROWS;
    float *sums =
        backward_dq_sums(item, place.queries, place.batch, place.head) + (int64_t)place.row * width;
    const struct ptx_words4 zero = {{0, 0, 0, 0}};

    for (int i = (int)ptx_thread() * 4; i < rows * width; i += DELTA_THREADS * 4) {
        ptx_store_16(sums + i, zero);
    }
}

template <bool Bf16>
static __global__ void __launch_bounds__(DELTA_THREADS)
    backward_delta(const __grid_constant__ struct device_group group)
{
    struct device_place tile = device_place_of(group, ptx_block());
    const struct device_item &item = *tile.item;
    const struct attn_problem &problem = item.problem;
    struct backward_place place = backward_place_of(item, tile.tile);
    if (place.batch < 0) {
        return;
    }
    struct tile_rows out = backward_rows(problem.out, place.queries, place.head, place.row,
        place.queries.length, problem.head_dim_v);
    struct tile_rows dout = backward_rows(problem.dout, place.queries, place.head, place.row,
        place.queries.length, problem.head_dim_v);

    for (int first = 0; first < BACKWARD_ROWS; first += DELTA_THREADS / DELTA_LANES) {
        int row = first + (int)ptx_thread() / DELTA_LANES;
        float sum = row < out.rows ? delta_dot<Bf16>(out, dout, row) : 0.0F;
        sum += ptx_shuffle_xor(sum, 1);
        sum += ptx_shuffle_xor(sum, 2);
        sum += ptx_shuffle_xor(sum, 4);
        if (row < out.rows && ptx_thread() % DELTA_LANES == 0) {
            delta_store(item, place, row, sum);
        }
    }
    if (!backward_owns_queries(&problem)) {
        delta_clear_dq(item, place);
    }
}

extern "C" const struct sm80_kernel sm80_backward_delta[2] = {
    {(const void *)backward_delta<false>, DELTA_THREADS, 0, BACKWARD_ROWS, 0},
    {(const void *)backward_delta<true>, DELTA_THREADS, 0, BACKWARD_ROWS, 0},
};

/*
 * Copies the lengths of a problem, which others may write at any time, into its workspace: each number
 * is read once, and clamped so that any numbers are safe. One block a problem.
 */
#include "sm80.h"

#include "device/group.cuh"
#include "device/lengths.h"

#define THREADS 256
#define WARPS (THREADS / 32)

PTX_FUNCTION int32_t clamp(int64_t value, int64_t low, int64_t high)
{
    return (int32_t)(value < low ? low : value > high ? high : value);
}

/* The greatest value of the threads up to this one. highest[] gets the greatest of each warp, and is
 * free again after the next barrier. */
PTX_FUNCTION int32_t running_maximum(int32_t value, int32_t *highest)
{
    uint32_t warp = ptx_thread() / 32;
    for (uint32_t lanes = 1; lanes < 32; lanes *= 2) {
        int32_t other = (int32_t)ptx_shuffle_up(value, lanes); /* its own, if there is none */
        value = other > value ? other : value;
    }
    if (ptx_thread() % 32 == 31) {
        highest[warp] = value;
    }
    ptx_barrier(); /* all warps' greatest are there */
    for (uint32_t i = 0; i < warp; i++) {
        value = highest[i] > value ? highest[i] : value;
    }
    return value;
}

/* Where sequences start: none before the one in front of it ends. */
PTX_FUNCTION void copy_starts(
    const struct attn_problem *problem, char *workspace, enum lengths_side side)
{
    int32_t *highest = (int32_t *)ptx_shared_memory();
    const int32_t *offsets = lengths_offsets(problem, side);
    struct lengths_snapshot snapshot = lengths_snapshot_of(problem, workspace, side);
    int64_t rows = lengths_rows(problem, side);
    int64_t batch = problem->batch;
    int32_t before = 0;
    rows = rows > INT32_MAX ? INT32_MAX : rows;
    for (int64_t chunk = 0; chunk <= batch; chunk += THREADS) {
        int64_t i = chunk + ptx_thread();
        int32_t value = i <= batch ? clamp(ptx_read_once(offsets + i), 0, rows) : 0;
        value = running_maximum(value > before ? value : before, highest);
        if (i <= batch) {
            snapshot.start[i] = value;
        }
        for (int warp = 0; warp < WARPS; warp++) {
            before = highest[warp] > before ? highest[warp] : before;
        }
        ptx_barrier(); /* highest[] has been read; at last: every start is there */
    }
    for (int64_t b = ptx_thread(); b < batch; b += THREADS) {
        snapshot.length[b] = clamp(
            (int64_t)snapshot.start[b + 1] - snapshot.start[b], 0, lengths_longest(problem, side));
    }
}

/* Keys have lengths of their own: after copy_starts(), in which the same thread has the sequence. */
PTX_FUNCTION void shorten_keys(const struct attn_problem *problem, char *workspace)
{
    int32_t *length = lengths_snapshot_of(problem, workspace, LENGTHS_KEYS).length;
    bool packed = lengths_packed(problem, LENGTHS_KEYS);
    for (int64_t b = ptx_thread(); b < problem->batch; b += THREADS) {
        int64_t most = packed ? length[b] : problem->seqlen_k;
        length[b] = clamp(ptx_read_once(problem->lengths.seqlens_k + b), 0, most);
    }
}

static __global__ void __launch_bounds__(THREADS)
    lengths_run(const __grid_constant__ struct device_group group)
{
    const struct device_item *item = device_place_of(group, ptx_block()).item;
    const struct attn_problem *problem = &item->problem;
    if (lengths_packed(problem, LENGTHS_QUERIES)) {
        copy_starts(problem, item->workspace, LENGTHS_QUERIES);
    }
    if (lengths_packed(problem, LENGTHS_KEYS)) {
        copy_starts(problem, item->workspace, LENGTHS_KEYS);
    }
    if (problem->lengths.seqlens_k != NULL) {
        shorten_keys(problem, item->workspace);
    }
}

extern "C" const struct sm80_kernel sm80_lengths = {
    (const void *)lengths_run, THREADS, WARPS * sizeof(int32_t), 0, 0};

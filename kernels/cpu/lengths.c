#include "lengths.h"

/* A side's part of the snapshot: where its sequences start, and behind that the end of the rows; and
 * how long they are. */
struct snapshot {
    int64_t *start;
    int64_t *length;
};

static struct snapshot snapshot_of(const struct tile_work *work, enum tile_side side)
{
    int64_t batch = work->problem->batch;
    int64_t *start = (int64_t *)work->workspace + (side == TILE_KEYS ? 2 * batch + 1 : 0);

    return (struct snapshot){.start = start, .length = start + batch + 1};
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static int64_t read_once(const int32_t *element)
{
    return __atomic_load_n(element, __ATOMIC_RELAXED);
}

static const int32_t *cu_seqlens(const struct attn_problem *problem, enum tile_side side)
{
    return side == TILE_QUERIES ? problem->lengths.cu_seqlens_q : problem->lengths.cu_seqlens_k;
}

static int64_t longest(const struct attn_problem *problem, enum tile_side side)
{
    return side == TILE_QUERIES ? problem->seqlen_q : problem->seqlen_k;
}

static void take_packed(const struct tile_work *work, enum tile_side side)
{
    const struct attn_problem *problem = work->problem;
    const int32_t *offset = cu_seqlens(problem, side);
    struct snapshot snapshot = snapshot_of(work, side);
    int64_t rows = lengths_rows(problem, side);
    int64_t at = problem->batch > 0 ? clamp(read_once(offset), 0, rows) : rows;

    for (int32_t b = 0; b < problem->batch; b++) {
        int64_t end = clamp(read_once(offset + b + 1), at, rows);
        snapshot.start[b] = at;
        snapshot.length[b] = clamp(end - at, 0, longest(problem, side));
        at = end;
    }
    snapshot.start[problem->batch] = rows;
}

size_t lengths_bytes(const struct attn_problem *problem)
{
    size_t elements = 2 * (2 * (size_t)problem->batch + 1);

    return lengths_tiles(problem) > 0 ? elements * sizeof(int64_t) : 0;
}

uint64_t lengths_tiles(const struct attn_problem *problem)
{
    return problem->lengths.cu_seqlens_q != NULL || problem->lengths.cu_seqlens_k != NULL ||
           problem->lengths.seqlens_k != NULL;
}

void lengths_run(const struct tile_work *work, uint64_t tile)
{
    const struct attn_problem *problem = work->problem;
    struct snapshot keys = snapshot_of(work, TILE_KEYS);

    (void)tile;
    for (enum tile_side side = TILE_QUERIES; side <= TILE_KEYS; side++) {
        if (lengths_packed(problem, side)) {
            take_packed(work, side);
        }
    }
    for (int32_t b = 0; problem->lengths.seqlens_k != NULL && b < problem->batch; b++) {
        int64_t most = lengths_packed(problem, TILE_KEYS) ? keys.length[b] : problem->seqlen_k;
        keys.length[b] = clamp(read_once(problem->lengths.seqlens_k + b), 0, most);
    }
}

bool lengths_packed(const struct attn_problem *problem, enum tile_side side)
{
    return cu_seqlens(problem, side) != NULL;
}

int64_t lengths_rows(const struct attn_problem *problem, enum tile_side side)
{
    if (!lengths_packed(problem, side)) {
        return longest(problem, side);
    }
    return side == TILE_QUERIES ? problem->lengths.total_q : problem->lengths.total_k;
}

int64_t lengths_all_rows(const struct attn_problem *problem, enum tile_side side)
{
    return lengths_rows(problem, side) * (lengths_packed(problem, side) ? 1 : problem->batch);
}

struct tile_sequence lengths_sequence(
    const struct tile_work *work, enum tile_side side, int64_t batch)
{
    const struct attn_problem *problem = work->problem;
    struct snapshot snapshot = snapshot_of(work, side);
    int64_t rows = lengths_rows(problem, side);

    if (!lengths_packed(problem, side)) {
        bool shortened = side == TILE_KEYS && problem->lengths.seqlens_k != NULL;
        return (struct tile_sequence){
            .batch = batch,
            .length = shortened ? snapshot.length[batch] : rows,
            .extent = rows,
        };
    }
    if (batch < 0) {
        return (struct tile_sequence){.extent = snapshot.start[0]};
    }
    return (struct tile_sequence){
        .start = snapshot.start[batch],
        .length = snapshot.length[batch],
        .extent = snapshot.start[batch + 1] - snapshot.start[batch],
    };
}

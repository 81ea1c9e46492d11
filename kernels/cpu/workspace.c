#include "workspace.h"

#include "lengths.h"

static enum tile_side side_of(const struct attn_problem *problem, enum workspace_part part)
{
    bool of_keys = part == WORKSPACE_BIAS && workspace_dbias(problem) == DBIAS_KEYS;

    return of_keys ? TILE_KEYS : TILE_QUERIES;
}

static bool has_part(const struct attn_problem *problem, enum workspace_part part)
{
    enum workspace_dbias dbias = workspace_dbias(problem);

    return part == WORKSPACE_BIAS     ? dbias == DBIAS_QUERIES || dbias == DBIAS_KEYS
           : part == WORKSPACE_SLOPES ? problem->dslopes.data != NULL
                                      : true;
}

/* Bytes of a part that the problem has. */
static size_t part_bytes(const struct attn_problem *problem, enum workspace_part part)
{
    size_t rows = (size_t)lengths_all_rows(problem, side_of(problem, part));

    return rows * (size_t)problem->heads_q * sizeof(float);
}

static bool part_overflows(const struct attn_problem *problem, enum workspace_part part)
{
    enum tile_side side = side_of(problem, part);
    size_t batch = lengths_packed(problem, side) ? 1 : (size_t)problem->batch;
    size_t bytes;

    return __builtin_mul_overflow((size_t)lengths_rows(problem, side), batch, &bytes) ||
           __builtin_mul_overflow(bytes, (size_t)problem->heads_q, &bytes) ||
           bytes > SIZE_MAX / 8 / sizeof(float);
}

enum workspace_dbias workspace_dbias(const struct attn_problem *problem)
{
    const bool *broadcast = problem->bias_broadcast;

    if (problem->dbias.data == NULL) {
        return DBIAS_NONE;
    }
    if (broadcast[3]) {
        return DBIAS_QUERIES;
    }
    if (broadcast[2]) {
        return DBIAS_KEYS;
    }
    bool summed = (broadcast[0] && problem->batch != 1) || (broadcast[1] && problem->heads_q != 1);
    /* The queries' tiles of packed sequences do not own rows beyond a sequence's end. */
    return summed || lengths_packed(problem, TILE_QUERIES) ? DBIAS_TILES : DBIAS_DIRECT;
}

size_t workspace_bytes(enum attn_direction direction, const struct attn_problem *problem)
{
    size_t bytes = lengths_bytes(problem);

    for (enum workspace_part part = 0; direction == ATTN_BACKWARD && part < WORKSPACE_PARTS;
         part++) {
        if (has_part(problem, part)) {
            if (part_overflows(problem, part)) {
                return SIZE_MAX;
            }
            bytes += part_bytes(problem, part);
        }
    }
    return bytes;
}

float *workspace_rows(
    const struct tile_work *work, enum workspace_part part, const struct tile_place *place)
{
    const struct attn_problem *problem = work->problem;
    char *start = (char *)work->workspace + lengths_bytes(problem);
    enum tile_side side = side_of(problem, part);
    int64_t head = place->sequence.batch * problem->heads_q + place->head;
    int64_t row = place->sequence.start + place->first;

    for (enum workspace_part before = 0; before < part; before++) {
        start += has_part(problem, before) ? part_bytes(problem, before) : 0;
    }
    return (float *)(void *)start + head * lengths_rows(problem, side) + row;
}

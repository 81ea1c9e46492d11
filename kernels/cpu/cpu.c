/*
 * The cpu family: its row of the table, and the launch, which runs phase by phase so that the tiles
 * of many small problems share all workers.
 */
#include "family.h"

#include "backward.h"
#include "dbias.h"
#include "forward.h"
#include "lengths.h"
#include "sums.h"
#include "tile.h"
#include "workspace.h"

#define LAUNCH_SLICES 128 /* that share one run of the executor; more slices take several */

/* Tiles of a problem that need none of one another's results. */
struct phase {
    uint64_t (*tiles)(const struct attn_problem *problem);
    void (*run)(const struct tile_work *work, uint64_t tile);
};

struct phases {
    size_t count;
    struct phase phase[8];
};

static const struct phases forward = {
    .count = 2,
    .phase =
        {
            {lengths_tiles, lengths_run},
            {forward_tiles, forward_run},
        },
};

static const struct phases backward = {
    .count = 8,
    .phase =
        {
            {lengths_tiles, lengths_run},
            {backward_stats_tiles, backward_stats_run},
            {backward_keys_tiles, backward_keys_run},
            {backward_queries_tiles, backward_queries_run},
            {dbias_tiles, dbias_run},
            {sums_dbias_tiles, sums_dbias_run},
            {sums_dslopes_tiles, sums_dslopes_run},
            {sums_dsinks_tiles, sums_dsinks_run},
        },
};

/* What the executor's items are: tiles of one phase of some slices. */
struct launch {
    const struct simd *simd;
    const struct phase *phase;
    const struct attn_slice *slices;
    size_t count;
    void *const *scratch;
    uint64_t passed[LAUNCH_SLICES];     /* tiles of earlier phases of the slice's problem */
    uint64_t first_tile[LAUNCH_SLICES]; /* of the phase, in this launch */
    uint64_t end_item[LAUNCH_SLICES];
};

static const struct phases *phases_of(enum attn_direction direction)
{
    return direction == ATTN_FORWARD ? &forward : &backward;
}

static const char *cpu_unsupported(
    enum attn_direction direction, const struct attn_problem *problem)
{
    (void)direction;
    (void)problem;
    return NULL; /* all that is well formed */
}

static size_t cpu_workspace_bytes(enum attn_direction direction, const struct attn_problem *problem)
{
    size_t bytes = workspace_bytes(direction, problem);

    return bytes > 0 ? bytes : 1;
}

static uint64_t cpu_tile_count(enum attn_direction direction, const struct attn_problem *problem)
{
    const struct phases *phases = phases_of(direction);
    uint64_t tiles = 0;

    for (size_t i = 0; i < phases->count; i++) {
        tiles += phases->phase[i].tiles(problem);
    }
    return tiles > 0 ? tiles : 1; /* an empty problem has a tile without work */
}

/* All problems of one direction go together. */
static uint32_t cpu_group_key(enum attn_direction direction, const struct attn_problem *problem)
{
    (void)direction;
    (void)problem;
    return 0;
}

static size_t cpu_scratch_bytes(void)
{
    return sizeof(struct tile_scratch);
}

static void run_item(void *context, uint64_t item, unsigned worker)
{
    const struct launch *launch = context;
    size_t low = 0;
    size_t high = launch->count - 1;

    while (low < high) { /* the first slice that ends after the item */
        size_t middle = low + (high - low) / 2;
        if (launch->end_item[middle] > item) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    uint64_t begin = low == 0 ? 0 : launch->end_item[low - 1];
    const struct tile_work work = {
        .simd = launch->simd,
        .problem = launch->slices[low].problem,
        .scratch = launch->scratch[worker],
        .workspace = launch->slices[low].workspace,
    };
    launch->phase->run(&work, launch->first_tile[low] + (item - begin));
}

/* Cuts each slice to the phase. Returns the number of items. */
static uint64_t begin_phase(struct launch *launch)
{
    uint64_t items = 0;

    for (size_t i = 0; i < launch->count; i++) {
        const struct attn_slice *slice = &launch->slices[i];
        uint64_t first = launch->passed[i];
        uint64_t last = first + launch->phase->tiles(slice->problem);
        uint64_t begin = slice->begin > first ? slice->begin : first;
        uint64_t end = slice->end < last ? slice->end : last;

        launch->first_tile[i] = begin - first;
        items += end > begin ? end - begin : 0;
        launch->end_item[i] = items;
        launch->passed[i] = last;
    }
    return items;
}

static int cpu_launch(enum attn_direction direction, const struct attn_slice *slices, size_t count,
    const struct attn_target *target)
{
    const struct attn_executor *executor = target->executor;
    const struct phases *phases = phases_of(direction);

    for (size_t done = 0; done < count; done += LAUNCH_SLICES) {
        struct launch launch = {
            .simd = simd_best(),
            .slices = slices + done,
            .count = count - done < LAUNCH_SLICES ? count - done : LAUNCH_SLICES,
            .scratch = executor->scratch,
        };
        for (size_t i = 0; i < phases->count; i++) {
            launch.phase = &phases->phase[i];
            uint64_t items = begin_phase(&launch);
            if (items > 0) {
                executor->run(executor, items, run_item, &launch);
            }
        }
    }
    return 0;
}

const struct attn_family cpu_family = {
    .name = "cpu",
    .device = ATTN_DEVICE_CPU,
    .min_capability = 0,
    .unsupported = cpu_unsupported,
    .workspace_bytes = cpu_workspace_bytes,
    .tile_count = cpu_tile_count,
    .group_key = cpu_group_key,
    .scratch_bytes = cpu_scratch_bytes,
    .launch = cpu_launch,
};

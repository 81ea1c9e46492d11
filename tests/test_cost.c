/* What plans cost: pieces that everybody would wait for are refused, nothing is free; with the real CPU
 * backend. */
#include <criterion/criterion.h>
#include <string.h>

#include "cost.h"
#include "plan_tensor.h"

#define WORKSPACE_BYTES (1U << 20)

static struct backend *backend;

static void start(void)
{
    backend = backend_cpu_create(1, WORKSPACE_BYTES);
    cr_assert_not_null(backend);
}

static void stop(void)
{
    backend->workspace_bytes = WORKSPACE_BYTES;
    backend->ops->destroy(backend);
}

TestSuite(cost, .init = start, .fini = stop);

static struct plan *create(const struct wire_plan *wire)
{
    struct wire_error error = {.status = WIRE_OK};
    struct plan *plan = plan_create(wire, backend, &error);
    cr_assert_not_null(plan, "%s", error.detail);
    return plan;
}

/* ---- Walks -------------------------------------------------------------------------------------- */

/* Forward, one head of fp32, all rows of q, k and v in the same place: it takes few bytes to ask. */
static void fill_long(struct wire_plan *plan, uint64_t queries, uint64_t keys, uint64_t dim)
{
    static const int64_t same[] = {0, 0, 0, 1};
    const int64_t stride = (int64_t)dim;
    *plan = (struct wire_plan){.direction = WIRE_FORWARD, .alignment = WIRE_BOTTOM_RIGHT};
    plan_tensor(plan, 0, WIRE_Q, 4, (uint64_t[]){1, queries, 1, dim}, same);
    plan_tensor(plan, 1, WIRE_K, 4, (uint64_t[]){1, keys, 1, dim}, same);
    plan_tensor(plan, 2, WIRE_V, 4, (uint64_t[]){1, keys, 1, dim}, same);
    plan_tensor(plan, 3, WIRE_OUT, 4, (uint64_t[]){1, queries, 1, dim},
        (int64_t[]){(int64_t)(queries * dim), stride, stride, 1});
}

static void expect_too_long(const struct wire_plan *wire)
{
    struct wire_error error = {.status = WIRE_OK};
    cr_expect_null(plan_create(wire, backend, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_not_null(strstr(error.detail, "longest tile"), "%s", error.detail);
    cr_expect_not_null(strstr(error.detail, "more than 1.37e+11"), "%s", error.detail);
}

Test(cost, a_tile_that_everybody_would_wait_for_is_refused)
{
    struct wire_plan wire;
    fill_long(&wire, 128, UINT64_C(1) << 31, 128);
    expect_too_long(&wire);
    fill_long(&wire, 128, UINT64_C(1) << 20, 128);
    plan_destroy(create(&wire));
    fill_long(&wire, 128, UINT64_C(1) << 20, 256);
    plan_destroy(create(&wire));
    fill_long(&wire, 128, (UINT64_C(1) << 20) + 1, 256);
    expect_too_long(&wire);
}

Test(cost, how_long_a_tile_may_take_is_the_backends_choice)
{
    struct wire_plan wire;
    fill_long(&wire, 128, UINT64_C(1) << 23, 256);
    expect_too_long(&wire);
    backend->max_tile_flops = 0x1p40;
    plan_destroy(create(&wire));
    fill_long(&wire, 128, (UINT64_C(1) << 23) + 1, 256);
    struct wire_error error = {.status = WIRE_OK};
    cr_expect_null(plan_create(&wire, backend, &error));
    cr_expect_not_null(strstr(error.detail, "more than 1.1e+12"), "%s", error.detail);
}

Test(cost, a_window_shortens_the_longest_tile)
{
    struct wire_plan wire;
    fill_long(&wire, 128, UINT64_C(1) << 31, 128);
    wire.has_window_left = true;
    wire.window_left = 4096;
    plan_destroy(create(&wire)); /* bottom-right: the last 128 and what is left of them */
    wire.alignment = WIRE_TOP_LEFT;
    expect_too_long(&wire);
    wire.has_window_right = true;
    plan_destroy(create(&wire));
    wire.has_window_left = false;
    plan_destroy(create(&wire));
    wire.alignment = WIRE_BOTTOM_RIGHT;
    expect_too_long(&wire);
}

/* Causal, and most queries come before the first key: the mean tile is short. */
Test(cost, one_long_tile_among_many_empty_ones_counts)
{
    struct wire_plan wire;
    fill_long(&wire, UINT64_C(1) << 30, UINT64_C(1) << 26, 8);
    wire.has_window_right = true;
    expect_too_long(&wire);
}

/* A tile of little arithmetic takes its time nevertheless. */
Test(cost, each_step_of_a_walk_counts)
{
    struct wire_plan wire;
    fill_long(&wire, 1, UINT64_C(1) << 20, 1);
    plan_destroy(create(&wire));
    backend->step_flops = 0x1p23; /* with 64 keys each */
    plan_destroy(create(&wire));
    fill_long(&wire, 1, (UINT64_C(1) << 20) + 1, 1);
    expect_too_long(&wire);
}

/* ---- Sums --------------------------------------------------------------------------------------- */

#define QUERIES 16

/* A backward call of head dim 1 with a gradient that is summed up last. */
struct sum {
    uint64_t batch;
    uint64_t heads;
    uint64_t keys;
    enum wire_role role; /* of the gradient; its input comes before it */
    uint32_t dims;
    uint64_t shape[WIRE_MAX_DIMS];
    bool packed; /* queries: those of all sequences are as many as else of each */
};

/* Compact, but for a first dimension that is left out. */
static void add_tensor(struct wire_plan *plan, enum wire_role role, uint32_t dims,
    const uint64_t shape[], bool without_first)
{
    int64_t strides[WIRE_MAX_DIMS] = {0};
    int64_t stride = 1;
    for (uint32_t dim = dims; dim > 0; dim--) {
        strides[dim - 1] = stride;
        stride *= (int64_t)shape[dim - 1];
    }
    plan_tensor(plan, plan->tensors, role, dims - without_first, shape + without_first,
        strides + without_first);
}

static void fill_sum(struct wire_plan *plan, const struct sum *sum)
{
    const uint64_t query[] = {sum->batch, QUERIES, sum->heads, 1};
    const uint64_t key[] = {sum->batch, sum->keys, sum->heads, 1};
    const uint64_t lse[] = {sum->batch, sum->heads, QUERIES};
    *plan = (struct wire_plan){.direction = WIRE_BACKWARD, .alignment = WIRE_TOP_LEFT};
    add_tensor(plan, WIRE_Q, 4, query, sum->packed);
    add_tensor(plan, WIRE_K, 4, key, false);
    add_tensor(plan, WIRE_V, 4, key, false);
    add_tensor(plan, WIRE_OUT, 4, query, sum->packed);
    add_tensor(plan, WIRE_LSE, 3, lse, sum->packed);
    add_tensor(plan, WIRE_DOUT, 4, query, sum->packed);
    add_tensor(plan, WIRE_DQ, 4, query, sum->packed);
    add_tensor(plan, WIRE_DK, 4, key, false);
    add_tensor(plan, WIRE_DV, 4, key, false);
    add_tensor(plan, sum->role - 1, sum->dims, sum->shape, false);
    add_tensor(plan, sum->role, sum->dims, sum->shape, false);
    if (sum->packed) {
        add_tensor(plan, WIRE_CU_SEQLENS_Q, 1, (const uint64_t[]){sum->batch + 1}, false);
        plan->tensor[plan->tensors - 1].dtype = WIRE_INT32;
    }
}

static void expect_bearable(const struct sum *sum)
{
    struct wire_plan wire;
    fill_sum(&wire, sum);
    plan_destroy(create(&wire));
}

static void expect_refused(const struct sum *sum)
{
    struct wire_plan wire;
    struct wire_error error = {.status = WIRE_OK};
    const char *name = wire_role_name(sum->role);
    fill_sum(&wire, sum);
    cr_expect_null(plan_create(&wire, backend, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_eq(strncmp(error.detail, name, strlen(name)), 0, "%s", error.detail);
    cr_expect_not_null(strstr(error.detail, "more than 1.05e+06"), "%s", error.detail);
    cr_expect_not_null(strstr(error.detail, "make the batch smaller"), "%s", error.detail);
}

/* One more batch is too many. */
static void expect_most(struct sum sum)
{
    expect_bearable(&sum);
    sum.batch++;
    expect_refused(&sum);
}

static void set_prices(double byte, double step)
{
    backend->workspace_bytes = 1U << 30; /* nothing is run */
    backend->max_tile_flops = 0x1p20;
    backend->flops_per_byte = byte;
    backend->step_flops = step;
}

Test(cost, numbers_that_one_tile_adds_up_are_bounded)
{
    set_prices(1, 0);
    expect_most((struct sum){1 << 14, 1, 1, WIRE_DSLOPES, 2, {1, 1}, false});
    expect_bearable(&(struct sum){1 << 16, 1, 1, WIRE_DSLOPES, 2, {1 << 16, 1}, false});
    expect_bearable(&(struct sum){1 << 16, 1, 1, WIRE_DSLOPES, 2, {1, 1}, true});
    expect_most((struct sum){248, 1, 1, WIRE_DSINKS, 1, {1}, false}); /* 264 flops a query */
    expect_most((struct sum){1 << 14, 1, 1, WIRE_DBIAS, 4, {1, 1, 1, 1}, false});
    expect_most((struct sum){1 << 13, 2, 1, WIRE_DBIAS, 4, {1, 1, 1, 1}, false});
    expect_most((struct sum){1 << 14, 2, 1, WIRE_DBIAS, 4, {1, 2, 1, 1}, false});
    expect_most((struct sum){1 << 14, 1, 1, WIRE_DBIAS, 4, {1, 1, QUERIES, 1}, false});
    expect_most((struct sum){1 << 15, 1, 8, WIRE_DBIAS, 4, {1, 1, 1, 8}, false});
    expect_bearable(&(struct sum){1 << 16, 1, 1, WIRE_DBIAS, 4, {1 << 16, 1, 1, 1}, false});
    expect_bearable(&(struct sum){1 << 16, 1, 1, WIRE_DBIAS, 4, {1, 1, 1, 1}, true});
}

/* However short they are. */
Test(cost, sequences_that_one_tile_adds_up_are_bounded)
{
    set_prices(0, 0x1p10);
    expect_most((struct sum){1 << 10, 1, 1, WIRE_DSLOPES, 2, {1, 1}, true});
    backend->step_flops = 0x1p12;
    expect_most((struct sum){1 << 8, 9, 1, WIRE_DSLOPES, 2, {1, 9}, false});
    expect_most((struct sum){1 << 7, 2, 1, WIRE_DBIAS, 4, {1, 1, 1, 1}, false});
    expect_most((struct sum){1 << 8, 1, 8, WIRE_DBIAS, 4, {1, 1, 1, 8}, true});
    backend->step_flops = 0x1p14;
    expect_most((struct sum){51, 1, 1, WIRE_DSINKS, 1, {1}, false});
}

/* A block of scores each, or what a step takes at least. */
Test(cost, blocks_that_one_tile_recomputes_for_dbias_are_bounded)
{
    set_prices(0, 0);
    expect_most((struct sum){25, 1, 2, WIRE_DBIAS, 4, {1, 1, QUERIES, 2}, false});
    backend->step_flops = 0x1p17;
    expect_most((struct sum){4, 2, 2, WIRE_DBIAS, 4, {1, 1, QUERIES, 2}, false});
}

/* ---- All of it ---------------------------------------------------------------------------------- */

static double cost_of(const struct wire_plan *wire, uint64_t *tiles)
{
    struct plan *plan = create(wire);
    double cost = plan->flops;
    *tiles = plan->tiles;
    plan_destroy(plan);
    return cost;
}

Test(cost, work_without_scores_costs_what_it_touches)
{
    struct wire_plan wire;
    uint64_t tiles = 0;
    uint64_t more = 0;
    fill_long(&wire, UINT64_C(1) << 20, 0, 128);
    double cost = cost_of(&wire, &tiles);
    cr_expect_geq(cost, 4.0 * 128 * (1 << 20)); /* the bytes of out */
    cr_expect_gt(cost / (double)tiles, 1e5);
    fill_long(&wire, UINT64_C(1) << 21, 0, 128);
    cr_expect_float_eq(cost_of(&wire, &more), 2 * cost, 1e-3 * cost);
    cr_expect_eq(more, 2 * tiles);
    fill_long(&wire, UINT64_C(1) << 20, 0, 128);
    backend->flops_per_byte += 100;
    cr_expect_geq(cost_of(&wire, &more), cost + 100 * 4.0 * 128 * (1 << 20));
}

Test(cost, small_head_dims_and_windows_do_not_make_a_tile_free)
{
    struct wire_plan wire;
    uint64_t tiles = 0;
    fill_long(&wire, 1U << 22, 1U << 22, 1);
    wire.has_window_left = true;
    wire.has_window_right = true;
    double cost = cost_of(&wire, &tiles);
    cr_expect_eq(tiles, 1U << 15);
    cr_expect_gt(cost / (double)tiles, 1e5);
    fill_long(&wire, 1, 4096, 1); /* a lonely query takes the time of a whole panel */
    cr_expect_geq(cost_of(&wire, &tiles), 16.0 * 16 * 4 * 4096);
}

/* How a plan and a call become a problem: strides, windows, addresses; with the real CPU backend. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"
#include "plan_tensor.h"

static struct backend *backend;

static void start(void)
{
    backend = backend_cpu_create(1, 1U << 20);
    cr_assert_not_null(backend);
}

static void stop(void)
{
    backend->ops->destroy(backend);
}

TestSuite(plan, .init = start, .fini = stop);

/* Batch 2, 3 queries, 5 keys, 4 and 2 heads, head dims 8 and 6; all strides of q, k and lse differ. */
static void fill(struct wire_plan *plan)
{
    *plan = (struct wire_plan){.direction = WIRE_FORWARD, .alignment = WIRE_BOTTOM_RIGHT};
    plan_tensor(plan, 0, WIRE_Q, 4, (uint64_t[]){2, 3, 4, 8}, (int64_t[]){200, 40, 10, 1});
    plan_tensor(plan, 1, WIRE_K, 4, (uint64_t[]){2, 5, 2, 8}, (int64_t[]){100, 20, 10, 1});
    plan_tensor(plan, 2, WIRE_V, 4, (uint64_t[]){2, 5, 2, 6}, (int64_t[]){60, 12, 6, 1});
    plan_tensor(plan, 3, WIRE_OUT, 4, (uint64_t[]){2, 3, 4, 6}, (int64_t[]){72, 24, 6, 1});
    plan_tensor(plan, 4, WIRE_LSE, 3, (uint64_t[]){2, 4, 3}, (int64_t[]){12, 3, 1});
}

static struct plan *create(const struct wire_plan *wire)
{
    struct wire_error error = {.status = WIRE_OK};
    struct plan *plan = plan_create(wire, backend, &error);
    cr_assert_not_null(plan, "%s", error.detail);
    return plan;
}

static void expect_strides(
    const struct attn_view *view, int64_t batch, int64_t row, int64_t head, int64_t column)
{
    cr_expect_eq(view->batch_stride, batch);
    cr_expect_eq(view->row_stride, row);
    cr_expect_eq(view->head_stride, head);
    cr_expect_eq(view->column_stride, column);
}

Test(plan, becomes_the_problem_it_describes)
{
    struct wire_plan wire;
    fill(&wire);
    wire.has_scale = true;
    wire.scale = 0.25F;
    wire.has_window_right = true;
    struct plan *plan = create(&wire);
    const struct attn_problem *problem = &plan->problem;
    cr_expect_eq(problem->batch, 2);
    cr_expect_eq(problem->seqlen_q, 3);
    cr_expect_eq(problem->seqlen_k, 5);
    cr_expect_eq(problem->heads_q, 4);
    cr_expect_eq(problem->heads_kv, 2);
    cr_expect_eq(problem->head_dim_qk, 8);
    cr_expect_eq(problem->head_dim_v, 6);
    cr_expect_eq(problem->dtype, ATTN_FP32);
    cr_expect_eq(problem->alignment, ATTN_BOTTOM_RIGHT);
    cr_expect_float_eq(problem->scale, 0.25F, 0);
    cr_expect_eq(problem->window_left, ATTN_UNBOUNDED);
    cr_expect_eq(problem->window_right, 0);
    expect_strides(&problem->q, 200, 40, 10, 1);
    expect_strides(&problem->k, 100, 20, 10, 1);
    expect_strides(&problem->lse, 12, 1, 3, 0);
    cr_expect_null(problem->bias.data);
    cr_expect_null(problem->dout.data);
    cr_expect_gt(plan->tiles, 0);
    cr_expect_gt(plan->workspace_bytes, 0);
    cr_expect_geq(plan->flops, attn_flops(ATTN_FORWARD, problem));
    plan_destroy(plan);
}

Test(plan, strides_of_extent_one_mean_nothing)
{
    struct wire_plan wire;
    fill(&wire);
    static const uint32_t batched[] = {0, 1, 2, 3, 4};
    for (size_t i = 0; i < 5; i++) {
        wire.tensor[batched[i]].shape[0] = 1;
        wire.tensor[batched[i]].strides[0] = INT64_MAX;
    }
    struct plan *plan = create(&wire);
    cr_expect_eq(plan->problem.q.batch_stride, 0);
    cr_expect_eq(plan->problem.lse.batch_stride, 0);
    plan_destroy(plan);
}

/* Nobody has checked them, for there is nothing to reach. */
Test(plan, strides_of_tensors_without_elements_lead_nowhere)
{
    const int64_t wild = INT64_MAX / 8;
    struct wire_plan wire;
    fill(&wire);
    plan_tensor(&wire, 0, WIRE_Q, 4, (uint64_t[]){2, 3, 0, 8}, (int64_t[]){wild, -wild, wild, 1});
    plan_tensor(&wire, 3, WIRE_OUT, 4, (uint64_t[]){2, 3, 0, 6}, (int64_t[]){wild, wild, wild, 1});
    plan_tensor(&wire, 4, WIRE_LSE, 3, (uint64_t[]){2, 0, 3}, (int64_t[]){wild, wild, wild});
    plan_tensor(&wire, 5, WIRE_BIAS, 4, (uint64_t[]){2, 0, 3, 5}, (int64_t[]){wild, wild, wild, 1});
    plan_tensor(&wire, 6, WIRE_SLOPES, 2, (uint64_t[]){2, 0}, (int64_t[]){wild, wild});
    struct plan *plan = create(&wire);
    cr_expect_eq(plan->problem.heads_q, 0);
    expect_strides(&plan->problem.q, 0, 0, 1, 1);
    expect_strides(&plan->problem.k, 100, 20, 10, 1);
    expect_strides(&plan->problem.out, 0, 0, 1, 1);
    expect_strides(&plan->problem.lse, 0, 0, 1, 0);
    expect_strides(&plan->problem.bias, 0, 0, 1, 1);
    expect_strides(&plan->problem.slopes, 0, 0, 1, 0);
    plan_destroy(plan);
}

Test(plan, a_window_wider_than_any_sequence_stays_in_range)
{
    struct wire_plan wire;
    fill(&wire);
    wire.has_window_left = true;
    wire.window_left = UINT64_C(1) << 62;
    wire.has_window_right = true;
    wire.window_right = 7;
    struct plan *plan = create(&wire);
    cr_expect_geq(plan->problem.window_left, WIRE_MAX_SEQLEN);
    cr_expect_lt(plan->problem.window_left, INT64_MAX / 4);
    cr_expect_eq(plan->problem.window_right, 7);
    plan_destroy(plan);
}

Test(plan, a_call_adds_addresses_and_nothing_else)
{
    static _Alignas(64) char memory[2][8192];
    struct wire_plan wire;
    struct wire_error error = {.status = WIRE_OK};
    struct region first = {.base = memory[0], .bytes = sizeof memory[0]};
    struct region second = {.base = memory[1], .bytes = sizeof memory[1]};
    struct region *regions[WIRE_MAX_TENSORS] = {&first, &first, &first, &second, &second};
    struct wire_call call = {
        .tensors = 5, .region = {1, 1, 1, 2, 2}, .offset = {64, 2048, 4096, 128, 4096}};
    struct job *job = calloc(1, sizeof *job);
    fill(&wire);
    struct plan *plan = create(&wire);
    cr_assert(plan_resolve(plan, &call, regions, job, &error), "%s", error.detail);
    cr_expect_eq(job->problem.q.data, memory[0] + 64);
    cr_expect_eq(job->problem.k.data, memory[0] + 2048);
    cr_expect_eq(job->problem.v.data, memory[0] + 4096);
    cr_expect_eq(job->problem.out.data, memory[1] + 128);
    cr_expect_eq(job->problem.lse.data, memory[1] + 4096);
    cr_expect_eq(job->family, plan->family);
    cr_expect_eq(job->tiles, plan->tiles);
    cr_expect_eq(job->workspace_bytes, plan->workspace_bytes);
    cr_expect_eq(job->group_key, plan->group_key);
    cr_expect_eq(job->direction, ATTN_FORWARD);
    /* The last element of q is the 318th, so there q ends with its region. */
    call.offset[0] = sizeof memory[0] - 4 * 318;
    call.offset[1] = 0;
    cr_expect(plan_resolve(plan, &call, regions, job, &error), "%s", error.detail);
    call.offset[0] += 4;
    cr_expect_not(plan_resolve(plan, &call, regions, job, &error));
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    cr_expect_eq(strncmp(error.detail, "q", 1), 0, "%s", error.detail);
    free(job);
    plan_destroy(plan);
}

Test(plan, what_no_family_does_or_never_fits_is_refused)
{
    struct wire_plan wire;
    struct wire_error error = {.status = WIRE_OK};
    struct backend *tiny = backend_cpu_create(1, 64);
    fill(&wire);
    wire.tensor[1].shape[2] = 3;
    cr_expect_null(plan_create(&wire, backend, &error));
    cr_expect_eq(error.status, WIRE_INVALID_ARGUMENT);
    cr_expect_neq(error.detail[0], '\0');
    cr_assert_not_null(tiny);
    tiny->workspace_bytes = 0;
    fill(&wire);
    cr_expect_null(plan_create(&wire, tiny, &error));
    cr_expect_eq(error.status, WIRE_RESOURCE_EXHAUSTED);
    cr_expect_not_null(strstr(error.detail, "has 0 in all"), "%s", error.detail);
    tiny->workspace_bytes = 64;
    tiny->ops->destroy(tiny);
}

/* Slopes of no batch are not those of all batches: their gradient has nowhere to go. */
Test(plan, writes_nothing_to_a_gradient_without_elements)
{
    struct wire_plan wire;
    struct plan *plan;
    fill(&wire);
    for (uint32_t batch = 0; batch < 2; batch++) {
        for (uint32_t t = 0; t < 5; t++) {
            wire.tensor[t].shape[0] = batch;
        }
        plan_tensor(&wire, 5, WIRE_SLOPES, 2, (uint64_t[]){batch, 4}, (int64_t[]){0, 1});
        plan = create(&wire);
        cr_expect_eq(plan->problem.slopes.batch_stride, batch == 0 ? 1 : 0);
        plan_destroy(plan);
    }
}

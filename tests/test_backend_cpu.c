#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend.h"
#include "executor.h"
#include "sealed.h"
#include "thread.h"
#include "trial.h"

#define PROBLEMS 5
#define WORKSPACE (UINT64_C(1) << 26)

static struct trial_spec spec_of(uint64_t number)
{
    struct trial_spec spec = trial_spec_default();
    spec.seed = 1000 + number;
    spec.dtype = number % 2 == 0 ? ATTN_FP32 : ATTN_BF16;
    spec.batch = 1 + (int32_t)(number % 2);
    spec.heads_q = 4;
    spec.heads_kv = 2;
    spec.head_dim_qk = 16 + 8 * (int32_t)number;
    spec.head_dim_v = 24;
    spec.seqlen_q = 40 + 37 * (int64_t)number;
    spec.seqlen_k = 90;
    spec.window_right = number % 3 == 0 ? ATTN_UNBOUNDED : 0;
    return spec;
}

/* The group's problems from tile `part` of two, or what one part can't hold. */
static void launch_part(struct backend *backend, struct group *group, unsigned part,
    const struct attn_problem *problems)
{
    unsigned char *workspace = backend->workspace;
    group->members = 0;
    for (size_t i = 0; i < PROBLEMS; i++) {
        uint64_t tiles = attn_tile_count(group->family, group->direction, &problems[i]);
        size_t bytes = attn_workspace_bytes(group->family, group->direction, &problems[i]);
        struct attn_slice slice = {
            .problem = &problems[i],
            .workspace = workspace,
            .begin = part == 0 ? 0 : tiles / 2,
            .end = part == 0 ? tiles / 2 : tiles,
        };
        if (slice.begin < slice.end) {
            group->slice[group->members++] = slice;
        }
        workspace += (bytes + 63) / 64 * 64;
    }
    enum wire_status status = WIRE_TIMED_OUT;
    cr_assert_eq(backend->ops->submit(backend, group), WIRE_OK);
    cr_assert_eq(backend->ops->poll(backend, &status), group);
    cr_assert_eq(status, WIRE_OK);
    cr_assert_null(backend->ops->poll(backend, &status));
}

static void run_direction(struct backend *backend, enum attn_direction direction,
    struct trial *trials, struct trial *expected)
{
    struct attn_problem problems[PROBLEMS];
    struct executor executor;
    const char *why;
    struct group *group = calloc(1, sizeof(*group));
    for (size_t i = 0; i < PROBLEMS; i++) {
        bool forward = direction == ATTN_FORWARD;
        struct attn_problem alone = forward ? trial_forward(&expected[i]) : expected[i].problem;
        problems[i] = forward ? trial_forward(&trials[i]) : trials[i].problem;
        group->family = backend->ops->choose(backend, direction, &problems[i], &why);
        cr_assert_not_null(group->family, "%s", why);
        executor_init(&executor, group->family, 1);
        cr_assert_eq(executor_solve(&executor, direction, &alone, 1, 0), 0);
        executor_finish(&executor);
    }
    group->direction = direction;
    launch_part(backend, group, 0, problems);
    launch_part(backend, group, 1, problems);
    free(group);
}

static void compare(const struct trial *trial, const struct trial *expected, unsigned threads)
{
    for (int id = 0; id < TENSOR_COUNT; id++) {
        const struct trial_storage *one = &trial->storage[id];
        const struct trial_storage *other = &expected->storage[id];
        cr_assert_eq(one->size, other->size);
        cr_expect(one->size == 0 || memcmp(one->bytes, other->bytes, one->size) == 0,
            "%s differs with %u threads", tensor_name((enum tensor_id)id), threads);
    }
}

Test(backend_cpu, groups_in_parts_give_the_bits_of_single_launches)
{
    for (unsigned threads = 1; threads <= 5; threads += 2) {
        struct backend *backend = backend_cpu_create(threads, WORKSPACE);
        struct trial trials[PROBLEMS];
        struct trial expected[PROBLEMS];
        cr_assert_not_null(backend);
        for (uint64_t i = 0; i < PROBLEMS; i++) {
            struct trial_spec spec = spec_of(i);
            trial_init(&trials[i], &spec);
            trial_init(&expected[i], &spec);
        }
        run_direction(backend, ATTN_FORWARD, trials, expected);
        run_direction(backend, ATTN_BACKWARD, trials, expected);
        for (size_t i = 0; i < PROBLEMS; i++) {
            compare(&trials[i], &expected[i], threads);
            trial_finish(&trials[i]);
            trial_finish(&expected[i]);
        }
        backend->ops->destroy(backend);
    }
}

Test(backend_cpu, says_what_it_is)
{
    struct backend *backend = backend_cpu_create(0, WORKSPACE);
    char name[WIRE_NAME_BYTES];
    unsigned threads = thread_processors();
    snprintf(name, sizeof(name), "cpu, %u thread%s", threads, threads == 1 ? "" : "s");
    cr_assert_not_null(backend);
    cr_expect_str_eq(backend->device_name, name);
    cr_expect_eq(backend->device_kind, WIRE_DEVICE_CPU);
    cr_expect_eq(backend->workspace_bytes, WORKSPACE);
    cr_expect_eq((uintptr_t)backend->workspace % 64, 0);
    cr_expect_gt(backend->flops_per_second, 0);
    memset(backend->workspace, 1, WORKSPACE);
    backend->ops->destroy(backend);
}

Test(backend_cpu, chooses_no_family_for_what_none_computes_and_says_why)
{
    struct backend *backend = backend_cpu_create(1, 4096);
    struct trial_spec spec = spec_of(0);
    struct trial trial;
    const char *why = NULL;
    trial_init(&trial, &spec);
    trial.problem.head_dim_qk = ATTN_MAX_HEAD_DIM + 1;
    cr_expect_null(backend->ops->choose(backend, ATTN_FORWARD, &trial.problem, &why));
    cr_assert_not_null(why);
    cr_expect_str_not_empty(why);
    trial_finish(&trial);
    backend->ops->destroy(backend);
}

Test(backend_cpu, maps_sealed_memory_and_nothing_else)
{
    struct backend *backend = backend_cpu_create(1, 4096);
    struct wire_error error = {.status = WIRE_OK};
    void *first = NULL;
    void *second = NULL;
    int fd = sealed_create("test", 8192);
    cr_assert_geq(fd, 0);
    cr_assert(backend->ops->map(
                  backend, &(struct backend_offer){.fd = fd, .bytes = 8192}, &first, &error),
        "%s", error.detail);
    cr_assert(backend->ops->map(
                  backend, &(struct backend_offer){.fd = fd, .bytes = 8192}, &second, &error),
        "%s", error.detail);
    memset(first, 7, 8192);
    cr_expect_eq(memcmp(first, second, 8192), 0);
    backend->ops->unmap(backend, first, 8192);
    backend->ops->unmap(backend, second, 8192);
    cr_expect_not(backend->ops->map(
        backend, &(struct backend_offer){.fd = fd, .bytes = 4096}, &first, &error));
    cr_expect_neq(error.status, WIRE_OK);
    close(fd);
    fd = memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    cr_assert_eq(ftruncate(fd, 8192), 0);
    error.status = WIRE_OK;
    cr_expect_not(backend->ops->map(
        backend, &(struct backend_offer){.fd = fd, .bytes = 8192}, &first, &error));
    cr_expect_neq(error.status, WIRE_OK);
    cr_expect_str_not_empty(error.detail);
    close(fd);
    backend->ops->destroy(backend);
}

Test(backend_cpu, can_not_be_made_without_memory)
{
    cr_expect_null(backend_cpu_create(1, UINT64_C(1) << 60));
}

#include "judge.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "bar.h"
#include "executor.h"

static FILE *out_of(const struct verdict *verdict)
{
    return verdict->out != NULL ? verdict->out : stdout;
}

static void judge_bar(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum tensor_id id)
{
    struct bar bar = bar_tensor(reference, problem, id);
    verdict->ratio = bar.ratio > verdict->ratio ? bar.ratio : verdict->ratio;
    if (!(bar.ratio <= 1)) {
        struct tensor tensor = tensor_of(problem, id);
        fprintf(out_of(verdict), "  %s[%" PRId64 "] = %.9g, not %.9g: error %.3g, allowed %.3g\n",
            tensor_name(id), bar.worst, tensor_get(&tensor, bar.worst),
            reference->exact[id][bar.worst], bar.error, bar.limit);
        verdict->failed = true;
    }
}

/* Rows without keys, padding, what no score belongs to: exactly zero, whatever the bar allows. */
static void judge_zeros(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum tensor_id id)
{
    struct tensor tensor = tensor_of(problem, id);
    for (int64_t i = 0; i < reference->count[id]; i++) {
        bool nothing = reference->exact[id][i] == 0 && reference->noise[id][i] == 0;
        if (nothing && tensor_get(&tensor, i) != 0) {
            fprintf(out_of(verdict), "  %s[%" PRId64 "] = %g, not 0\n", tensor_name(id), i,
                tensor_get(&tensor, i));
            judge_complain(verdict, "something came out of nothing in", tensor_name(id));
            return;
        }
    }
}

static void solve(struct verdict *verdict, struct executor *executor, const struct judge_run *run,
    enum attn_direction direction, const struct attn_problem *problem)
{
    const char *name = direction == ATTN_FORWARD ? "forward" : "backward";
    int status = executor_solve(executor, direction, problem, 1, run->tiles_per_launch);
    if (status == EXECUTOR_OVERRUN) {
        judge_complain(verdict, "memory beside the workspace was written by", name);
    } else if (status != 0) {
        fprintf(out_of(verdict), "  %s returned error %d\n", name, status);
        verdict->failed = true;
        verdict->broken = true;
    }
}

static void solve_forward(struct verdict *verdict, struct executor *executor, struct trial *trial,
    const struct judge_run *run, const struct reference *reference)
{
    struct attn_problem forward = trial_forward(trial);
    if (!run->lse) {
        forward.lse.data = NULL;
    }
    solve(verdict, executor, run, ATTN_FORWARD, &forward);
    bool written[TENSOR_COUNT] = {[TENSOR_OUT] = true, [TENSOR_LSE] = run->lse};
    if (!trial_intact(trial, written)) {
        judge_complain(verdict, "forward wrote outside its outputs", "");
    }
    judge(verdict, reference, &forward, ATTN_FORWARD);
}

static void solve_backward(struct verdict *verdict, struct executor *executor, struct trial *trial,
    const struct judge_run *run, const struct reference *reference)
{
    trial_spoil_padding(trial);
    trial_snapshot(trial);
    solve(verdict, executor, run, ATTN_BACKWARD, &trial->problem);
    if (!trial_intact(trial, trial_backward_outputs)) {
        judge_complain(verdict, "backward wrote outside its outputs", "");
    }
    judge(verdict, reference, &trial->problem, ATTN_BACKWARD);
}

/* Both trials in one group. */
static void solve_pair(struct verdict *verdict, struct executor *executor, struct trial pair[2],
    const struct judge_run *run, enum attn_direction direction)
{
    struct attn_problem problems[2];
    for (int i = 0; i < 2; i++) {
        problems[i] = direction == ATTN_FORWARD ? trial_forward(&pair[i]) : pair[i].problem;
        if (!run->lse) {
            problems[i].lse.data = NULL;
        }
    }
    const uint64_t tiles_per_launch = run->tiles_per_launch == 0 ? 3 : 0;
    int status = executor_solve(executor, direction, problems, 2, tiles_per_launch);
    if (status != 0) {
        fprintf(out_of(verdict), "  a group returned error %d\n", status);
        verdict->failed = true;
        verdict->broken = status != EXECUTOR_OVERRUN;
    }
}

static void expect_same_bits(
    struct verdict *verdict, const struct trial *expected, const struct trial *ours)
{
    for (enum tensor_id id = TENSOR_OUT; id < TENSOR_COUNT; id++) {
        const struct trial_storage *a = &expected->storage[id];
        const struct trial_storage *b = &ours->storage[id];
        if (a->size > 0 && memcmp(a->bytes, b->bytes, a->size) != 0) {
            judge_complain(verdict, "a group and other cuts change the bits of", tensor_name(id));
        }
    }
}

void judge_complain(struct verdict *verdict, const char *what, const char *tensor)
{
    fprintf(out_of(verdict), "  %s%s%s\n", what, *tensor != '\0' ? " " : "", tensor);
    verdict->failed = true;
}

void judge(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum attn_direction direction)
{
    bool forward = direction == ATTN_FORWARD;
    enum tensor_id first = forward ? TENSOR_OUT : TENSOR_DQ;
    enum tensor_id end = forward ? TENSOR_DQ : TENSOR_COUNT;
    for (enum tensor_id id = first; id < end; id++) {
        if (tensor_of(problem, id).view.data != NULL) {
            judge_bar(verdict, reference, problem, id);
            judge_zeros(verdict, reference, problem, id);
        }
    }
}

void judge_trial(struct verdict *verdict, struct trial *trial, const struct judge_run *run)
{
    struct executor executor;
    executor_init(&executor, run->family, run->workers);
    executor.twin = run->twin;
    struct reference *reference = run->strict
                                      ? reference_create_strict(run->direction, &trial->problem)
                                      : reference_create(run->direction, &trial->problem);
    solve_forward(verdict, &executor, trial, run, reference);
    if (run->direction == ATTN_BACKWARD && !verdict->broken) {
        solve_backward(verdict, &executor, trial, run, reference);
    }
    reference_destroy(reference);
    executor_finish(&executor);
}

void judge_bits(struct verdict *verdict, const struct trial *trial, const struct trial_spec *spec,
    const struct judge_run *run)
{
    struct trial pair[2];
    struct executor executor;
    for (int i = 0; i < 2; i++) {
        struct trial_spec one = *spec;
        one.seed += i == 0 ? 1 : 0;
        trial_init_in(&pair[i], &one, run->twin != NULL ? &run->twin->arena : NULL);
    }
    executor_init(&executor, run->family, run->workers);
    executor.twin = run->twin;
    solve_pair(verdict, &executor, pair, run, ATTN_FORWARD);
    if (run->direction == ATTN_BACKWARD && !verdict->broken) {
        trial_spoil_padding(&pair[0]);
        trial_spoil_padding(&pair[1]);
        solve_pair(verdict, &executor, pair, run, ATTN_BACKWARD);
    }
    expect_same_bits(verdict, trial, &pair[1]);
    executor_finish(&executor);
    trial_finish(&pair[0]);
    trial_finish(&pair[1]);
}

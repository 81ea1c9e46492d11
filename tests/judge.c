#include "judge.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "bar.h"
#include "executor.h"

static void judge_bar(struct verdict *verdict, const struct reference *reference,
    const struct attn_problem *problem, enum tensor_id id)
{
    struct bar bar = bar_tensor(reference, problem, id);
    verdict->ratio = bar.ratio > verdict->ratio ? bar.ratio : verdict->ratio;
    if (!(bar.ratio <= 1)) {
        struct tensor tensor = tensor_of(problem, id);
        printf("  %s[%" PRId64 "] = %.9g, not %.9g: error %.3g, allowed %.3g\n", tensor_name(id),
            bar.worst, tensor_get(&tensor, bar.worst), reference->exact[id][bar.worst], bar.error,
            bar.limit);
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
            printf("  %s[%" PRId64 "] = %g, not 0\n", tensor_name(id), i, tensor_get(&tensor, i));
            judge_complain(verdict, "something came out of nothing in", tensor_name(id));
            return;
        }
    }
}

static void solve_forward(struct verdict *verdict, struct executor *executor, struct trial *trial,
    const struct judge_run *run, const struct reference *reference)
{
    struct attn_problem forward = trial_forward(trial);
    if (!run->lse) {
        forward.lse.data = NULL;
    }
    if (executor_solve(executor, ATTN_FORWARD, &forward, 1, run->tiles_per_launch) != 0) {
        judge_complain(verdict, "forward returned an error", "");
    }
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
    if (executor_solve(executor, ATTN_BACKWARD, &trial->problem, 1, run->tiles_per_launch) != 0) {
        judge_complain(verdict, "backward returned an error", "");
    }
    if (!trial_intact(trial, trial_backward_outputs)) {
        judge_complain(verdict, "backward wrote outside its outputs", "");
    }
    judge(verdict, reference, &trial->problem, ATTN_BACKWARD);
}

void judge_complain(struct verdict *verdict, const char *what, const char *tensor)
{
    printf("  %s%s%s\n", what, *tensor != '\0' ? " " : "", tensor);
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
    struct reference *reference = reference_create(run->direction, &trial->problem);
    solve_forward(verdict, &executor, trial, run, reference);
    if (run->direction == ATTN_BACKWARD) {
        solve_backward(verdict, &executor, trial, run, reference);
    }
    reference_destroy(reference);
    executor_finish(&executor);
}

#include "judge.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "bar.h"

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

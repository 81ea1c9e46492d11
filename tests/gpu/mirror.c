#include "mirror.h"

#include "check.h"
#include "device.h"

static void move_to_device(struct mirror *mirror)
{
    for (int i = 0; i < TENSOR_COUNT + TRIAL_LENGTHS; i++) {
        DLTensor *tensor = &mirror->request.tensor[i];
        const unsigned char *here = tensor->data;
        if (here != NULL) {
            tensor->data = mirror->twin->device + (here - mirror->twin->arena.bytes);
        }
        tensor->device = (DLDevice){kDLCUDA, 0};
    }
}

/* -- public --------------------------------------------------------------------------------- */

struct twin *mirror_twin(void)
{
    const struct attn_family *family = attn_family_find("sm80");
    CHECK(family != NULL);
    return twin_create(family, MIRROR_BYTES, (size_t)1 << 20);
}

void mirror_init(struct mirror *mirror, const struct trial_spec *spec, bool lse, struct twin *twin)
{
    *mirror = (struct mirror){.twin = twin, .lse = lse};
    twin->arena.used = 0;
    trial_init_in(&mirror->trial, spec, &twin->arena);
    mirror->refusal = trial_request_init(&mirror->request, &mirror->trial, spec, lse);
    move_to_device(mirror);
    CU(twin_up(twin));
    CU(cudaStreamSynchronize(twin->stream));
}

void mirror_finish(struct mirror *mirror)
{
    trial_finish(&mirror->trial);
}

void mirror_judge(struct mirror *mirror, enum attn_direction direction, struct verdict *verdict)
{
    bool written[TENSOR_COUNT] = {[TENSOR_OUT] = true, [TENSOR_LSE] = mirror->lse};
    bool backward = direction == ATTN_BACKWARD;
    struct attn_problem forward = trial_forward(&mirror->trial);
    for (enum tensor_id id = TENSOR_DQ; backward && id < TENSOR_COUNT; id++) {
        written[id] = true;
    }
    CU(twin_down(mirror->twin));
    if (!trial_intact(&mirror->trial, written)) {
        judge_complain(verdict, "something wrote outside the outputs", "");
    }
    struct reference *reference = reference_create(direction, &mirror->trial.problem);
    forward.lse.data = mirror->lse ? forward.lse.data : NULL;
    judge(verdict, reference, &forward, ATTN_FORWARD);
    if (backward) {
        judge(verdict, reference, &mirror->trial.problem, ATTN_BACKWARD);
    }
    reference_destroy(reference);
}

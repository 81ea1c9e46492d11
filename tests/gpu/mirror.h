/*
 * A random problem for the service: in the arena of a twin, whose device memory the daemon works on, and
 * as the requests that a client sends.
 */
#pragma once

#include "judge.h"
#include "trial.h"
#include "trial_request.h"
#include "twin.h"

#define MIRROR_BYTES ((size_t)24 << 20)

struct mirror {
    struct trial trial;
    struct twin *twin;            /* borrowed */
    struct trial_request request; /* tensors on device 0 */
    const char *refusal;          /* what of the problem a client cannot say, or NULL */
    bool lse;                     /* forward returns it */
};

/* A twin of MIRROR_BYTES, to be used for one mirror after another. */
struct twin *mirror_twin(void);

/* The mirror must stay where it is. Brings the inputs to the device. */
void mirror_init(struct mirror *mirror, const struct trial_spec *spec, bool lse, struct twin *twin);
void mirror_finish(struct mirror *mirror);

/* Takes the results back; then the numeric bar, and that only outputs were written. */
void mirror_judge(struct mirror *mirror, enum attn_direction direction, struct verdict *verdict);

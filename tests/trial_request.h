/*
 * A random problem as a client of the daemon sees it: the tensors, options and requests of libattnd.
 */
#pragma once

#include "attnd.h"
#include "trial.h"

struct trial_request {
    int64_t shape[TENSOR_COUNT + TRIAL_LENGTHS][4];
    int64_t strides[TENSOR_COUNT + TRIAL_LENGTHS][4];
    DLTensor tensor[TENSOR_COUNT + TRIAL_LENGTHS]; /* lengths behind the others */
    struct attnd_options options;
    struct attnd_request forward;
    struct attnd_request backward;
};

/*
 * Points into the trial; neither may move. NULL, or what of the problem a client cannot say, in static
 * memory. lse: whether the forward returns it.
 */
const char *trial_request_init(struct trial_request *request, const struct trial *trial,
    const struct trial_spec *spec, bool lse);

/* Whether the library takes the problem's lengths in memory that it reads itself. */
bool trial_request_lengths_fit(const struct trial *trial);

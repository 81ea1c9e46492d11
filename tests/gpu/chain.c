#include "chain.h"

#include "device.h"

static enum attnd_status finish_call(const struct chain *chain, attnd_ticket ticket)
{
    return chain->lockstep ? attnd_wait(chain->client, ticket, ATTND_FOREVER) : ATTND_OK;
}

static void finish_kernel(const struct chain *chain)
{
    if (chain->lockstep) {
        CU(cudaStreamSynchronize(chain->stream));
    }
}

static enum attnd_status call(const struct chain *chain, bool backward)
{
    attnd_ticket ticket = 0;
    enum attnd_status status = backward
                                   ? set_backward(chain->set, chain->client, chain->stream, &ticket)
                                   : set_forward(chain->set, chain->client, chain->stream, &ticket);
    return status == ATTND_OK ? finish_call(chain, ticket) : status;
}

/* -- public --------------------------------------------------------------------------------- */

enum attnd_status chain_enqueue(const struct chain *chain)
{
    struct work_tensors work = set_work(chain->set, chain->backward);
    uint32_t steps = chain->backward ? chain->calls / 2 : chain->calls;
    set_fill(chain->set, chain->stream, chain->seed);
    finish_kernel(chain);
    for (uint32_t step = 0; step < steps; step++) {
        enum attnd_status status = call(chain, false);
        if (status == ATTND_OK && chain->backward) {
            status = call(chain, true);
        }
        if (status != ATTND_OK) {
            return status;
        }
        work_stir(chain->stream, &work, chain->set->count, step);
        finish_kernel(chain);
    }
    return ATTND_OK;
}

bool chain_is_sound(const struct set *set)
{
    enum { SAMPLE = 4096 };

    uint16_t values[3 * SAMPLE];
    size_t count = set->count < SAMPLE ? set->count : SAMPLE;
    size_t bytes = count * sizeof *values;
    CU(cudaMemcpy(values, set_data(set, SET_Q), bytes, cudaMemcpyDeviceToHost));
    CU(cudaMemcpy(values + count, set_data(set, SET_K), bytes, cudaMemcpyDeviceToHost));
    CU(cudaMemcpy(values + 2 * count, set_data(set, SET_V), bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < 3 * count; i++) {
        if ((values[i] & 0x7fff) > 0x3f80) { /* beyond 1, infinite or NaN */
            return false;
        }
    }
    return true;
}

bool chain_agrees(const struct chain *chain, struct set *other, enum attnd_status *status)
{
    struct chain slow = *chain;
    other->options = chain->set->options;
    slow.set = other;
    slow.lockstep = true;
    *status = chain_enqueue(chain);
    if (*status == ATTND_OK) {
        *status = chain_enqueue(&slow);
    }
    CU(cudaStreamSynchronize(chain->stream));
    size_t bytes = 3 * other->pitch; /* q, k and v */
    bool same =
        work_differences(chain->set->memory, other->memory, bytes) == 0 && chain_is_sound(other);
    return same && *status == ATTND_OK;
}

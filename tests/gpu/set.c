#include "set.h"

#include "device.h"

#define ALIGNMENT 256

static size_t elements(const struct set_extents *e)
{
    return (size_t)(e->batch * e->seqlen * e->heads * e->head_dim);
}

/* lse has four bytes an element, but a head_dim of one. */
static size_t pitch_of(const struct set_extents *e)
{
    size_t rows = (size_t)(e->batch * e->seqlen * e->heads) * sizeof(float);
    size_t bytes = elements(e) * sizeof(uint16_t);
    bytes = bytes < rows ? rows : bytes;
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* -- public --------------------------------------------------------------------------------- */

size_t set_bytes(const struct set_extents *extents)
{
    return SET_ALL * pitch_of(extents);
}

void set_init(struct set *set, const struct set_extents *extents, void *memory)
{
    const struct attnd_options defaults = ATTND_OPTIONS_INIT;
    *set = (struct set){
        .shape = {extents->batch, extents->seqlen, extents->heads, extents->head_dim},
        .row_shape = {extents->batch, extents->heads, extents->seqlen},
        .count = elements(extents),
        .pitch = pitch_of(extents),
        .memory = memory,
        .options = defaults,
    };
    set->options.causal = true;
    set->options.deterministic = true;
    for (size_t i = 0; i < SET_ALL; i++) {
        bool rows = i == SET_LSE;
        set->tensor[i] = (DLTensor){.data = set->memory + i * set->pitch,
            .device = {kDLCUDA, 0},
            .ndim = rows ? 3 : 4,
            .dtype = rows ? (DLDataType){kDLFloat, 32, 1} : (DLDataType){kDLBfloat, 16, 1},
            .shape = rows ? set->row_shape : set->shape};
    }
    set->gradients = (struct attnd_gradients){.size = sizeof set->gradients,
        .dout = &set->tensor[SET_DOUT],
        .dq = &set->tensor[SET_DQ],
        .dk = &set->tensor[SET_DK],
        .dv = &set->tensor[SET_DV]};
}

void set_alloc(struct set *set, const struct set_extents *extents)
{
    void *memory = NULL;
    CU(cudaMalloc(&memory, set_bytes(extents)));
    set_init(set, extents, memory);
}

void set_free(struct set *set)
{
    CU(cudaFree(set->memory));
}

void set_fill(struct set *set, void *stream, uint32_t seed)
{
    work_poison(stream, set->memory, SET_ALL * set->pitch);
    for (uint32_t i = 0; i <= SET_DOUT; i++) {
        if (i != SET_OUT) {
            work_fill(stream, set_data(set, (enum set_tensor)i), set->count, seed * 8 + i);
        }
    }
}

struct work_tensors set_work(const struct set *set, bool backward)
{
    struct work_tensors tensors = {.q = set_data(set, SET_Q),
        .k = set_data(set, SET_K),
        .v = set_data(set, SET_V),
        .out = set_data(set, SET_OUT)};
    if (backward) {
        tensors.dq = set_data(set, SET_DQ);
        tensors.dk = set_data(set, SET_DK);
        tensors.dv = set_data(set, SET_DV);
    }
    return tensors;
}

uint16_t *set_data(const struct set *set, enum set_tensor tensor)
{
    return set->tensor[tensor].data;
}

enum attnd_status set_forward(
    struct set *set, struct attnd *client, void *stream, attnd_ticket *ticket)
{
    const DLTensor *t = set->tensor;
    return attnd_forward(client, stream, &t[SET_Q], &t[SET_K], &t[SET_V], &t[SET_OUT], &t[SET_LSE],
        &set->options, ticket);
}

enum attnd_status set_backward(
    struct set *set, struct attnd *client, void *stream, attnd_ticket *ticket)
{
    const DLTensor *t = set->tensor;
    return attnd_backward(client, stream, &t[SET_Q], &t[SET_K], &t[SET_V], &t[SET_OUT], &t[SET_LSE],
        &set->gradients, &set->options, ticket);
}

#include "client_set.h"

#include "check.h"

#define ALIGNMENT 64

struct attnd *client_open(const struct daemon *daemon)
{
    struct attnd *client = NULL;
    struct attnd_open_options options = {.size = sizeof options, .address = daemon->directory};
    enum attnd_status status = attnd_open(&options, &client);
    if (status != ATTND_OK) {
        fprintf(stderr, "attnd_open: %s: %s\n", attnd_status_name(status), attnd_message());
    }
    CHECK(status == ATTND_OK);
    return client;
}

struct attnd_stats client_stats(struct attnd *client)
{
    struct attnd_stats stats = {.size = sizeof stats};
    CHECK(attnd_get_stats(client, &stats) == ATTND_OK);
    return stats;
}

static size_t tensor_bytes(int64_t batch, int64_t seqlen, int64_t heads, int64_t head_dim)
{
    size_t bytes = (size_t)(batch * seqlen * heads * head_dim) * sizeof(float);
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t client_set_bytes(int64_t batch, int64_t seqlen, int64_t heads, int64_t head_dim)
{
    return CLIENT_TENSORS * tensor_bytes(batch, seqlen, heads, head_dim);
}

void client_set_init(struct client_set *set, void *memory, int64_t batch, int64_t seqlen,
    int64_t heads, int64_t head_dim)
{
    *set = (struct client_set){.shape = {batch, seqlen, heads, head_dim},
        .row_shape = {batch, heads, seqlen},
        .bytes = tensor_bytes(batch, seqlen, heads, head_dim),
        .memory = memory};
    for (size_t i = 0; i < CLIENT_TENSORS; i++) {
        bool rows = i >= CLIENT_LSE;
        set->tensor[i] = (DLTensor){.data = set->memory + i * set->bytes,
            .device = {kDLCPU, 0},
            .ndim = rows ? 3 : 4,
            .dtype = {kDLFloat, 32, 1},
            .shape = rows ? set->row_shape : set->shape};
    }
    float *values = memory;
    uint32_t state = 1;
    for (size_t i = 0; i < CLIENT_TENSORS * set->bytes / sizeof *values; i++) {
        state = state * 1664525U + 1013904223U;
        values[i] = (float)(state >> 16) / 32768.0F - 1.0F;
    }
    set->gradients = (struct attnd_gradients){.size = sizeof set->gradients,
        .dout = &set->tensor[CLIENT_DOUT],
        .dq = &set->tensor[CLIENT_DQ],
        .dk = &set->tensor[CLIENT_DK],
        .dv = &set->tensor[CLIENT_DV]};
}

void client_set_alloc(struct client_set *set, struct attnd *client, int64_t batch, int64_t seqlen,
    int64_t heads, int64_t head_dim)
{
    void *memory = NULL;
    size_t bytes = client_set_bytes(batch, seqlen, heads, head_dim);
    CHECK(attnd_alloc(client, bytes, &memory) == ATTND_OK);
    client_set_init(set, memory, batch, seqlen, heads, head_dim);
}

enum attnd_status client_set_forward(struct client_set *set, struct attnd *client, void *stream,
    const struct attnd_options *options, attnd_ticket *ticket)
{
    const DLTensor *t = set->tensor;
    return attnd_forward(client, stream, &t[CLIENT_Q], &t[CLIENT_K], &t[CLIENT_V], &t[CLIENT_OUT],
        &t[CLIENT_LSE], options, ticket);
}

enum attnd_status client_set_backward(struct client_set *set, struct attnd *client, void *stream,
    const struct attnd_options *options, attnd_ticket *ticket)
{
    const DLTensor *t = set->tensor;
    return attnd_backward(client, stream, &t[CLIENT_Q], &t[CLIENT_K], &t[CLIENT_V], &t[CLIENT_OUT],
        &t[CLIENT_LSE], &set->gradients, options, ticket);
}

float *client_set_data(const struct client_set *set, enum client_tensor tensor)
{
    return set->tensor[tensor].data;
}

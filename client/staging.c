#include "staging.h"

#include <stdlib.h>

#include "client.h"
#include "elements.h"
#include "submit.h"
#include "validate.h"
#include "wait.h"

/* One tensor that has a double. */
struct staged {
    struct wire_tensor original;
    struct wire_tensor compact;
    DLTensor tensor; /* the double, as a request's tensor */
    void *home;      /* element (0, ..., 0) of the original */
    uint64_t offset; /* in the doubles' memory */
    bool output;
};

struct stage {
    struct request request[WIRE_MAX_CALLS]; /* with the doubles */
    size_t staged;
    uint64_t bytes;
    struct staged tensor[]; /* as many as there are */
};

/* false: the doubles together are larger than any number says. */
static bool stage_tensor(struct stage *stage, const struct wire_tensor *original,
    const DLTensor *tensor, uint64_t address, bool output)
{
    struct staged *staged = &stage->tensor[stage->staged++];
    staged->original = *original;
    staged->compact = *original;
    staged->tensor = *tensor;
    staged->tensor.strides = NULL;
    staged->tensor.byte_offset = 0;
    staged->home = (void *)(uintptr_t)address;
    staged->offset = stage->bytes;
    staged->output = output;
    uint64_t bytes = elements_compact(&staged->compact); /* far from the largest number */
    bytes = (bytes + BLOCK_ALIGNMENT - 1) / BLOCK_ALIGNMENT * BLOCK_ALIGNMENT;
    return !__builtin_add_overflow(stage->bytes, bytes, &stage->bytes);
}

/* The requests were checked, so reading them again finds nothing wrong. */
static bool stage_request(
    struct attnd *client, struct stage *stage, struct request *request, struct wire_error *error)
{
    struct wire_plan plan;
    uint64_t address[WIRE_MAX_TENSORS];
    if (!request_plan(request, &plan, address, error)) {
        return false;
    }
    for (uint32_t i = 0; i < plan.tensors; i++) {
        const struct wire_tensor *wire = &plan.tensor[i];
        if (!memory_is_shared(client, address[i])) {
            bool output = wire_role_is_output(plan.direction, wire->role);
            if (!stage_tensor(stage, wire, request->tensor[wire->role], address[i], output)) {
                return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
                    "%s, with the tensors before it, is too large to be copied to shared memory",
                    wire_role_name(wire->role));
            }
            request->tensor[wire->role] = &stage->tensor[stage->staged - 1].tensor;
        }
    }
    return true;
}

static void copy_in(struct stage *stage, const struct block_piece *piece)
{
    for (size_t i = 0; i < stage->staged; i++) {
        struct staged *staged = &stage->tensor[i];
        staged->tensor.data = piece->data + staged->offset;
        if (!staged->output) {
            elements_copy(&staged->compact, staged->tensor.data, &staged->original, staged->home);
        }
    }
}

static void copy_out(const struct stage *stage)
{
    for (size_t i = 0; i < stage->staged; i++) {
        const struct staged *staged = &stage->tensor[i];
        if (staged->output) {
            elements_copy(&staged->original, staged->home, &staged->compact, staged->tensor.data);
        }
    }
}

/* The stream's earlier requests write only memory of the daemon's, which is not copied: the lane's
 * order is all the order that is needed. */
static enum attnd_status run_staged(
    struct attnd *client, void *stream, struct stage *stage, size_t count, attnd_ticket *ticket)
{
    struct block_piece piece;
    enum attnd_status status = block_acquire(client, stage->bytes, false, &piece);
    if (status != ATTND_OK) {
        return status;
    }
    copy_in(stage, &piece);
    status = submit_in_place(client, stream, stage->request, count, ticket);
    if (status == ATTND_OK) {
        struct wire_error error;
        wait_ended(client, *ticket, &error);
        if (error.status == WIRE_OK) {
            copy_out(stage);
        }
    }
    block_release(client, &piece);
    return status;
}

enum attnd_status staging_submit(struct attnd *client, void *stream, const struct request *requests,
    size_t count, attnd_ticket *ticket)
{
    size_t most = count * WIRE_MAX_TENSORS;
    struct stage *stage = calloc(1, sizeof *stage + most * sizeof stage->tensor[0]);
    if (!stage) {
        return error_set(ATTND_RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    enum attnd_status status = ATTND_OK;
    for (size_t i = 0; i < count && status == ATTND_OK; i++) {
        struct wire_error error;
        stage->request[i] = requests[i];
        if (!stage_request(client, stage, &stage->request[i], &error)) {
            status = error_of_request("", &error);
        }
    }
    if (status == ATTND_OK) {
        status = run_staged(client, stream, stage, count, ticket);
    }
    free(stage);
    return status;
}

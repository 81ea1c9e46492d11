#include "staging.h"

#include <stdlib.h>

#include "client.h"
#include "request.h"
#include "submit.h"
#include "validate.h"
#include "wait.h"

#define ALIGNMENT UINT64_C(64)
#define SMALLEST_BLOCK (UINT64_C(1) << 20)

/* One tensor that has a double in the block. */
struct staged {
    struct wire_tensor original;
    struct wire_tensor compact;
    DLTensor tensor; /* the double, as a request's tensor */
    void *home;      /* element (0, ..., 0) of the original */
    uint64_t offset; /* in the block */
    bool output;
};

struct stage {
    struct attnd_request request[WIRE_MAX_CALLS]; /* with the doubles */
    size_t staged;
    uint64_t bytes;
    struct staged tensor[]; /* as many as there are */
};

static bool lies_outside(struct attnd *client, uint64_t address)
{
    bool partly;
    (void)pthread_mutex_lock(&client->mutex);
    bool outside = !memory_find(&client->memory, address, 0, 0, &partly);
    (void)pthread_mutex_unlock(&client->mutex);
    return outside;
}

static void stage_tensor(struct stage *stage, const struct wire_tensor *original,
    const DLTensor *tensor, uint64_t address, bool output)
{
    struct staged *staged = &stage->tensor[stage->staged++];
    staged->original = *original;
    staged->compact = *original;
    staged->tensor = *tensor;
    staged->tensor.strides = NULL;
    staged->tensor.byte_offset = 0;
    staged->home = (void *)(uintptr_t)address; /* NOLINT(performance-no-int-to-ptr): the caller's */
    staged->offset = stage->bytes;
    staged->output = output;
    uint64_t bytes = request_compact(&staged->compact);
    stage->bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* The requests were checked, so reading them again finds nothing wrong. */
static bool stage_request(struct attnd *client, struct stage *stage, struct attnd_request *request,
    struct wire_error *error)
{
    struct wire_plan plan;
    uint64_t address[WIRE_MAX_TENSORS];
    if (!request_read(request, &plan, address, error)) {
        return false;
    }
    for (uint32_t i = 0; i < plan.tensors; i++) {
        const struct wire_tensor *wire = &plan.tensor[i];
        if (lies_outside(client, address[i])) {
            bool output = wire_role_is_output(plan.direction, wire->role);
            const DLTensor *tensor = request_tensor(request, wire->role);
            stage_tensor(stage, wire, tensor, address[i], output);
            request_set_tensor(request, wire->role, &stage->tensor[stage->staged - 1].tensor);
        }
    }
    return true;
}

static struct staging_block *find_block(struct staging *staging, uint64_t bytes)
{
    struct staging_block *best = NULL;
    for (struct staging_block *block = staging->blocks; block; block = block->next) {
        if (!block->busy && block->region->bytes >= bytes &&
            (!best || block->region->bytes < best->region->bytes)) {
            best = block;
        }
    }
    return best;
}

static enum attnd_status make_block(
    struct attnd *client, uint64_t bytes, struct staging_block **made)
{
    uint64_t size = SMALLEST_BLOCK;
    while (size < bytes && size < UINT64_C(1) << 62) {
        size *= 2; /* so that calls of growing size do not each make a new one */
    }
    struct staging_block *block = calloc(1, sizeof *block);
    if (!block) {
        return error_set(ATTND_RESOURCE_EXHAUSTED, "the process is out of memory");
    }
    enum attnd_status status = memory_create(client, size, &block->region);
    if (status == ATTND_RESOURCE_EXHAUSTED) {
        status = memory_create(client, bytes, &block->region);
    }
    if (status != ATTND_OK) {
        free(block);
        return status;
    }
    block->next = client->staging.blocks;
    client->staging.blocks = block;
    *made = block;
    return ATTND_OK;
}

/* Idle blocks that were all too small. */
static void drop_idle_blocks(struct attnd *client)
{
    struct staging_block **link = &client->staging.blocks;
    while (*link) {
        struct staging_block *block = *link;
        if (block->busy) {
            link = &block->next;
        } else {
            *link = block->next;
            memory_destroy(client, block->region);
            free(block);
        }
    }
}

static enum attnd_status acquire_block(
    struct attnd *client, uint64_t bytes, struct staging_block **block)
{
    enum attnd_status status = ATTND_OK;
    (void)pthread_mutex_lock(&client->staging.mutex);
    *block = find_block(&client->staging, bytes);
    if (!*block) {
        status = make_block(client, bytes, block);
    }
    if (status == ATTND_RESOURCE_EXHAUSTED) {
        drop_idle_blocks(client);
        status = make_block(client, bytes, block);
    }
    if (status == ATTND_OK) {
        (*block)->busy = true;
    }
    (void)pthread_mutex_unlock(&client->staging.mutex);
    return status;
}

static void release_block(struct attnd *client, struct staging_block *block)
{
    (void)pthread_mutex_lock(&client->staging.mutex);
    block->busy = false;
    (void)pthread_mutex_unlock(&client->staging.mutex);
}

static void copy_in(struct stage *stage, const struct staging_block *block)
{
    for (size_t i = 0; i < stage->staged; i++) {
        struct staged *staged = &stage->tensor[i];
        staged->tensor.data = block->region->base + staged->offset;
        if (!staged->output) {
            request_copy_elements(
                &staged->compact, staged->tensor.data, &staged->original, staged->home);
        }
    }
}

static void copy_out(const struct stage *stage)
{
    for (size_t i = 0; i < stage->staged; i++) {
        const struct staged *staged = &stage->tensor[i];
        if (staged->output) {
            request_copy_elements(
                &staged->original, staged->home, &staged->compact, staged->tensor.data);
        }
    }
}

/* The stream's earlier requests write only memory of the daemon's, which is not copied: the lane's
 * order is all the order that is needed. */
static enum attnd_status run_staged(
    struct attnd *client, void *stream, struct stage *stage, size_t count, attnd_ticket *ticket)
{
    struct staging_block *block;
    enum attnd_status status = acquire_block(client, stage->bytes, &block);
    if (status != ATTND_OK) {
        return status;
    }
    copy_in(stage, block);
    status = submit_in_place(client, stream, stage->request, count, ticket);
    if (status == ATTND_OK) {
        struct wire_error error;
        wait_ended(client, *ticket, &error);
        if (error.status == WIRE_OK) {
            copy_out(stage);
        }
    }
    release_block(client, block);
    return status;
}

void staging_init(struct staging *staging)
{
    (void)pthread_mutex_init(&staging->mutex, NULL);
}

void staging_finish(struct staging *staging)
{
    while (staging->blocks) {
        struct staging_block *block = staging->blocks;
        staging->blocks = block->next;
        free(block);
    }
    (void)pthread_mutex_destroy(&staging->mutex);
}

enum attnd_status staging_submit(struct attnd *client, void *stream,
    const struct attnd_request *requests, size_t count, attnd_ticket *ticket)
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

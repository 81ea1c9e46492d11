#include "block.h"

#include <stdlib.h>

#include "client.h"
#include "clock.h"

#define SMALLEST_BLOCK (UINT64_C(1) << 20)
#define PAUSE_NS 100000

static uint64_t room(const struct block *block)
{
    return block->region->bytes - block->used;
}

/* The fullest that has room: small pieces leave the others empty for large ones. */
static struct block *find_block(struct attnd *client, uint64_t bytes)
{
    struct block *best = NULL;
    for (struct block *block = client->blocks.first; block; block = block->next) {
        if (memory_is_unused(client, block->region)) {
            block->used = 0;
        }
        if (room(block) >= bytes && (!best || room(block) < room(best))) {
            best = block;
        }
    }
    return best;
}

static enum attnd_status make_block(struct attnd *client, uint64_t bytes, struct block **made)
{
    uint64_t size = SMALLEST_BLOCK;
    while (size < bytes && size < UINT64_C(1) << 62) {
        size *= 2; /* so that calls of growing size do not each make a new one */
    }
    size = size < bytes ? bytes : size;
    struct block *block = calloc(1, sizeof *block);
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
    block->next = client->blocks.first;
    client->blocks.first = block;
    *made = block;
    return ATTND_OK;
}

/* Returns whether there are others. */
static bool drop_unused_blocks(struct attnd *client)
{
    struct block **link = &client->blocks.first;
    while (*link) {
        struct block *block = *link;
        if (memory_is_unused(client, block->region)) {
            *link = block->next;
            memory_destroy(client, block->region);
            free(block);
        } else {
            link = &block->next;
        }
    }
    return client->blocks.first != NULL;
}

/* Without the mutex: who holds a piece may need another one before it lets go. */
static void pause_unlocked(struct attnd *client)
{
    struct timespec pause = clock_timespec(PAUSE_NS);
    (void)pthread_mutex_unlock(&client->blocks.mutex);
    (void)nanosleep(&pause, NULL);
    (void)pthread_mutex_lock(&client->blocks.mutex);
}

static enum attnd_status find_or_make_block(
    struct attnd *client, uint64_t bytes, bool wait, struct block **block)
{
    for (;;) {
        *block = find_block(client, bytes);
        if (*block) {
            return ATTND_OK;
        }
        enum attnd_status status = make_block(client, bytes, block);
        bool others = true;
        if (status == ATTND_RESOURCE_EXHAUSTED) {
            others = drop_unused_blocks(client);
            status = make_block(client, bytes, block);
        }
        if (status != ATTND_RESOURCE_EXHAUSTED || !others || !wait) {
            return status;
        }
        status = loss_check(&client->loss);
        if (status != ATTND_OK) {
            return status;
        }
        pause_unlocked(client);
    }
}

void block_init(struct blocks *blocks)
{
    (void)pthread_mutex_init(&blocks->mutex, NULL);
}

void block_finish(struct blocks *blocks)
{
    while (blocks->first) {
        struct block *block = blocks->first;
        blocks->first = block->next;
        free(block);
    }
    (void)pthread_mutex_destroy(&blocks->mutex);
}

enum attnd_status block_acquire(
    struct attnd *client, uint64_t bytes, bool wait, struct block_piece *piece)
{
    struct block *block = NULL;
    bytes = (bytes + BLOCK_ALIGNMENT - 1) / BLOCK_ALIGNMENT * BLOCK_ALIGNMENT;
    (void)pthread_mutex_lock(&client->blocks.mutex);
    enum attnd_status status = find_or_make_block(client, bytes, wait, &block);
    if (status == ATTND_OK) {
        memory_hold(client, block->region);
        *piece = (struct block_piece){block->region, block->region->base + block->used};
        block->used += bytes;
    }
    (void)pthread_mutex_unlock(&client->blocks.mutex);
    return status;
}

void block_release(struct attnd *client, const struct block_piece *piece)
{
    if (piece->region) {
        memory_let_go(client, piece->region);
    }
}

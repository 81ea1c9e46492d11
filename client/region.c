#include "region.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FIRST_CAPACITY 16

/* Index of the first region with a base above the address. */
static size_t upper_bound(const struct region_table *table, uint64_t address)
{
    size_t low = 0;
    size_t high = table->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)table->sorted[middle]->base <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool region_insert(struct region_table *table, struct region *region)
{
    if (table->count == table->capacity) {
        size_t capacity = table->capacity ? 2 * table->capacity : FIRST_CAPACITY;
        struct region **grown = realloc(table->sorted, capacity * sizeof(struct region *));
        if (!grown) {
            return false;
        }
        table->sorted = grown;
        table->capacity = capacity;
    }
    size_t at = upper_bound(table, (uintptr_t)region->base);
    memmove(
        &table->sorted[at + 1], &table->sorted[at], (table->count - at) * sizeof(struct region *));
    table->sorted[at] = region;
    table->count++;
    return true;
}

void region_take_out(struct region_table *table, const struct region *region)
{
    size_t at = upper_bound(table, (uintptr_t)region->base) - 1;
    table->count--;
    memmove(
        &table->sorted[at], &table->sorted[at + 1], (table->count - at) * sizeof(struct region *));
}

struct region *region_find(const struct region_table *table, uint64_t address)
{
    size_t above = upper_bound(table, address);
    struct region *region = above > 0 ? table->sorted[above - 1] : NULL;
    return region && address - (uintptr_t)region->base < region->bytes ? region : NULL;
}

uint64_t region_begin(const struct region *region)
{
    return (uintptr_t)region->base;
}

uint64_t region_end(const struct region *region)
{
    return region_begin(region) + region->bytes;
}

bool region_add_piece(struct region *region, uint64_t base, uint64_t id)
{
    if ((region->pieces & (region->pieces - 1)) == 0) { /* 0 or a power of 2: it is full */
        size_t capacity = region->pieces ? 2 * region->pieces : 1;
        struct region_piece *grown = realloc(region->piece, capacity * sizeof *grown);
        if (!grown) {
            return false;
        }
        region->piece = grown;
    }
    region->piece[region->pieces++] = (struct region_piece){base, id};
    return true;
}

size_t region_piece_at(const struct region *region, uint64_t address)
{
    size_t low = 0;
    size_t high = region->pieces;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (region->piece[middle].base <= address) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

bool region_can_reach(const struct region *region, uint64_t end)
{
    return region->kind != WIRE_MEMORY_CUDA_VMM || end - region_begin(region) <= region->reserve;
}

void region_free(struct region *region)
{
    if (region->kind == WIRE_MEMORY_SHM && region->base) {
        (void)munmap(region->base, region->bytes);
    }
    free(region->piece);
    free(region);
}

void region_free_all(struct region_table *table)
{
    for (size_t i = 0; i < table->count; i++) {
        region_free(table->sorted[i]);
    }
    free(table->sorted);
    *table = (struct region_table){0};
}

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

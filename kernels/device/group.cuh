/*
 * Which tile of which item a block of a launch does.
 */
#pragma once

#include <ptx/sm80.cuh>

#include "args.h"

struct device_place {
    const struct device_item *item;
    uint64_t tile; /* of the item's problem and the launch's stage */
};

PTX_FUNCTION struct device_place device_place_of(const struct device_group &group, uint32_t block)
{
    uint32_t before = 0;
    uint32_t i = 0;
    while (block >= group.end[i]) {
        before = group.end[i];
        i++;
    }
    struct device_place place;
    place.item = &group.item[i];
    place.tile = place.item->first + (block - before);
    return place;
}

/*
 * What the driver says about device memory: of which kind it is, where the pieces around it begin and
 * end, and whether a region is still what was registered. Registers nothing (export.h). Callers hold
 * devices.mutex.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attnd.h"
#include "driver.h"
#include "region.h"
#include "wire.h"

/* A tensor whose memory is looked for. */
struct probe_wanted {
    const char *name;
    int ordinal;
    uint64_t first; /* byte */
    uint64_t end;
};

/* What the driver gave at once. */
struct probe_piece {
    uint64_t base;
    uint64_t bytes;
    struct driver_memory memory;
};

/* What lies at the wanted beginning. false: *error says why no daemon can have it. */
bool probe_first(struct attnd *client, const struct probe_wanted *wanted, struct probe_piece *piece,
    struct wire_error *error);

/* The piece that begins there. false: none, or another device's. */
bool probe_next(struct attnd *client, const struct probe_wanted *wanted, uint64_t base,
    struct probe_piece *piece);

/* Where the run of mapped pieces begins that the one at `base` is part of, or where the known region ends
 * that the run continues: *known, NULL if that has no room for what is wanted. */
uint64_t probe_begin_of_run(
    struct attnd *client, const struct probe_wanted *wanted, uint64_t base, struct region **known);

/* The most bytes that a region from this piece on can come to, at least `bytes`: what its addresses were
 * reserved for. */
uint64_t probe_reserve(struct attnd *client, const struct probe_piece *piece, uint64_t bytes);

/* Whether what lies in [first, end) and in the region is what was registered. */
bool probe_is_alive(
    const struct attnd *client, const struct region *region, uint64_t first, uint64_t end);

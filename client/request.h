/*
 * A caller's call as the wire says it: reads structs and tensors, decides nothing about memory. Pure
 * functions; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "wire.h"

/* One call, its structs read completely and its tensors found by role. */
struct request {
    enum attnd_direction direction;
    struct attnd_options options;          /* but its tensors, which are here: */
    const DLTensor *tensor[WIRE_ROLE_END]; /* borrowed; NULL: not given */
    uint32_t
        copied; /* bits, by role: lengths that stand in for the caller's and are to be checked */
};

/*
 * Copies a struct of the caller that begins with its size, over defaults that *known already has. A
 * shorter one comes from a program built with an older attnd.h, a longer one from a newer: what this
 * library does not know of it must be zero. The prefix is how its members are named: "options->".
 */
bool request_read_sized(const char *prefix, void *known, size_t known_bytes, const void *given,
    struct wire_error *error);

/* Where the tensors of requests lie. */
struct request_memory {
    bool device; /* of a GPU, all but perhaps lengths */
    int ordinal; /* the GPU's number in this process */
};

/* Reads the options of a request that was itself read completely. */
bool request_read(
    const struct attnd_request *given, struct request *request, struct wire_error *error);

/* Fills the plan of a request and the places of its tensors, in the plan's order. What
 * validate_plan() looks at is not looked at here. */
bool request_plan(const struct request *request, struct wire_plan *plan,
    uint64_t address[WIRE_MAX_TENSORS], struct wire_error *error);

/* Where a request's tensors lie; *memory is that of the requests before, if there are any. */
bool request_find_memory(const struct request *request, bool first, struct request_memory *memory,
    struct wire_error *error);

/* Whether the processor may read and write the tensor. */
bool request_is_host(const DLTensor *tensor);

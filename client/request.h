/*
 * An attnd_request as the wire says it: reads the caller's structs and tensors, decides nothing about
 * memory. Pure functions; any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attnd.h"
#include "wire.h"

/*
 * Copies a struct of the caller that begins with its size, over defaults that *known already has. A
 * shorter one comes from a program built with an older attnd.h, a longer one from a newer: what this
 * library does not know of it must be zero. The prefix is how its members are named: "options->".
 */
bool request_read_sized(const char *prefix, void *known, size_t known_bytes, const void *given,
    struct wire_error *error);

/* The member of the request that has this role. */
const DLTensor *request_tensor(const struct attnd_request *request, enum wire_role role);
void request_set_tensor(struct attnd_request *request, enum wire_role role, const DLTensor *tensor);

/* Address of element (0, ..., 0). */
uint64_t request_address(const DLTensor *tensor);

/* Fills the plan of a request and the places of its tensors, in the plan's order. What
 * validate_plan() looks at is not looked at here. */
bool request_read(const struct attnd_request *request, struct wire_plan *plan,
    uint64_t address[WIRE_MAX_TENSORS], struct wire_error *error);

/* Copies the elements of one tensor to another of equal shape and dtype. */
void request_copy_elements(const struct wire_tensor *to, void *to_data,
    const struct wire_tensor *from, const void *from_data);

/* The same tensor with compact strides. Returns its size in bytes. */
uint64_t request_compact(struct wire_tensor *tensor);

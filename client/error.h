/*
 * The sentence of a thread's last failed call, and how a failure of the wire becomes one of the API.
 */
#pragma once

#include "attnd.h"
#include "wire.h"

#define ERROR_PRINTF(text, arguments) __attribute__((format(printf, text, arguments)))

/* Keeps the sentence for attnd_message() and returns the status. */
enum attnd_status error_set(enum attnd_status status, const char *format, ...) ERROR_PRINTF(2, 3);

/* The same with a sentence about a request, whose tensors and options are named as in attnd.h.
 * `where` goes before the name: "" or "requests[3]". */
enum attnd_status error_of_request(const char *where, const struct wire_error *error);

/* A failure that the daemon told. */
enum attnd_status error_of_wire(const struct wire_error *error);

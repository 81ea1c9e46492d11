/*
 * A writer of protobuf messages that shares nothing with the codec, for messages which that would
 * never write. Buffers are bounded by their array: only tests' own content goes in.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct bytes {
    size_t size;
    uint8_t data[4096];
};

void bytes_put_varint(struct bytes *bytes, uint64_t value);
void bytes_put_number(struct bytes *bytes, uint32_t tag, uint64_t value);
void bytes_put_data(struct bytes *bytes, uint32_t tag, const void *data, size_t size);
void bytes_put_text(struct bytes *bytes, uint32_t tag, const char *text);
void bytes_put_message(struct bytes *bytes, uint32_t tag, const struct bytes *inner);
/* A message with nothing but an id and one member of its body. */
struct bytes bytes_around(uint32_t tag, const struct bytes *body);
char *bytes_filled(char *text, size_t length);

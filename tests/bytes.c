#include "bytes.h"

#include <string.h>

void bytes_put_varint(struct bytes *bytes, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) {
        bytes->data[bytes->size++] = (uint8_t)(value | 0x80);
    }
    bytes->data[bytes->size++] = (uint8_t)value;
}

void bytes_put_number(struct bytes *bytes, uint32_t tag, uint64_t value)
{
    bytes_put_varint(bytes, tag << 3);
    bytes_put_varint(bytes, value);
}

void bytes_put_data(struct bytes *bytes, uint32_t tag, const void *data, size_t size)
{
    bytes_put_varint(bytes, tag << 3 | 2);
    bytes_put_varint(bytes, size);
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

void bytes_put_text(struct bytes *bytes, uint32_t tag, const char *text)
{
    bytes_put_data(bytes, tag, text, strlen(text));
}

void bytes_put_message(struct bytes *bytes, uint32_t tag, const struct bytes *inner)
{
    bytes_put_data(bytes, tag, inner->data, inner->size);
}

/* A message with nothing but an id and one member of its body. */
struct bytes bytes_around(uint32_t tag, const struct bytes *body)
{
    struct bytes outer = {0};

    bytes_put_number(&outer, 1, 77);
    bytes_put_message(&outer, tag, body);
    return outer;
}

char *bytes_filled(char *text, size_t length)
{
    memset(text, 'n', length);
    text[length] = 0;
    return text;
}

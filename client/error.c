#include "error.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SENTENCE_BYTES 512

static _Thread_local char sentence[SENTENCE_BYTES];

/* Whether a sentence begins with this word. */
static bool begins_with(const char *text, const char *word)
{
    size_t length = strlen(word);
    if (strncmp(text, word, length) != 0) {
        return false;
    }
    char next = text[length];
    return next != '_' && !isalnum((unsigned char)next);
}

/* The wire says "k.shape[2]" where the API's user wrote k->shape[2], "scale" for options->scale. */
static void name_as_in_api(const char *detail, char *out, size_t capacity)
{
    static const char *const options[] = {"scale", "softcap", "alignment", "window_left",
        "window_right", "dropout_p", "max_seqlen_q", "max_seqlen_k", "bias", "slopes", "sinks",
        "cu_seqlens_q", "cu_seqlens_k", "seqlens_k"};
    static const char *const fields[] = {".shape[", ".strides[", ".dtype"};

    size_t used = 0;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (begins_with(detail, options[i])) {
            used = (size_t)snprintf(out, capacity, "options->");
        }
    }
    for (; *detail && used + 3 < capacity; detail++) {
        bool field = false;
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            field = field || strncmp(detail, fields[i], strlen(fields[i])) == 0;
        }
        memcpy(out + used, field ? "->" : detail, field ? 2 : 1);
        used += field ? 2 : 1;
    }
    out[used] = '\0';
}

enum attnd_status error_set(enum attnd_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return status;
}

enum attnd_status error_of_request(const char *where, const struct wire_error *error)
{
    char text[WIRE_DETAIL_BYTES + 32];
    name_as_in_api(error->detail, text, sizeof text);
    return error_set((enum attnd_status)error->status, "%s%s", where, text);
}

enum attnd_status error_of_wire(const struct wire_error *error)
{
    return error_of_request("", error);
}

const char *attnd_status_name(enum attnd_status status)
{
    return wire_status_name((enum wire_status)status);
}

const char *attnd_message(void)
{
    return sentence;
}

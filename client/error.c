#include "error.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SENTENCE_BYTES 512

static _Thread_local char sentence[SENTENCE_BYTES];

static const char *const option_names[] = {"scale", "softcap", "alignment", "window_left",
    "window_right", "dropout_p", "max_seqlen_q", "max_seqlen_k", "bias", "slopes", "sinks",
    "cu_seqlens_q", "cu_seqlens_k", "seqlens_k"};

#define OPTION_NAMES (sizeof option_names / sizeof *option_names)

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

/* Others tell of the daemon or the process. */
static bool begins_with_argument(const char *detail)
{
    bool argument = begins_with(detail, "size") || begins_with(detail, "options") ||
                    begins_with(detail, "direction");
    for (size_t i = 0; i < OPTION_NAMES; i++) {
        argument = argument || begins_with(detail, option_names[i]);
    }
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        argument = argument || begins_with(detail, wire_role_name(role));
    }
    return argument;
}

/* The wire says "k.shape[2]" where the API's user wrote k->shape[2], "scale" for options->scale. */
static void name_as_in_api(const char *detail, char *out, size_t capacity)
{
    static const char *const fields[] = {".shape[", ".strides[", ".dtype"};

    size_t used = 0;
    for (size_t i = 0; i < OPTION_NAMES; i++) {
        if (begins_with(detail, option_names[i])) {
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
    const char *join = begins_with_argument(error->detail) ? "." : ": ";
    name_as_in_api(error->detail, text, sizeof text);
    return error_set((enum attnd_status)error->status, "%s%s%s", where, *where ? join : "", text);
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

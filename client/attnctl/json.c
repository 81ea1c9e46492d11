#include "json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

/* A name of a file or a process is bytes; those past ASCII are written as if they were Latin-1, which
 * keeps the text valid. */
static void write_text(const struct json *json, const char *text)
{
    (void)fputc('"', json->file);
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++) {
        if (*at == '"' || *at == '\\') {
            (void)fprintf(json->file, "\\%c", *at);
        } else if (*at < 0x20 || *at > 0x7E) {
            (void)fprintf(json->file, "\\u%04x", *at);
        } else {
            (void)fputc(*at, json->file);
        }
    }
    (void)fputc('"', json->file);
}

static void begin_value(struct json *json, const char *name)
{
    (void)fprintf(
        json->file, "%s%s", json->filled[json->depth] ? "," : "", json->depth > 0 ? "\n" : "");
    (void)fprintf(json->file, "%*s", 2 * json->depth, "");
    json->filled[json->depth] = true;
    if (name != NULL) {
        write_text(json, name);
        (void)fputs(": ", json->file);
    }
}

void json_open(struct json *json, const char *name, char bracket)
{
    begin_value(json, name);
    (void)fputc(bracket, json->file);
    json->depth++;
    assert(json->depth < JSON_MAX_DEPTH);
    json->filled[json->depth] = false;
}

void json_close(struct json *json, char bracket)
{
    json->depth--;
    if (json->filled[json->depth + 1]) {
        (void)fprintf(json->file, "\n%*s", 2 * json->depth, "");
    }
    (void)fputc(bracket, json->file);
    if (json->depth == 0) {
        (void)fputc('\n', json->file);
    }
}

void json_text(struct json *json, const char *name, const char *text)
{
    begin_value(json, name);
    if (text == NULL) {
        (void)fputs("null", json->file);
    } else {
        write_text(json, text);
    }
}

void json_whole(struct json *json, const char *name, uint64_t number)
{
    begin_value(json, name);
    (void)fprintf(json->file, "%" PRIu64, number);
}

void json_number(struct json *json, const char *name, double number)
{
    begin_value(json, name);
    if (isfinite(number)) {
        (void)fprintf(json->file, "%.9g", number);
    } else {
        (void)fputs("null", json->file);
    }
}

void json_bool(struct json *json, const char *name, bool value)
{
    begin_value(json, name);
    (void)fputs(value ? "true" : "false", json->file);
}

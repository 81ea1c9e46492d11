#include "json.h"

#include <assert.h>
#include <math.h>

static void write_text(struct json *json, const char *text)
{
    (void)fputc('"', json->file);
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\') {
            (void)fprintf(json->file, "\\%c", byte);
        } else if (byte < 0x20) {
            (void)fprintf(json->file, "\\u%04x", byte);
        } else {
            (void)fputc(byte, json->file);
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
    (void)fprintf(json->file, "\n%*s%c", 2 * json->depth, "", bracket);
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

void json_number(struct json *json, const char *name, double number)
{
    begin_value(json, name);
    if (isfinite(number)) {
        (void)fprintf(json->file, "%.9g", number);
    } else {
        (void)fputs("null", json->file);
    }
}

/*
 * Writes JSON to a file, an object or array at a time; strings come out in ASCII. One thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_MAX_DEPTH 8

struct json {
    FILE *file; /* borrowed */
    int depth;
    bool filled[JSON_MAX_DEPTH]; /* something stands in the object already */
};

/* name is NULL within an array, and for the outermost object. */
void json_open(struct json *json, const char *name, char bracket);
void json_close(struct json *json, char bracket);
void json_text(struct json *json, const char *name, const char *text); /* NULL: null */
void json_whole(struct json *json, const char *name, uint64_t number);
void json_number(struct json *json, const char *name, double number); /* not finite: null */
void json_bool(struct json *json, const char *name, bool value);

#include "progress.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "measure.h"

#define SECONDS_BETWEEN 10.0
#define CASE_BYTES 160

static struct {
    char name[CASE_BYTES];
    double last; /* when a note was written; 0: the program has just begun */
    bool visible;
} progress;

static bool is_due(void)
{
    double now = measure_now();
    if (isatty(STDERR_FILENO) != 0) {
        return true;
    }
    if (progress.last != 0 && now - progress.last < SECONDS_BETWEEN) {
        return false;
    }
    bool first = progress.last == 0;
    progress.last = now;
    return !first;
}

void progress_case(int number, int count, const char *what)
{
    (void)snprintf(progress.name, sizeof progress.name, "%d/%d %s", number, count, what);
}

void progress_show(const char *format, ...)
{
    va_list arguments;
    if (!is_due()) {
        return;
    }
    progress_clear();
    (void)fprintf(stderr, "%s: ", progress.name);
    va_start(arguments, format);
    (void)vfprintf(stderr, format, arguments);
    va_end(arguments);
    progress.visible = isatty(STDERR_FILENO) != 0;
    (void)fprintf(stderr, "%s", progress.visible ? "" : "\n");
    (void)fflush(stderr);
}

void progress_clear(void)
{
    if (progress.visible) {
        (void)fprintf(stderr, "\r\033[K");
        progress.visible = false;
    }
}

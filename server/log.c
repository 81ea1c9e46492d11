#include "log.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_BYTES 1024

static const struct {
    enum log_level level;
    const char *name;
} levels[] = {
    {LOG_LEVEL_ERROR, "error"},
    {LOG_LEVEL_WARNING, "warning"},
    {LOG_LEVEL_INFO, "info"},
    {LOG_LEVEL_DEBUG, "debug"},
};

/* Written by log_init() before there are threads, only read afterwards. */
static enum log_level threshold = LOG_LEVEL_INFO;
static bool journal;

/* $JOURNAL_STREAM names the device and inode of the stream that systemd gave us; it says nothing
 * about stderr once somebody has redirected that. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat status;
    char own[64];

    if (stream == NULL || fstat(STDERR_FILENO, &status) != 0) {
        return false;
    }
    (void)snprintf(own, sizeof(own), "%ju:%ju", (uintmax_t)status.st_dev, (uintmax_t)status.st_ino);
    return strcmp(stream, own) == 0;
}

void log_init(enum log_level level)
{
    threshold = level;
    journal = stderr_is_journal();
}

bool log_level_parse(const char *name, enum log_level *level)
{
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (strcmp(name, levels[i].name) == 0) {
            *level = levels[i].level;
            return true;
        }
    }
    return false;
}

const char *log_level_name(enum log_level level)
{
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (levels[i].level == level) {
            return levels[i].name;
        }
    }
    return "?";
}

void log_print(enum log_level level, const char *format, ...)
{
    char line[LINE_BYTES];
    va_list arguments;

    if (level > threshold) {
        return;
    }
    int head = journal ? snprintf(line, sizeof(line), "<%d>", (int)level)
                       : snprintf(line, sizeof(line), "attnd: %s: ", log_level_name(level));
    va_start(arguments, format);
    int body = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, format, arguments);
    va_end(arguments);
    if (body < 0) {
        return;
    }
    size_t length = strlen(line);
    line[length++] = '\n';
    /* One write, so that lines of different threads do not mix; a log that is gone is nobody's fault. */
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written;
}

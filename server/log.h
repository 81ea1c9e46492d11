/*
 * The daemon's log: one line a call, to stderr, with journald's priority prefix when stderr goes there.
 *
 * Any thread may log. Nothing is logged for a request that succeeds, and tokens never are.
 */
#pragma once

#include <stdbool.h>

/* The numbers are syslog's, which journald reads. */
enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7,
};

/* Once, before there are threads: what is less urgent than `level` is dropped. */
void log_init(enum log_level level);

/* The level named "error", "warning", "info" or "debug"; false: none is. */
bool log_level_parse(const char *name, enum log_level *level);

const char *log_level_name(enum log_level level);

void log_print(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_print(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_print(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_print(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_print(LOG_LEVEL_DEBUG, __VA_ARGS__)

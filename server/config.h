/*
 * The daemon's configuration: one table of options, each with one name on the command line and in
 * the INI file, its default, its bounds and its help.
 *
 * Only reads text into a struct; no side effects. Used before there are threads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONFIG_DIRECTORY_BYTES 96
#define CONFIG_DEVICE_BYTES 48
#define CONFIG_MAX_IDS 32
#define CONFIG_MESSAGE_BYTES 512

struct config_ids {
    size_t count;
    uint32_t id[CONFIG_MAX_IDS];
};

/* Numbers are all uint64_t, so that the table can point at them; their bounds are the table's. */
struct config {
    char directory[CONFIG_DIRECTORY_BYTES];
    char device[CONFIG_DEVICE_BYTES]; /* cpu, cuda, cuda:N or the beginning of a GPU's UUID */
    uint64_t threads;                 /* 0: one per processor */
    uint64_t log_level;
    uint64_t drain_timeout_s;

    uint64_t max_sessions;
    uint64_t max_sessions_per_uid;
    uint64_t in_flight; /* the rest: per session, unless the name says otherwise */
    uint64_t max_plans;
    uint64_t max_regions;
    uint64_t region_bytes;         /* 0: as much as suits the device */
    uint64_t region_bytes_per_uid; /* 0: likewise */
    uint64_t workspace_bytes;      /* of all requests that run at a time; 0: by device */

    uint64_t any_ipc_user;        /* 0 or 1 */
    struct config_ids allow_uids; /* both empty: the group of the directory */
    struct config_ids allow_gids;
};

struct config_option {
    const char *section;
    const char *name;
    const char *argument;
    const char *help;
    bool (*parse)(const struct config_option *option, struct config *config, const char *text,
        char message[CONFIG_MESSAGE_BYTES]);
    size_t offset; /* of the field */
    uint64_t low;  /* bounds, inclusive */
    uint64_t high;
};

size_t config_option_count(void);
const struct config_option *config_option_at(size_t index);

void config_init(struct config *config); /* the defaults */

/* Each returns false with a sentence. */
bool config_set(struct config *config, const struct config_option *option, const char *text,
    char message[CONFIG_MESSAGE_BYTES]);
bool config_read_file(struct config *config, const char *path, char message[CONFIG_MESSAGE_BYTES]);

/* The one look at how the options fit together, after all of them are set. */
bool config_check(const struct config *config, char message[CONFIG_MESSAGE_BYTES]);

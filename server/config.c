#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define MAX_TEXT 1024       /* of one value */
#define MAX_IN_FLIGHT 65536 /* of all sessions: each takes about 2 KiB */

static void *field_of(const struct config_option *option, struct config *config)
{
    return (char *)config + option->offset;
}

static bool parse_path(const struct config_option *option, struct config *config, const char *text,
    char message[CONFIG_MESSAGE_BYTES])
{
    if (text[0] == '\0' || strlen(text) >= CONFIG_DIRECTORY_BYTES) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES, "%s must have 1 to %d bytes, not %zu",
            option->name, CONFIG_DIRECTORY_BYTES - 1, strlen(text));
        return false;
    }
    memcpy(field_of(option, config), text, strlen(text) + 1);
    return true;
}

/* Digits and nothing else; false on anything else or overflow. */
static bool parse_digits(const char *text, const char **end, uint64_t *value)
{
    char *stop = NULL;

    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    errno = 0;
    *value = strtoull(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

static bool check_bounds(
    const struct config_option *option, uint64_t value, char message[CONFIG_MESSAGE_BYTES])
{
    if (value < option->low || value > option->high) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "%s is %" PRIu64 "; it must be %" PRIu64 " to %" PRIu64, option->name, value,
            option->low, option->high);
        return false;
    }
    return true;
}

static bool parse_number(const struct config_option *option, struct config *config,
    const char *text, char message[CONFIG_MESSAGE_BYTES])
{
    const char *end = NULL;
    uint64_t value = 0;

    if (!parse_digits(text, &end, &value) || *end != '\0') {
        (void)snprintf(
            message, CONFIG_MESSAGE_BYTES, "%s is '%s', not a number", option->name, text);
        return false;
    }
    if (!check_bounds(option, value, message)) {
        return false;
    }
    memcpy(field_of(option, config), &value, sizeof(value));
    return true;
}

/* The factor of a unit, 0 for what is none. */
static uint64_t unit_of(const char *text)
{
    static const struct {
        const char *name;
        uint64_t factor;
    } units[] = {{"", 1}, {"K", KIB}, {"M", MIB}, {"G", GIB}, {"T", TIB}};

    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(text, units[i].name) == 0) {
            return units[i].factor;
        }
    }
    return 0;
}

static bool parse_size(const struct config_option *option, struct config *config, const char *text,
    char message[CONFIG_MESSAGE_BYTES])
{
    const char *end = NULL;
    uint64_t value = 0;
    uint64_t unit = parse_digits(text, &end, &value) ? unit_of(end) : 0;

    if (unit == 0 || value > UINT64_MAX / unit) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "%s is '%s', not a number of bytes such as 4096, 64K, 512M, 16G or 1T", option->name,
            text);
        return false;
    }
    value *= unit;
    if (!check_bounds(option, value, message)) {
        return false;
    }
    memcpy(field_of(option, config), &value, sizeof(value));
    return true;
}

/* 0 leaves it to the daemon. */
static bool parse_optional_size(const struct config_option *option, struct config *config,
    const char *text, char message[CONFIG_MESSAGE_BYTES])
{
    const uint64_t none = 0;

    if (strcmp(text, "0") != 0) {
        return parse_size(option, config, text, message);
    }
    memcpy(field_of(option, config), &none, sizeof(none));
    return true;
}

static bool parse_level(const struct config_option *option, struct config *config, const char *text,
    char message[CONFIG_MESSAGE_BYTES])
{
    enum log_level level;

    if (!log_level_parse(text, &level)) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "%s is '%s'; it must be error, warning, info or debug", option->name, text);
        return false;
    }
    uint64_t value = (uint64_t)level;
    memcpy(field_of(option, config), &value, sizeof(value));
    return true;
}

static bool parse_ipc_users(const struct config_option *option, struct config *config,
    const char *text, char message[CONFIG_MESSAGE_BYTES])
{
    uint64_t any = strcmp(text, "any") == 0;

    if (any == 0 && strcmp(text, "one") != 0) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES, "%s is '%.100s'; it must be one or any",
            option->name, text);
        return false;
    }
    memcpy(field_of(option, config), &any, sizeof(any));
    return true;
}

static bool is_all_of(const char *text, const char *characters)
{
    return text[0] != '\0' && text[strspn(text, characters)] == '\0';
}

/* Whether there is such a device is not for here. */
static bool is_device(const char *text)
{
    return strcmp(text, "cpu") == 0 || strcmp(text, "cuda") == 0 ||
           (strncmp(text, "cuda:", 5) == 0 && strlen(text) < 10 &&
               is_all_of(text + 5, "0123456789")) ||
           (strncmp(text, "GPU-", 4) == 0 && is_all_of(text + 4, "0123456789abcdefABCDEF-"));
}

static bool parse_device(const struct config_option *option, struct config *config,
    const char *text, char message[CONFIG_MESSAGE_BYTES])
{
    if (!is_device(text) || strlen(text) >= CONFIG_DEVICE_BYTES) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "%s is '%.100s'; it must be cpu, cuda, cuda:N or GPU- and the rest of a UUID",
            option->name, text);
        return false;
    }
    memcpy(field_of(option, config), text, strlen(text) + 1);
    return true;
}

static bool find_user(const char *name, uint32_t *id)
{
    /* Before there are threads. */
    const struct passwd *user = getpwnam(name); // NOLINT(concurrency-mt-unsafe)

    *id = user != NULL ? user->pw_uid : 0;
    return user != NULL;
}

static bool find_group(const char *name, uint32_t *id)
{
    const struct group *group = getgrnam(name); // NOLINT(concurrency-mt-unsafe)

    *id = group != NULL ? group->gr_gid : 0;
    return group != NULL;
}

typedef bool (*find_fn)(const char *name, uint32_t *id);

static bool parse_id(const char *word, find_fn find, uint32_t *id)
{
    const char *end = NULL;
    uint64_t value = 0;

    if (parse_digits(word, &end, &value) && *end == '\0') {
        *id = (uint32_t)value;
        return value < UINT32_MAX; /* the largest means "nobody" to the kernel */
    }
    return find(word, id);
}

/* Names or numbers between commas and blanks; an empty text is an empty list. */
static bool parse_ids(const struct config_option *option, struct config_ids *ids, const char *text,
    find_fn find, char message[CONFIG_MESSAGE_BYTES])
{
    char words[MAX_TEXT];
    char *rest = NULL;

    ids->count = 0;
    if ((size_t)snprintf(words, sizeof(words), "%s", text) >= sizeof(words)) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES, "%s is too long", option->name);
        return false;
    }
    for (char *word = strtok_r(words, ", \t", &rest); word != NULL;
         word = strtok_r(NULL, ", \t", &rest)) {
        if (ids->count == CONFIG_MAX_IDS) {
            (void)snprintf(message, CONFIG_MESSAGE_BYTES, "%s has more than %d entries",
                option->name, CONFIG_MAX_IDS);
            return false;
        }
        if (!parse_id(word, find, &ids->id[ids->count])) {
            (void)snprintf(
                message, CONFIG_MESSAGE_BYTES, "%s: nobody is named '%.64s'", option->name, word);
            return false;
        }
        ids->count++;
    }
    return true;
}

static bool parse_users(const struct config_option *option, struct config *config, const char *text,
    char message[CONFIG_MESSAGE_BYTES])
{
    return parse_ids(option, field_of(option, config), text, find_user, message);
}

static bool parse_groups(const struct config_option *option, struct config *config,
    const char *text, char message[CONFIG_MESSAGE_BYTES])
{
    return parse_ids(option, field_of(option, config), text, find_group, message);
}

#define FIELD(name) offsetof(struct config, name)

static const struct config_option options[] = {
    {"daemon", "directory", "DIR", "Directory of the sockets, private to the daemon", parse_path,
        FIELD(directory), 0, 0},
    {"daemon", "device", "DEVICE",
        "cpu (the default), cuda (the first GPU), cuda:N, or a GPU's UUID or the beginning of it",
        parse_device, FIELD(device), 0, 0},
    {"daemon", "threads", "N",
        "Processors that the device cpu uses; 0 (the default): all it may run on", parse_number,
        FIELD(threads), 0, 1024},
    {"daemon", "log-level", "LEVEL", "error, warning, info (the default) or debug", parse_level,
        FIELD(log_level), 0, 0},
    {"daemon", "drain-timeout", "SECONDS",
        "How long accepted requests may still run after SIGTERM (10)", parse_number,
        FIELD(drain_timeout_s), 0, 3600},
    {"limits", "max-sessions", "N", "Clients at a time (64)", parse_number, FIELD(max_sessions), 1,
        4096},
    {"limits", "max-sessions-per-uid", "N",
        "Clients of one user at a time; 0 (the default): as many as max-sessions", parse_number,
        FIELD(max_sessions_per_uid), 0, 4096},
    {"limits", "in-flight", "N", "Requests of a client accepted and not done (64)", parse_number,
        FIELD(in_flight), 1, 4096},
    {"limits", "max-plans", "N", "Shapes that a client may register (256)", parse_number,
        FIELD(max_plans), 1, 65536},
    {"limits", "max-regions", "N", "Regions of memory that a client shares (256)", parse_number,
        FIELD(max_regions), 1, 65536},
    {"limits", "region-bytes", "SIZE",
        "Memory that a client shares; 0 (the default): 16G, with a GPU 256G", parse_optional_size,
        FIELD(region_bytes), 4096, 1024 * TIB},
    {"limits", "region-bytes-per-uid", "SIZE",
        "Memory that all clients of a user share; 0 (the default): 64G, with a GPU 1T",
        parse_optional_size, FIELD(region_bytes_per_uid), 4096, 1024 * TIB},
    {"limits", "workspace", "SIZE",
        "Scratch memory of all requests that run at a time; 0 (the default): 256M, with a GPU 2G",
        parse_optional_size, FIELD(workspace_bytes), 64 * KIB, 1024 * TIB},
    {"access", "allow-uid", "LIST",
        "Users who may connect, besides the daemon's own and root; names or numbers", parse_users,
        FIELD(allow_uids), 0, 0},
    {"access", "allow-gid", "LIST",
        "Groups whose members may connect; without either list: the group of the directory",
        parse_groups, FIELD(allow_gids), 0, 0},
    {"access", "ipc-users", "WHO",
        "Users whose GPU memory is taken by CUDA IPC handles at a time: one (the default) or any",
        parse_ipc_users, FIELD(any_ipc_user), 0, 0},
};

static const struct config_option *find_option(const char *section, const char *name)
{
    for (size_t i = 0; i < config_option_count(); i++) {
        if (strcmp(options[i].section, section) == 0 && strcmp(options[i].name, name) == 0) {
            return &options[i];
        }
    }
    return NULL;
}

struct file_reader {
    struct config *config;
    FILE *file;
    int line;                           /* the one read last */
    int bad_line;                       /* the first that the table refused; 0: none */
    char message[CONFIG_MESSAGE_BYTES]; /* about it */
};

/* fgets() for the INI parser, which would take the rest of a long line for another line. */
static char *read_line(char *line, int capacity, void *context)
{
    struct file_reader *reader = context;

    reader->line++;
    if (fgets(line, capacity, reader->file) == NULL) {
        return NULL;
    }
    if (strchr(line, '\n') == NULL && !feof(reader->file)) {
        int skipped = 0;
        do {
            skipped = fgetc(reader->file);
        } while (skipped != '\n' && skipped != EOF);
        (void)snprintf(line, (size_t)capacity, "too long\n"); /* which has no '=' */
    }
    return line;
}

/* Called by the INI parser for each line with a value; returns 0 for a line at fault. */
static int on_line(void *context, const char *section, const char *name, const char *value)
{
    struct file_reader *reader = context;
    const struct config_option *option = find_option(section, name);
    char message[CONFIG_MESSAGE_BYTES];

    if (option != NULL && config_set(reader->config, option, value, message)) {
        return 1;
    }
    if (option == NULL) {
        (void)snprintf(
            message, sizeof(message), "section [%.64s] has no key '%.64s'", section, name);
    }
    if (reader->bad_line == 0) {
        reader->bad_line = reader->line;
        memcpy(reader->message, message, sizeof(message));
    }
    return 0;
}

size_t config_option_count(void)
{
    return sizeof(options) / sizeof(options[0]);
}

const struct config_option *config_option_at(size_t index)
{
    return &options[index];
}

void config_init(struct config *config)
{
    *config = (struct config){
        .directory = "/run/attnd/cpu",
        .device = "cpu",
        .log_level = LOG_LEVEL_INFO,
        .drain_timeout_s = 10,
        .max_sessions = 64,
        .in_flight = 64,
        .max_plans = 256,
        .max_regions = 256,
    };
}

bool config_set(struct config *config, const struct config_option *option, const char *text,
    char message[CONFIG_MESSAGE_BYTES])
{
    return option->parse(option, config, text, message);
}

bool config_read_file(struct config *config, const char *path, char message[CONFIG_MESSAGE_BYTES])
{
    struct file_reader reader = {.config = config, .file = fopen(path, "re")};

    if (reader.file == NULL) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES, "%.256s cannot be read: %s", path,
            strerrordesc_np(errno));
        return false;
    }
    int line = ini_parse_stream(read_line, &reader, on_line, &reader);
    (void)fclose(reader.file);
    if (line != 0) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES, "%.200s:%d: %.256s", path, line,
            reader.bad_line == line ? reader.message : "neither a [section] nor key = value");
    }
    return line == 0;
}

bool config_check(const struct config *config, char message[CONFIG_MESSAGE_BYTES])
{
    if (config->max_sessions_per_uid > config->max_sessions) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "max-sessions-per-uid (%" PRIu64 ") is more than max-sessions (%" PRIu64 ")",
            config->max_sessions_per_uid, config->max_sessions);
        return false;
    }
    if (config->max_sessions * config->in_flight > MAX_IN_FLIGHT) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "max-sessions (%" PRIu64 ") times in-flight (%" PRIu64 ") is more than %d",
            config->max_sessions, config->in_flight, MAX_IN_FLIGHT);
        return false;
    }
    if (config->region_bytes_per_uid != 0 && config->region_bytes > config->region_bytes_per_uid) {
        (void)snprintf(message, CONFIG_MESSAGE_BYTES,
            "region-bytes (%" PRIu64 ") is more than region-bytes-per-uid (%" PRIu64 ")",
            config->region_bytes, config->region_bytes_per_uid);
        return false;
    }
    return true;
}

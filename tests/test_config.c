/* The daemon's options: what is taken, and what is refused with which sentence. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "config.h"

/* Parses `text` as a configuration file. */
static bool read_text(
    struct config *config, const char *text, char message[CONFIG_MESSAGE_BYTES], char path[])
{
    (void)strcpy(path, "/tmp/attnd-config-XXXXXX");
    int fd = mkstemp(path);
    cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    (void)close(fd);
    config_init(config);
    message[0] = '\0';
    bool good = config_read_file(config, path, message);
    (void)remove(path);
    return good;
}

static const struct config_option *option(const char *name)
{
    for (size_t i = 0; i < config_option_count(); i++) {
        if (strcmp(config_option_at(i)->name, name) == 0) {
            return config_option_at(i);
        }
    }
    cr_assert_fail("no option %s", name);
    return NULL;
}

Test(config, the_defaults_fit_together)
{
    struct config config;
    char message[CONFIG_MESSAGE_BYTES] = "";
    config_init(&config);
    cr_assert(config_check(&config, message), "%s", message);
    cr_assert_str_eq(config.directory, "/run/attnd/cpu");
    cr_assert_eq(config.region_bytes, 0);
    cr_assert(config_set(&config, option("region-bytes"), "1T", message));
    cr_assert(config_check(&config, message), "%s", message);
    cr_assert(config_set(&config, option("region-bytes"), "0", message));
    cr_assert(config_set(&config, option("region-bytes-per-uid"), "4K", message));
    cr_assert(config_check(&config, message), "%s", message);
    cr_assert_eq(config.region_bytes, 0);
}

Test(config, a_file_sets_every_kind_of_option)
{
    struct config config;
    char message[CONFIG_MESSAGE_BYTES];
    char path[32];
    bool good = read_text(&config,
        "; a comment\n[daemon]\ndirectory = /somewhere\nthreads=3\nlog-level = debug\n"
        "# another\n[limits]\nregion-bytes = 5M\nworkspace = 3G\nmax-sessions = 7\n"
        "[access]\nallow-uid = root, 1234\nallow-gid=77\nipc-users = any\n",
        message, path);
    cr_assert(good, "%s", message);
    cr_assert_str_eq(config.directory, "/somewhere");
    cr_assert_eq(config.threads, 3);
    cr_assert_eq(config.log_level, 7);
    cr_assert_eq(config.region_bytes, 5U << 20);
    cr_assert_eq(config.workspace_bytes, UINT64_C(3) << 30);
    cr_assert_eq(config.max_sessions, 7);
    cr_assert_eq(config.allow_uids.count, 2);
    cr_assert_eq(config.allow_uids.id[0], 0);
    cr_assert_eq(config.allow_uids.id[1], 1234);
    cr_assert_eq(config.allow_gids.count, 1);
    cr_assert_eq(config.allow_gids.id[0], 77);
    cr_assert_eq(config.any_ipc_user, 1);
    cr_assert(config_set(&config, option("ipc-users"), "one", message));
    cr_assert_eq(config.any_ipc_user, 0);
}

Test(config, devices_are_the_processor_an_index_or_a_uuid)
{
    static const char *const good[] = {
        "cpu", "cuda", "cuda:0", "cuda:15", "GPU-1", "GPU-9d3a71f2-1c64-4a35-8f6e-6cbbf8c5d3ac"};
    static const char *const bad[] = {"", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1x",
        "cuda:123456", "cuda0", "0", "GPU-", "GPU-1g", "MIG-1",
        "GPU-9d3a71f2-1c64-4a35-8f6e-6cbbf8c5d3ac-9d3a71f2-1c64"};
    struct config config;
    char message[CONFIG_MESSAGE_BYTES];
    config_init(&config);
    cr_assert_str_eq(config.device, "cpu");
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cr_expect(config_set(&config, option("device"), good[i], message), "%s", message);
        cr_expect_str_eq(config.device, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_expect_not(config_set(&config, option("device"), bad[i], message), "%s", bad[i]);
    }
}

Test(config, a_bad_file_is_refused_with_the_line_and_the_reason)
{
    static const struct {
        const char *text;
        int line;
        const char *reason;
    } cases[] = {
        {"[limits]\nmax-sesions = 5\n", 2, "section [limits] has no key 'max-sesions'"},
        {"[daemon]\nmax-sessions = 5\n", 2, "section [daemon] has no key 'max-sessions'"},
        {"max-sessions = 5\n", 1, "section [] has no key"},
        {"[limits]\n\nmax-sessions = many\n", 3, "max-sessions is 'many', not a number"},
        {"[limits]\nmax-sessions = 0\n", 2, "max-sessions is 0; it must be 1 to 4096"},
        {"[limits]\nmax-sessions = -1\n", 2, "not a number"},
        {"[limits]\nmax-sessions = 5 sessions\n", 2, "not a number"},
        {"[limits]\nmax-sessions =\n", 2, "not a number"},
        {"[limits]\nmax-sessions = 99999999999999999999999\n", 2, "not a number"},
        {"[limits]\nregion-bytes = 5X\n", 2, "not a number of bytes"},
        {"[limits]\nworkspace = 1K\n", 2, "must be 65536 to"},
        {"[limits]\nregion-bytes = 5MB\n", 2, "not a number of bytes"},
        {"[limits]\nregion-bytes = 99999999999T\n", 2, "not a number of bytes"},
        {"[limits]\nregion-bytes = 1\n", 2, "must be 4096 to"},
        {"[daemon]\nlog-level = loud\n", 2, "must be error, warning, info or debug"},
        {"[daemon]\ndevice = tpu\n", 2, "device is 'tpu'; it must be cpu, cuda, cuda:N or GPU-"},
        {"[daemon]\ndirectory =\n", 2, "directory must have 1 to 95 bytes, not 0"},
        {"[daemon]\nthreads 5\n", 2, "neither a [section] nor key = value"},
        {"[daemon\nthreads = 5\n", 1, "neither a [section] nor key = value"},
        {"[access]\nallow-uid = no-such-user-here\n", 2, "nobody is named 'no-such-user-here'"},
        {"[access]\nallow-gid = 4294967295\n", 2, "nobody is named"},
        {"[access]\nipc-users = two\n", 2, "ipc-users is 'two'; it must be one or any"},
        {"[access]\nipc-users =\n", 2, "ipc-users is ''; it must be one or any"},
        {"broken\n[limits]\nmax-sessions = many\n", 1, "neither a [section]"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config config;
        char message[CONFIG_MESSAGE_BYTES];
        char path[32];
        char place[64];
        cr_expect_not(read_text(&config, cases[i].text, message, path), "%s", cases[i].text);
        (void)snprintf(place, sizeof place, "%s:%d: ", path, cases[i].line);
        cr_expect_eq(strncmp(message, place, strlen(place)), 0, "%s", message);
        cr_expect_not_null(strstr(message, cases[i].reason), "%s", message);
    }
}

Test(config, a_line_too_long_for_the_parser_is_not_cut_silently)
{
    struct config config;
    char message[CONFIG_MESSAGE_BYTES];
    char path[32];
    char text[1024] = "[access]\nallow-uid = ";
    while (strlen(text) < 600) {
        (void)strcat(text, "1000,");
    }
    (void)strcat(text, "\n");
    cr_assert_not(read_text(&config, text, message, path));
    cr_assert_not_null(strstr(message, ":2: "), "%s", message);
}

Test(config, a_missing_file_is_named)
{
    struct config config;
    char message[CONFIG_MESSAGE_BYTES] = "";
    config_init(&config);
    cr_assert_not(config_read_file(&config, "/nowhere/attnd.conf", message));
    cr_assert_not_null(strstr(message, "/nowhere/attnd.conf"), "%s", message);
}

Test(config, a_list_longer_than_its_room_is_refused)
{
    struct config config;
    char message[CONFIG_MESSAGE_BYTES] = "";
    char text[512] = "";
    config_init(&config);
    for (int i = 0; i < CONFIG_MAX_IDS; i++) {
        (void)strcat(text, "5,");
    }
    cr_assert(config_set(&config, option("allow-uid"), text, message), "%s", message);
    (void)strcat(text, "6");
    cr_assert_not(config_set(&config, option("allow-uid"), text, message));
    cr_assert_not_null(strstr(message, "more than 32"), "%s", message);
}

Test(config, options_that_contradict_each_other_are_refused)
{
    static const struct {
        const char *name[2];
        const char *value[2];
    } cases[] = {
        {{"max-sessions", "max-sessions-per-uid"}, {"4", "5"}},
        {{"region-bytes", "region-bytes-per-uid"}, {"2M", "1M"}},
        {{"max-sessions", "in-flight"}, {"4096", "4096"}},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config config;
        char message[CONFIG_MESSAGE_BYTES] = "";
        config_init(&config);
        for (int k = 0; k < 2; k++) {
            cr_assert(config_set(&config, option(cases[i].name[k]), cases[i].value[k], message));
        }
        cr_expect_not(config_check(&config, message), "case %zu", i);
        cr_expect_not_null(strstr(message, cases[i].name[1]), "%s", message);
    }
}

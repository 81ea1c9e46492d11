/* deploy/attnd.conf shows every key of the daemon's table with its default. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"

#define LINE_BYTES 256

/* Copies the file with the "#" of each "#key = value" removed, and counts these. */
static size_t uncomment(const char *from, const char *to)
{
    char line[LINE_BYTES];
    size_t keys = 0;
    FILE *in = fopen(from, "r");
    FILE *out = fopen(to, "w");
    cr_assert(in != NULL && out != NULL);
    while (fgets(line, sizeof line, in) != NULL) {
        bool is_key = line[0] == '#' && line[1] != ' ' && line[1] != '\n';
        keys += is_key;
        cr_assert(fputs(is_key ? line + 1 : line, out) >= 0);
    }
    cr_assert_eq(fclose(in), 0);
    cr_assert_eq(fclose(out), 0);
    return keys;
}

static void read_config(struct config *config, const char *path)
{
    char message[CONFIG_MESSAGE_BYTES] = "";
    config_init(config);
    cr_assert(config_read_file(config, path, message), "%s", message);
    cr_assert(config_check(config, message), "%s", message);
}

Test(service_config, as_installed_it_changes_nothing)
{
    struct config defaults;
    struct config config;
    config_init(&defaults);
    read_config(&config, ATTND_CONF);
    cr_assert_eq(memcmp(&config, &defaults, sizeof config), 0);
}

Test(service_config, shows_every_key_with_its_default)
{
    char path[] = "/tmp/attnd-conf-XXXXXX";
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    (void)close(fd);
    size_t keys = uncomment(ATTND_CONF, path);
    struct config defaults;
    struct config config;
    config_init(&defaults);
    read_config(&config, path);
    cr_expect_eq(keys, config_option_count());
    cr_expect_eq(memcmp(&config, &defaults, sizeof config), 0);
    (void)remove(path);
}

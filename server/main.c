/* attnd: reads the command line and the configuration file, then runs the server. */
#include <argp.h>
#include <assert.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sysexits.h>
#include <unistd.h>

#include "config.h"
#include "server.h"

#define MAX_OPTIONS 32
#define KEY_CONFIG 'c'
#define KEY_PARENT 'p'
#define KEY_OPTION 256 /* and up: of the configuration's table */

struct command_line {
    const char *file;
    bool stop_with_parent;
    const char *text[MAX_OPTIONS]; /* per option of the table; NULL: not given */
};

/* NOLINTNEXTLINE(readability-non-const-parameter): the type is argp's */
static error_t on_argument(int key, char *text, struct argp_state *state)
{
    struct command_line *line = state->input;

    if (key == KEY_CONFIG) {
        line->file = text;
    } else if (key == KEY_PARENT) {
        line->stop_with_parent = true;
    } else if (key >= KEY_OPTION && key < KEY_OPTION + (int)config_option_count()) {
        line->text[key - KEY_OPTION] = text;
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static void parse_command_line(int argc, char **argv, struct command_line *line)
{
    struct argp_option entries[MAX_OPTIONS + 3] = {
        {"config", KEY_CONFIG, "FILE", 0, "Configuration file; the command line overrides it", 0},
        {"stop-with-parent", KEY_PARENT, NULL, 0,
            "Stop as by SIGTERM when the process that started this one ends", 0}};
    struct argp parser = {
        .options = entries,
        .parser = on_argument,
        .doc = "Computes attention for all trainer processes of this machine.\v"
               "Exit status: 0 after SIGTERM or SIGINT; 1 if requests were left when the drain was "
               "cut; 64 for a wrong command line; 69 if something is missing, such as the device; "
               "70 after an error of the device that only a new process gets over; 75 if another "
               "daemon has the directory; 78 for a wrong configuration.",
    };

    assert(config_option_count() <= MAX_OPTIONS);
    argp_program_version = "attnd " ATTND_VERSION;
    for (size_t i = 0; i < config_option_count(); i++) {
        const struct config_option *option = config_option_at(i);
        entries[i + 2] = (struct argp_option){.name = option->name,
            .key = KEY_OPTION + (int)i,
            .arg = option->argument,
            .doc = option->help};
    }
    (void)argp_parse(&parser, argc, argv, 0, NULL, line);
}

/* 0 or the exit status. */
static int configure(
    struct config *config, const struct command_line *line, char message[CONFIG_MESSAGE_BYTES])
{
    config_init(config);
    if (line->file != NULL && !config_read_file(config, line->file, message)) {
        return EX_CONFIG;
    }
    for (size_t i = 0; i < config_option_count(); i++) {
        if (line->text[i] != NULL &&
            !config_set(config, config_option_at(i), line->text[i], message)) {
            return EX_USAGE;
        }
    }
    return config_check(config, message) ? 0 : EX_CONFIG;
}

int main(int argc, char **argv)
{
    struct command_line line = {0};
    struct config config;
    char message[CONFIG_MESSAGE_BYTES];
    pid_t parent = getppid();

    parse_command_line(argc, argv, &line);
    int status = configure(&config, &line, message);
    if (status != 0) {
        (void)fprintf(stderr, "attnd: %s\n", message);
        return status;
    }
    if (line.stop_with_parent) {
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) {
            return 0; /* it ended before that could be said */
        }
    }
    return server_run(&config);
}

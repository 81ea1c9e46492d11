/* attnd-bench: how fast attnd is. Finds the subcommand and hands the rest of the line to it. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "kernels.h"

struct command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    {"kernels", kernels_summary, kernels_main},
};

#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

struct line {
    const struct command *command;
    int argc;
    char **argv;
};

static error_t on_argument(int key, char *text, struct argp_state *state)
{
    struct line *line = state->input;
    if (key == ARGP_KEY_NO_ARGS) {
        argp_error(state, "which command?");
        return EINVAL;
    }
    if (key != ARGP_KEY_ARG) {
        return ARGP_ERR_UNKNOWN;
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, text) == 0) {
            line->command = &commands[i];
            line->argc = state->argc - state->next + 1;
            line->argv = state->argv + state->next - 1;
            state->next = state->argc;
            return 0;
        }
    }
    argp_error(state, "there is no command '%s'", text);
    return EINVAL;
}

int main(int argc, char **argv)
{
    char doc[1024] = "Measures attnd.\vCommands:\n";
    char name[64];
    struct line line = {0};
    const struct argp parser = {
        .parser = on_argument, .args_doc = "COMMAND [OPTION...]", .doc = doc};
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        size_t used = strlen(doc);
        (void)snprintf(
            doc + used, sizeof doc - used, "  %-10s %s\n", commands[i].name, commands[i].summary);
    }
    argp_program_version = "attnd-bench " ATTND_VERSION;
    argp_err_exit_status = EX_USAGE;
    (void)argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &line);
    if (line.command == NULL) {
        return EX_USAGE;
    }
    (void)snprintf(name, sizeof name, "attnd-bench %s", line.command->name);
    line.argv[0] = name;
    return line.command->run(line.argc, line.argv);
}

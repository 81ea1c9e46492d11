/* attnctl: what an attnd does, and what is wrong with a machine where it should. */
#include <argp.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "doctor.h"
#include "facts.h"
#include "status.h"

enum exit_status {
    EXIT_GOOD = 0,
    EXIT_FAILED = 1, /* a finding is bad, or the daemon refuses */
    EXIT_USAGE = 2,
    EXIT_UNREACHABLE = 3, /* no daemon answers */
};

enum command {
    NO_COMMAND,
    STATUS,
    DOCTOR,
};

struct settings {
    enum command command;
    const char *address;
    bool json;
};

static const struct argp_option OPTIONS[] = {
    {"address", 'a', "DIR", 0,
        "The daemon's directory ($ATTND_ADDRESS, else the one below /run/attnd)", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};

static void take_command(struct argp_state *state, const char *name)
{
    struct settings *settings = state->input;
    if (settings->command != NO_COMMAND) {
        argp_error(state, "one command at a time; '%s' is too much", name);
    } else if (strcmp(name, "status") == 0) {
        settings->command = STATUS;
    } else if (strcmp(name, "doctor") == 0) {
        settings->command = DOCTOR;
    } else {
        argp_error(state, "'%s' is no command; there are status and doctor", name);
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct settings *settings = state->input;
    switch (key) {
    case 'a':
        settings->address = arg;
        return 0;
    case 'j':
        settings->json = true;
        return 0;
    case ARGP_KEY_ARG:
        take_command(state, arg);
        return 0;
    case ARGP_KEY_END:
        if (settings->command == NO_COMMAND) {
            argp_error(state, "what to do? There are status and doctor");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Whether a daemon may serve there: one that this user may not enter is to be heard of, too. */
static bool may_serve(const char *directory)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof path, "%sgate.sock", directory);
    return faccessat(AT_FDCWD, directory, X_OK, AT_EACCESS) != 0 || access(path, F_OK) == 0;
}

/* The daemon's directory where nobody names one. false: there are several, which are listed. */
static bool find_address(char address[PATH_MAX])
{
    glob_t found;
    size_t count = 0;
    (void)snprintf(address, PATH_MAX, "/run/attnd/cpu");
    if (glob("/run/attnd/*/", 0, NULL, &found) != 0) {
        return true;
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *path = found.gl_pathv[i];
        if (!may_serve(path)) {
            continue;
        }
        path[strlen(path) - 1] = '\0';
        if (++count == 2) {
            (void)fprintf(
                stderr, "attnctl: several daemons serve here; choose one with --address:\n");
            (void)fprintf(stderr, "    %s\n", address);
        }
        if (count >= 2) {
            (void)fprintf(stderr, "    %s\n", path);
        }
        (void)snprintf(address, PATH_MAX, "%s", path);
    }
    globfree(&found);
    return count < 2;
}

static bool nobody_answers(const struct facts_daemon *daemon)
{
    return daemon->status == ATTND_DISCONNECTED || daemon->status == ATTND_TIMED_OUT;
}

static int run_status(const struct settings *settings, const struct facts_daemon *daemon)
{
    if (daemon->status == ATTND_OK) {
        status_print(daemon, settings->json);
        return EXIT_GOOD;
    }
    if (settings->json) {
        status_print_failure(daemon);
    }
    (void)fprintf(stderr, "attnctl: %s\n", daemon->message);
    return nobody_answers(daemon) ? EXIT_UNREACHABLE : EXIT_FAILED;
}

static int run_doctor(const struct settings *settings, struct facts *facts)
{
    struct doctor doctor;
    facts_of_process(&facts->process);
    facts_of_machine(&facts->machine);
    facts_of_cuda(&facts->cuda);
    doctor_judge(facts, &doctor);
    status_print_findings(&doctor, settings->json);
    if (facts->daemon.asked_for && nobody_answers(&facts->daemon)) {
        return EXIT_UNREACHABLE;
    }
    return doctor_worst(&doctor) == DOCTOR_BAD ? EXIT_FAILED : EXIT_GOOD;
}

int main(int argc, char **argv)
{
    static const struct argp parser = {OPTIONS, parse_option, "status\ndoctor",
        "Shows what an attnd does, or looks for what is wrong.\v"
        "status  the daemon's version, device, clients, counters and limits\n"
        "doctor  whether driver, GPUs, limits, permissions and MPS are as they should be, and "
        "what to do about each\n\n"
        "Exit status: 0 all is well, 1 a finding is bad or the daemon refuses, 2 wrong usage, "
        "3 the daemon does not answer.",
        NULL, NULL, NULL};
    static struct facts facts;
    struct settings settings = {.address = getenv("ATTND_ADDRESS")};
    char address[PATH_MAX];
    argp_program_version = "attnctl " ATTND_VERSION;
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&parser, argc, argv, 0, NULL, &settings);
    if (settings.address == NULL && !find_address(address)) {
        return EXIT_USAGE;
    }
    facts_of_daemon(&facts.daemon, settings.address != NULL ? settings.address : address,
        settings.address != NULL);
    return settings.command == STATUS ? run_status(&settings, &facts.daemon)
                                      : run_doctor(&settings, &facts);
}

/*
 * Random problems through a kernel family, or through a daemon, held against the float64 reference.
 */
#include "draws.h"

#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "executor.h"

struct draw draws_case(const struct draws_options *options, uint64_t number)
{
    struct draw draw =
        options->flash ? draw_flash_case(options->seed, number) : draw_case(options->seed, number);
    if (options->forward) {
        draw.direction = ATTN_FORWARD;
    }
    return draw;
}

void draws_skip(const struct draws_options *options, uint64_t number, const char *why,
    struct draws_totals *totals)
{
    if (options->only == number) {
        printf("case %" PRIu64 " skipped: %s\n", number, why);
    }
    totals->cases++;
    totals->skipped++;
}

void draws_conclude(const struct draws_options *options, const struct draw *draw, uint64_t number,
    const struct verdict *verdict, struct draws_totals *totals)
{
    if (verdict->failed || options->only == number) {
        printf("case %" PRIu64 " %s, ratio %.3f\n", number, verdict->failed ? "FAILED" : "passed",
            verdict->ratio);
        draw_describe(draw);
        printf("  again: %s --family %s --seed %" PRIu64 " --case %" PRIu64
               " --threads %u%s%s%s%s\n",
            program_invocation_short_name, options->family, options->seed, number, draw->workers,
            options->flash ? " --shapes flash" : "", options->forward ? " --forward" : "",
            options->bits ? " --bits" : "", options->service ? " --through service" : "");
    }
    totals->cases++;
    totals->failed += verdict->failed ? 1 : 0;
    if (verdict->ratio > totals->worst_ratio) {
        totals->worst_ratio = verdict->ratio;
        totals->worst_case = number;
    }
    draw_count(&totals->pairs, draw);
}

/* -- the program ---------------------------------------------------------------------------- */

enum { EVERY_PAIR = 256, SHAPES, FORWARD, BITS };

static uint64_t number_of(const char *text, struct argp_state *state)
{
    char *end = NULL;
    unsigned long long number = strtoull(text, &end, 0);
    if (*text == '\0' || *end != '\0') {
        argp_error(state, "'%s' is not a number", text);
    }
    return number;
}

static bool is_service(const char *text, struct argp_state *state)
{
    bool service = strcmp(text, "service") == 0;
    if (!service && strcmp(text, "kernels") != 0) {
        argp_error(state, "'%s' is neither kernels nor service", text);
    }
    return service;
}

static bool is_flash(const char *text, struct argp_state *state)
{
    bool flash = strcmp(text, "flash") == 0;
    if (!flash && strcmp(text, "small") != 0) {
        argp_error(state, "'%s' is neither small nor flash", text);
    }
    return flash;
}

static error_t on_option(int key, char *text, struct argp_state *state)
{
    struct draws_options *options = state->input;
    switch (key) {
    case 'f':
        options->family = text;
        return 0;
    case 'a':
        options->address = text;
        return 0;
    case 'w':
        options->service = is_service(text, state);
        return 0;
    case 'n':
        options->count = number_of(text, state);
        return 0;
    case 's':
        options->seed = number_of(text, state);
        return 0;
    case 'c':
        options->only = number_of(text, state);
        return 0;
    case 't':
        options->threads = (unsigned)number_of(text, state);
        if (options->threads > EXECUTOR_MAX_WORKERS) {
            argp_error(state, "at most %d threads", EXECUTOR_MAX_WORKERS);
        }
        return 0;
    case 'j':
        options->jobs = (unsigned)number_of(text, state);
        if (options->jobs == 0 || options->jobs > DRAWS_MAX_JOBS) {
            argp_error(state, "1 to %d jobs", DRAWS_MAX_JOBS);
        }
        return 0;
    case SHAPES:
        options->flash = is_flash(text, state);
        return 0;
    case BITS:
        options->bits = true;
        return 0;
    case FORWARD:
        options->forward = true;
        return 0;
    case EVERY_PAIR:
        options->every_pair = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static struct draws_options parse(int argc, char **argv)
{
    static const struct argp_option list[] = {
        {"family", 'f', "NAME", 0, "Kernel family (cpu)", 0},
        {"through", 'w', "WAY", 0, "kernels: in this process; service: a daemon and libattnd", 0},
        {"address", 'a', "DIRECTORY", 0, "Of a running daemon (starts one for itself)", 0},
        {"count", 'n', "N", 0, "Number of cases (500)", 0},
        {"seed", 's', "S", 0, "Seed of all cases (1)", 0},
        {"case", 'c', "ID", 0, "Run this case alone and describe it", 0},
        {"threads", 't', "N", 0, "Workers of the executor (drawn for each case)", 0},
        {"jobs", 'j', "N", 0, "Cases at once (1)", 0},
        {"shapes", SHAPES, "SET", 0, "small: any; flash: lengths up to 2048, fp16 and bf16", 0},
        {"bits", BITS, NULL, 0, "Again in a group and cut otherwise: the same bits", 0},
        {"forward", FORWARD, NULL, 0, "Forward passes alone", 0},
        {"every-pair", EVERY_PAIR, NULL, 0, "Fail unless every pair of features was computed", 0},
        {0},
    };
    const struct argp argp = {list, on_option, NULL,
        "Holds random problems against a float64 reference.", NULL, NULL, NULL};
    struct draws_options options = {
        .family = "cpu", .count = 500, .seed = 1, .only = UINT64_MAX, .jobs = 1};
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    return options;
}

static bool run_all(const struct draws_options *options, struct draws_totals *totals)
{
    bool alone = options->only != UINT64_MAX;
    uint64_t first = alone ? options->only : 0;
    uint64_t end = alone ? options->only + 1 : options->count;
    if (options->service) {
        return draws_service(options, first, end, totals);
    }
    return draws_kernels(options, first, end, totals);
}

int main(int argc, char **argv)
{
    struct draws_options options = parse(argc, argv);
    struct draws_totals totals = {0};
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!run_all(&options, &totals)) {
        return 1;
    }
    bool every_pair = draw_report(&totals.pairs, options.every_pair);
    printf("through=%s seed=%" PRIu64 " skipped=%" PRIu64 " worst_case=%" PRIu64 "\n",
        options.service ? "service" : "kernels", options.seed, totals.skipped, totals.worst_case);
    printf("draws: family=%s cases=%" PRIu64 " failed=%" PRIu64 " worst_ratio=%.3f\n",
        options.family, totals.cases, totals.failed, totals.worst_ratio);
    bool good = totals.failed == 0 && totals.cases > totals.skipped;
    return good && (every_pair || !options.every_pair) ? 0 : 1;
}

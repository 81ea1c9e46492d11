/*
 * Stress of a kernel family on a GPU, in parts.
 */
#include "kernels.h"

#include <argp.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "main.h"

struct part {
    const char *name;
    void (*run)(struct kernels *kernels);
};

static const struct part parts[] = {
    {"edges", kernels_edges},
    {"logits", kernels_logits},
    {"far", kernels_far},
    {"groups", kernels_groups},
    {"repeats", kernels_repeats},
};

#define PARTS (sizeof parts / sizeof *parts)

struct choice {
    const char *family;
    unsigned repeats;
    uint64_t only;
    bool part[PARTS];
    bool some; /* parts were named */
};

void kernels_count(struct kernels *kernels, bool good, const char *what)
{
    kernels->checked++;
    if (!good) {
        kernels->failed++;
        (void)printf(
            "  FAILED: %s\n  again: gpu_tests kernels --family %s --repeats %u --case %" PRIu64
            " %s\n",
            what, attn_family_name(kernels->family), kernels->repeats, kernels->number,
            kernels->part);
    }
}

bool kernels_begin(struct kernels *kernels)
{
    kernels->number++;
    return kernels->only == 0 || kernels->only == kernels->number;
}

static error_t on_option(int key, char *text, struct argp_state *state)
{
    struct choice *choice = state->input;
    switch (key) {
    case 'f':
        choice->family = text;
        return 0;
    case 'r':
        choice->repeats = (unsigned)strtoul(text, NULL, 10);
        return 0;
    case 'c':
        choice->only = strtoull(text, NULL, 10);
        return 0;
    case ARGP_KEY_ARG:
        for (size_t i = 0; i < PARTS; i++) {
            if (strcmp(parts[i].name, text) == 0) {
                choice->part[i] = true;
                choice->some = true;
                return 0;
            }
        }
        argp_error(state, "there is no part '%s'", text);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static struct choice parse(int argc, char **argv)
{
    static const struct argp_option list[] = {
        {"family", 'f', "NAME", 0, "Kernel family (sm80)", 0},
        {"repeats", 'r', "N", 0, "Of what looks for races (1000)", 0},
        {"case", 'c', "N", 0, "This case of each part alone, from 1 on", 0},
        {0},
    };
    const struct argp argp = {list, on_option, "[edges] [logits] [far] [groups] [repeats]",
        "Stress of a kernel family on a GPU.", NULL, NULL, NULL};
    struct choice choice = {.family = "sm80", .repeats = 1000};
    argp_parse(&argp, argc, argv, 0, NULL, &choice);
    return choice;
}

static void run_part(const struct part *part, const struct choice *choice, struct kernels *all)
{
    struct kernels kernels = {.family = attn_family_find(choice->family),
        .part = part->name,
        .repeats = choice->repeats,
        .only = choice->only};
    uint64_t begin = device_now_ns();
    part->run(&kernels);
    (void)printf("gpu_kernels: family=%s part=%s checked=%" PRIu64 " failed=%" PRIu64
                 " worst_ratio=%.3f (%.1f s)\n",
        choice->family, part->name, kernels.checked, kernels.failed, kernels.worst,
        (double)(device_now_ns() - begin) * 1e-9);
    all->checked += kernels.checked;
    all->failed += kernels.failed + (kernels.checked == 0 ? 1 : 0);
    all->worst = kernels.worst > all->worst ? kernels.worst : all->worst;
}

int kernels_main(int argc, char **argv)
{
    struct choice choice = parse(argc, argv);
    struct kernels all = {0};
    unsigned count = 0;
    device_require("gpu_kernels");
    const struct attn_family *family = attn_family_find(choice.family);
    if (family == NULL || attn_family_device(family) != ATTN_DEVICE_CUDA) {
        (void)fprintf(
            stderr, "gpu_kernels: no family '%s' for GPUs in this build\n", choice.family);
        return 1;
    }
    CU(attn_prepare(family));
    for (size_t i = 0; i < PARTS; i++) {
        if (!choice.some || choice.part[i]) {
            run_part(&parts[i], &choice, &all);
            count++;
        }
    }
    (void)printf("gpu_kernels: family=%s parts=%u checked=%" PRIu64 " failed=%" PRIu64
                 " worst_ratio=%.3f\n",
        choice.family, count, all.checked, all.failed, all.worst);
    return all.failed == 0 ? 0 : 1;
}

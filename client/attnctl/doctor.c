#include "doctor.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

#include "judge.h"

void judge_add(struct doctor *doctor, const char *name, enum doctor_level level, const char *advice,
    const char *format, ...)
{
    va_list arguments;
    assert(doctor->count < DOCTOR_FINDINGS);
    struct doctor_finding *finding = &doctor->finding[doctor->count++];
    *finding = (struct doctor_finding){.name = name, .level = level, .advice = advice};
    va_start(arguments, format);
    (void)vsnprintf(finding->text, sizeof finding->text, format, arguments);
    va_end(arguments);
}

bool judge_daemon_has_gpu(const struct facts_daemon *daemon)
{
    return daemon->has_info && daemon->info.device == ATTND_DEVICE_CUDA;
}

const char *doctor_level_name(enum doctor_level level)
{
    static const char *const NAMES[] = {"ok", "warn", "bad"};
    return NAMES[level];
}

void doctor_print_uuid(const uint8_t uuid[16], char text[DOCTOR_UUID])
{
    size_t used = (size_t)snprintf(text, DOCTOR_UUID, "GPU-");
    for (size_t i = 0; i < 16; i++) {
        bool dash = i == 4 || i == 6 || i == 8 || i == 10;
        used += (size_t)snprintf(
            text + used, DOCTOR_UUID - used, "%s%02x", dash ? "-" : "", (unsigned)uuid[i]);
    }
}

void doctor_judge(const struct facts *facts, struct doctor *doctor)
{
    doctor->count = 0;
    judge_machine(facts, doctor);
    judge_way(facts, doctor);
    if (facts->daemon.has_info) {
        judge_daemon(facts, doctor);
    }
}

enum doctor_level doctor_worst(const struct doctor *doctor)
{
    enum doctor_level worst = DOCTOR_OK;
    for (size_t i = 0; i < doctor->count; i++) {
        worst = doctor->finding[i].level > worst ? doctor->finding[i].level : worst;
    }
    return worst;
}

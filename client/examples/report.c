#include "report.h"

#include <inttypes.h>

void report_print_step(FILE *file, const struct report_step *step)
{
    fprintf(file, "step=%d steps=%d loss=%.6f\n", step->step, step->steps, step->loss);
    fflush(file);
}

void report_print_result(FILE *file, const struct report_result *result)
{
    fprintf(file,
        "result first_loss=%.6f last_loss=%.6f calls=%" PRIu64 " p50_us=%.3f p99_us=%.3f"
        " mean_group=%.4f checked=%" PRIu64 " failed=%" PRIu64 " max_rel_error=%.3e\n",
        result->first_loss, result->last_loss, result->calls, result->p50_us, result->p99_us,
        result->mean_group, result->checked, result->failed, result->max_rel_error);
    fflush(file);
}

/* The lines come from our own program of the same build; sscanf's overflow rules do not matter. */
enum report_kind report_parse(
    const char *line, struct report_step *step, struct report_result *result)
{
    struct report_step s;
    struct report_result r;
    /* NOLINTBEGIN(cert-err34-c) */
    if (sscanf(line, "step=%d steps=%d loss=%lf", &s.step, &s.steps, &s.loss) == 3) {
        *step = s;
        return REPORT_STEP;
    }
    int found = sscanf(line,
        "result first_loss=%lf last_loss=%lf calls=%" SCNu64 " p50_us=%lf p99_us=%lf"
        " mean_group=%lf checked=%" SCNu64 " failed=%" SCNu64 " max_rel_error=%lf",
        &r.first_loss, &r.last_loss, &r.calls, &r.p50_us, &r.p99_us, &r.mean_group, &r.checked,
        &r.failed, &r.max_rel_error);
    /* NOLINTEND(cert-err34-c) */
    if (found == 9) {
        *result = r;
        return REPORT_RESULT;
    }
    return REPORT_MESSAGE;
}

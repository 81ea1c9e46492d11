#include "report.h"

static double sgemm_flops(int size)
{
    return 2.0 * (double)size * (double)size * (double)size;
}

static const char *direction_name(enum attn_direction direction)
{
    return direction == ATTN_FORWARD ? "fwd" : "bwd";
}

static void print_head(const struct report *report, const struct machine *machine, unsigned threads,
    const struct measure *sgemm, int sgemm_size)
{
    printf("%s, %u processors, %s; %u thread%s; load %.2f; %s\n", machine->processor,
        machine->processors, machine->simd, threads, threads == 1 ? "" : "s", machine->load,
        machine->date);
    if (sgemm->runs > 0) {
        printf("sgemm %d^3: %.1f GFLOP/s (%s, median of %d, %.1f a processor second)\n", sgemm_size,
            sgemm_flops(sgemm_size) / sgemm->median / 1e9, machine_blas(), sgemm->runs,
            sgemm_flops(sgemm_size) / sgemm->cpu / 1e9);
    }
    printf("\n%-6s %-*s %-5s %-3s %10s %10s %10s %10s %8s %6s %5s %6s %9s %9s  %s\n", "family",
        report->label_width, "shape", "dtype", "", "median ms", "min", "p10", "p90", "GFLOP/s",
        "/sgemm", "cpus", "/cpu s", "memory", "scores", "error/bar");
}

static void size_text(double bytes, char text[16])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < sizeof units / sizeof units[0]) {
        bytes /= 1024;
        unit++;
    }
    (void)snprintf(text, 16, "%.*f %s", unit == 0 ? 0 : 1, bytes, units[unit]);
}

static void check_text(const struct check *check, char text[64])
{
    if (!check->done) {
        (void)snprintf(text, 64, "unchecked");
    } else if (check->sampled) {
        (void)snprintf(text, 64, "%.2f %s (%d heads, %d rows)", check->ratio, check->worst,
            check->heads, check->rows);
    } else {
        (void)snprintf(text, 64, "%.2f %s (all)", check->ratio, check->worst);
    }
}

static void print_figures(const struct report *report, const struct result *result)
{
    const struct measure *time = &result->time;
    char memory[16];
    char scores[16];
    char check[64];
    char ratio[16] = "-";
    double rate = result->flops / time->median;
    size_text(result->workspace_bytes + result->scratch_bytes, memory);
    size_text(result->score_bytes, scores);
    check_text(&result->check, check);
    if (report->sgemm_rate > 0) {
        (void)snprintf(ratio, sizeof ratio, "%.2f", rate / report->sgemm_rate);
    }
    printf("%10.3f %10.3f %10.3f %10.3f %8.2f %6s %5.2f %6.2f %9s %9s  %s\n", 1e3 * time->median,
        1e3 * time->min, 1e3 * time->p10, 1e3 * time->p90, rate / 1e9, ratio,
        time->cpu / time->median, result->flops / time->cpu / 1e9, memory, scores, check);
}

static void print_line(const struct report *report, const struct result *result)
{
    char label[SHAPE_TEXT_BYTES];
    shape_describe(result->shape, label);
    printf("%-6s %-*s %-5s %-3s ", result->family, report->label_width, label,
        shape_dtype_name(result->shape->dtype), direction_name(result->direction));
    if (result->unsupported != NULL) {
        printf("not done: %s\n", result->unsupported);
    } else if (result->check.wrong) {
        printf("WRONG RESULT: %s\n", result->check.complaint);
    } else {
        print_figures(report, result);
    }
    (void)fflush(stdout);
}

static void write_time(struct json *json, const char *name, const struct measure *time)
{
    json_open(json, name, '{');
    json_number(json, "runs", time->runs);
    json_number(json, "median", time->median);
    json_number(json, "min", time->min);
    json_number(json, "p10", time->p10);
    json_number(json, "p90", time->p90);
    json_number(json, "processor", time->cpu);
    json_close(json, '}');
}

static void write_check(struct json *json, const struct check *check)
{
    json_open(json, "check", '{');
    json_text(json, "of", !check->done ? "nothing" : check->sampled ? "sample" : "all");
    if (check->done) {
        json_text(json, "verdict", check->wrong ? "wrong" : "right");
        json_text(json, "sentence", check->wrong ? check->complaint : NULL);
        json_number(json, "ratio", check->ratio);
        json_text(json, "worst", check->worst);
    }
    if (check->sampled) {
        json_number(json, "heads", check->heads);
        json_number(json, "rows_per_head", check->rows);
    }
    json_close(json, '}');
}

static void write_result(struct report *report, const struct result *result)
{
    struct json *json = &report->json;
    char label[SHAPE_TEXT_BYTES];
    shape_describe(result->shape, label);
    json_open(json, NULL, '{');
    json_text(json, "family", result->family);
    json_text(json, "shape", label);
    json_text(json, "dtype", shape_dtype_name(result->shape->dtype));
    json_text(json, "direction", direction_name(result->direction));
    json_text(json, "unsupported", result->unsupported);
    if (result->unsupported == NULL) {
        write_check(json, &result->check);
        json_number(json, "flops", result->flops);
        json_text(json, "flops_counted", result->shape->protocol ? "by the protocol" : "exactly");
        json_number(json, "workspace_bytes", result->workspace_bytes);
        json_number(json, "scratch_bytes", result->scratch_bytes);
        json_number(json, "score_matrix_bytes", result->score_bytes);
    }
    if (result->time.runs > 0) {
        double rate = result->flops / result->time.median;
        write_time(json, "seconds", &result->time);
        json_number(json, "gflops", rate / 1e9);
        json_number(json, "gflops_per_processor_second", result->flops / result->time.cpu / 1e9);
        json_number(json, "sgemm_ratio", rate / report->sgemm_rate);
    }
    json_close(json, '}');
}

static void write_head(struct report *report, const struct machine *machine, unsigned threads,
    const struct measure *sgemm, int sgemm_size)
{
    struct json *json = &report->json;
    json_open(json, NULL, '{');
    json_text(json, "program", "attnd-bench kernels");
    json_text(json, "version", ATTND_VERSION);
    json_text(json, "date", machine->date);
    json_open(json, "machine", '{');
    json_text(json, "processor", machine->processor);
    json_number(json, "processors", machine->processors);
    json_text(json, "simd", machine->simd);
    json_number(json, "load", machine->load);
    json_close(json, '}');
    json_number(json, "threads", threads);
    json_open(json, "sgemm", '{');
    json_text(json, "library", sgemm->runs > 0 ? machine_blas() : NULL);
    if (sgemm->runs > 0) {
        json_number(json, "size", sgemm_size);
        json_number(json, "gflops", report->sgemm_rate / 1e9);
        json_number(
            json, "gflops_per_processor_second", sgemm_flops(sgemm_size) / sgemm->cpu / 1e9);
        write_time(json, "seconds", sgemm);
    }
    json_close(json, '}');
    json_open(json, "results", '[');
}

void report_open(struct report *report, FILE *file, unsigned threads, const struct measure *sgemm,
    int sgemm_size)
{
    struct machine machine;
    machine_describe(&machine);
    report->file = file;
    report->json = (struct json){.file = file};
    report->sgemm_rate = sgemm->runs > 0 ? sgemm_flops(sgemm_size) / sgemm->median : 0;
    print_head(report, &machine, threads, sgemm, sgemm_size);
    if (file != NULL) {
        write_head(report, &machine, threads, sgemm, sgemm_size);
    }
}

void report_add(struct report *report, const struct result *result)
{
    print_line(report, result);
    if (report->file != NULL) {
        write_result(report, result);
    }
}

bool report_close(struct report *report)
{
    if (report->file == NULL) {
        return true;
    }
    json_close(&report->json, ']');
    json_close(&report->json, '}');
    bool written = ferror(report->file) == 0;
    return fclose(report->file) == 0 && written;
}

#include "kernels.h"

#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "progress.h"
#include "report.h"

#define MAX_SHAPES 64
#define MAX_DTYPES 3
#define EXIT_WRONG 1
#define EXIT_UNSUPPORTED 2

enum {
    KEY_FAMILY = 256,
    KEY_PROTOCOL,
    KEY_SHAPE,
    KEY_DIRECTION,
    KEY_DTYPE,
    KEY_THREADS,
    KEY_TOKENS,
    KEY_REPEAT,
    KEY_MIN_TIME,
    KEY_SGEMM,
    KEY_JSON,
    KEY_NO_CHECK,
    KEY_SAMPLE,
};

const char kernels_summary[] = "the rate of the kernels per shape, in this process";

static const struct argp_option entries[] = {
    {"family", KEY_FAMILY, "NAME", 0, "Kernel family (all that this machine can run)", 0},
    {"protocol", KEY_PROTOCOL, "NAME", 0,
        "flash: the shapes of the FlashAttention papers, which are the default", 0},
    {"shape", KEY_SHAPE, "KEY=VALUE,...", 0, "A shape, see below; may be given again", 0},
    {"direction", KEY_DIRECTION, "WHICH", 0, "fwd, bwd or both (both)", 0},
    {"dtype", KEY_DTYPE, "T,...", 0, "fp32, fp16, bf16 or several of them (fp32)", 0},
    {"threads", KEY_THREADS, "N", 0, "Threads (as many as there are processors)", 0},
    {"tokens", KEY_TOKENS, "N", 0,
        "The protocol's tokens: batch times sequence length (16384); less makes it shorter", 0},
    {"repeat", KEY_REPEAT, "N", 0, "Measure at least N runs (5)", 0},
    {"min-time", KEY_MIN_TIME, "S", 0, "Measure for at least S seconds (0.5)", 0},
    {"sgemm", KEY_SGEMM, "N", 0,
        "Compare with OpenBLAS's product of matrices of N x N (2048); 0 does not", 0},
    {"json", KEY_JSON, "FILE", 0, "Write all figures and the machine's description there", 0},
    {"sample", KEY_SAMPLE, NULL, 0, "Check a sample even of what is small enough to check whole",
        0},
    {"no-check", KEY_NO_CHECK, NULL, 0, "Do not check the results", 0},
    {0},
};

struct options {
    const struct attn_family *family; /* NULL: all */
    bool protocol;
    struct shape shapes[MAX_SHAPES];
    int shape_count;
    enum attn_dtype dtypes[MAX_DTYPES];
    int dtype_count;
    bool forward;
    bool backward;
    unsigned threads;
    int64_t tokens;
    struct measure_limits limits;
    int sgemm_size;
    const char *json;
    bool check;
    bool sample;
};

/* One line of the table. */
struct job {
    struct shape shape;
    const struct attn_family *family;
    enum attn_direction direction;
};

struct jobs {
    struct job *list; /* owned */
    int count;
};

/* -- the command line ----------------------------------------------------------------------- */

static double number_of(
    struct argp_state *state, const char *option, const char *text, double low, double high)
{
    char *end = NULL;
    double number = strtod(text, &end);
    if (*text == '\0' || *end != '\0' || !(number >= low && number <= high)) {
        argp_error(
            state, "--%s cannot be '%s'; it is a number from %g to %g", option, text, low, high);
    }
    return number;
}

static void add_shape(struct options *options, const char *text, struct argp_state *state)
{
    char message[SHAPE_TEXT_BYTES];
    if (options->shape_count == MAX_SHAPES) {
        argp_error(state, "at most %d shapes", MAX_SHAPES);
    } else if (shape_parse(&options->shapes[options->shape_count], text, message)) {
        options->shape_count++;
    } else {
        argp_error(state, "--shape %s: %s", text, message);
    }
}

static void set_dtypes(struct options *options, const char *text, struct argp_state *state)
{
    char words[MAX_DTYPES * 8];
    char *rest = NULL;
    options->dtype_count = 0;
    (void)snprintf(words, sizeof words, "%s", text);
    for (char *word = strtok_r(words, ",", &rest); word != NULL;
         word = strtok_r(NULL, ",", &rest)) {
        enum attn_dtype dtype = shape_dtype(word);
        if (dtype == 0 || options->dtype_count == MAX_DTYPES) {
            argp_error(
                state, "--dtype cannot be '%s'; it is up to three of fp32, fp16, bf16", text);
        }
        options->dtypes[options->dtype_count++] = dtype;
    }
    if (options->dtype_count == 0) {
        argp_error(state, "--dtype needs a value");
    }
}

static void set_direction(struct options *options, const char *text, struct argp_state *state)
{
    bool both = strcmp(text, "both") == 0;
    options->forward = both || strcmp(text, "fwd") == 0;
    options->backward = both || strcmp(text, "bwd") == 0;
    if (!options->forward && !options->backward) {
        argp_error(state, "--direction cannot be '%s'; it is fwd, bwd or both", text);
    }
}

static const char *family_problem(const char *name, const struct attn_family *family)
{
    static char sentence[256];
    if (family == NULL) {
        (void)snprintf(sentence, sizeof sentence, "this build has no kernel family '%s'", name);
        return sentence;
    }
    if (attn_family_device(family) != ATTN_DEVICE_CPU) {
        (void)snprintf(sentence, sizeof sentence,
            "family '%s' needs a device that this program does not drive", name);
        return sentence;
    }
    return NULL;
}

static void set_family(struct options *options, const char *name, struct argp_state *state)
{
    options->family = attn_family_find(name);
    const char *problem = family_problem(name, options->family);
    if (problem != NULL) {
        argp_error(state, "--family: %s", problem);
    }
}

static error_t set_number(
    struct options *options, int key, const char *text, struct argp_state *state)
{
    switch (key) {
    case KEY_THREADS:
        options->threads = (unsigned)number_of(state, "threads", text, 1, WORKERS_MAX);
        return 0;
    case KEY_TOKENS:
        options->tokens = (int64_t)number_of(state, "tokens", text, 512, 1 << 24);
        return 0;
    case KEY_REPEAT:
        options->limits.runs = (int)number_of(state, "repeat", text, 1, 1000);
        return 0;
    case KEY_MIN_TIME:
        options->limits.seconds = number_of(state, "min-time", text, 0, 3600);
        return 0;
    case KEY_SGEMM:
        options->sgemm_size = (int)number_of(state, "sgemm", text, 0, 16384);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t on_option(int key, char *text, struct argp_state *state)
{
    struct options *options = state->input;
    switch (key) {
    case KEY_FAMILY:
        set_family(options, text, state);
        return 0;
    case KEY_PROTOCOL:
        options->protocol = true;
        if (strcmp(text, "flash") != 0) {
            argp_error(state, "--protocol cannot be '%s'; it is flash", text);
        }
        return 0;
    case KEY_SHAPE:
        add_shape(options, text, state);
        return 0;
    case KEY_DTYPE:
        set_dtypes(options, text, state);
        return 0;
    case KEY_DIRECTION:
        set_direction(options, text, state);
        return 0;
    case KEY_JSON:
        options->json = text;
        return 0;
    case KEY_NO_CHECK:
        options->check = false;
        return 0;
    case KEY_SAMPLE:
        options->sample = true;
        return 0;
    default:
        return set_number(options, key, text, state);
    }
}

static const char doc[] =
    "Measures how fast the kernels compute attention, in this process, without a daemon."
    "\v"
    "The protocol: hidden size 2048, head dims 64, 128 and 256, sequences of 512 to 16384 rows, "
    "full "
    "and causal. Its FLOPs are 4 * batch * heads * rows * keys * head dim, half of that if causal, "
    "and 2.5 times as many backward. Those of other shapes are counted exactly: per visible score "
    "4 "
    "(backward 10) times the mean of the two head dims.\n\n"
    "Results are first held against a float64 reference: all of them, or, of large shapes, some "
    "random rows of some random heads; the table says which, and the error as a part of what is "
    "allowed. Then come a warm-up and the runs that count. Caches are not flushed between them.\n\n"
    "Columns: \"/sgemm\" is the rate over that of the matrix product; \"cpus\" the processor time "
    "over the wall clock time (below the number of threads, something else was running or the work "
    "did not scale); \"/cpu s\" the GFLOP of a processor second, which another program's load "
    "hardly "
    "changes; \"memory\" what the kernels need beside the tensors; \"scores\" what the matrix of "
    "all "
    "scores would take.\n\n"
    "Exit status: 0; 1 if a result was wrong; 2 if a family does not do a shape; 64 if the command "
    "line is wrong.\n\n"
    "The words of a shape:\n";

/* The words follow the text that argp would fill; they keep their lines. */
static char *with_words(int key, const char *text, void *input)
{
    (void)input;
    if (key != ARGP_KEY_HELP_POST_DOC) {
        return (char *)(uintptr_t)text;
    }
    size_t bytes = strlen(text) + strlen(shape_help()) + 1;
    char *whole = malloc(bytes);
    if (whole != NULL) {
        (void)snprintf(whole, bytes, "%s%s", text, shape_help());
    }
    return whole;
}

/* -- what there is to measure ---------------------------------------------------------------- */

static void add_job(struct jobs *jobs, const struct job *job)
{
    struct job *list = realloc(jobs->list, (size_t)(jobs->count + 1) * sizeof *list);
    if (list == NULL) {
        (void)fprintf(stderr, "attnd-bench: no memory for %d shapes\n", jobs->count);
        exit(EXIT_FAILURE);
    }
    list[jobs->count] = *job;
    jobs->list = list;
    jobs->count++;
}

static void add_directions(struct jobs *jobs, const struct options *options, struct job job)
{
    for (size_t i = 0; i < attn_family_count(); i++) {
        job.family = attn_family_at(i);
        if (options->family != NULL ? options->family != job.family
                                    : attn_family_device(job.family) != ATTN_DEVICE_CPU) {
            continue;
        }
        for (job.direction = ATTN_FORWARD; job.direction <= ATTN_BACKWARD; job.direction++) {
            if (job.direction == ATTN_FORWARD ? options->forward : options->backward) {
                add_job(jobs, &job);
            }
        }
    }
}

static void add_dtypes(struct jobs *jobs, const struct options *options, const struct shape *shape)
{
    struct job job = {.shape = *shape};
    for (int i = 0; i < (shape->dtype != 0 ? 1 : options->dtype_count); i++) {
        job.shape.dtype = shape->dtype != 0 ? shape->dtype : options->dtypes[i];
        add_directions(jobs, options, job);
    }
}

static void list_jobs(struct jobs *jobs, const struct options *options)
{
    struct shape shape;
    for (int i = 0; i < options->shape_count; i++) {
        add_dtypes(jobs, options, &options->shapes[i]);
    }
    bool protocol = options->protocol || options->shape_count == 0;
    for (int i = 0; protocol && shape_protocol(&shape, options->tokens, i); i++) {
        add_dtypes(jobs, options, &shape);
    }
}

static int widest_label(const struct jobs *jobs)
{
    char label[SHAPE_TEXT_BYTES];
    int widest = 5;
    for (int i = 0; i < jobs->count; i++) {
        shape_describe(&jobs->list[i].shape, label);
        int width = (int)strlen(label);
        widest = width > widest ? width : widest;
    }
    return widest;
}

/* -- measuring ------------------------------------------------------------------------------- */

struct launch {
    const struct attn_family *family;
    struct workers *workers;
    enum attn_direction direction;
    const struct attn_problem *problem;
    void *workspace;
};

static void launch_once(void *context)
{
    const struct launch *launch = context;
    if (check_launch(launch->family, launch->workers, launch->direction, launch->problem,
            launch->workspace) != 0) {
        (void)fprintf(stderr, "attnd-bench: a launch returned an error\n");
        exit(EXIT_FAILURE);
    }
}

static void measure_job(struct result *result, const struct job *job, const struct options *options,
    struct subject *subject, struct workers *workers)
{
    bool forward = job->direction == ATTN_FORWARD;
    struct launch launch = {job->family, workers, job->direction,
        forward ? &subject->forward : &subject->backward,
        workers_memory((size_t)result->workspace_bytes)};
    if (options->check) {
        result->check = check_run(subject, job->family, workers, job->direction, options->sample);
    } else if (!forward) { /* backward reads what forward wrote */
        void *workspace =
            workers_memory(attn_workspace_bytes(job->family, ATTN_FORWARD, &subject->forward));
        launch_once(
            &(struct launch){job->family, workers, ATTN_FORWARD, &subject->forward, workspace});
        free(workspace);
    }
    if (!result->check.wrong) {
        progress_show("measuring");
        result->time = measure_run(&options->limits, launch_once, &launch);
    }
    free(launch.workspace);
}

/* NULL if the family does the job. A backward needs its forward. */
static const char *refusal(const struct job *job)
{
    struct subject sketch;
    subject_sketch(&sketch, &job->shape);
    const char *why = attn_unsupported(job->family, ATTN_FORWARD, &sketch.forward);
    if (why == NULL && job->direction == ATTN_BACKWARD) {
        why = attn_unsupported(job->family, ATTN_BACKWARD, &sketch.backward);
    }
    subject_finish(&sketch);
    return why;
}

static struct result run_job(const struct job *job, const struct options *options)
{
    struct result result = {.family = attn_family_name(job->family),
        .shape = &job->shape,
        .direction = job->direction,
        .unsupported = refusal(job)};
    if (result.unsupported != NULL) {
        return result;
    }
    struct subject subject;
    struct workers workers;
    progress_show("making tensors");
    subject_init(&subject, &job->shape);
    workers_init(&workers, job->family, options->threads);
    bool forward = job->direction == ATTN_FORWARD;
    result.flops = shape_flops(&job->shape, job->direction);
    result.workspace_bytes = (double)attn_workspace_bytes(
        job->family, job->direction, forward ? &subject.forward : &subject.backward);
    result.scratch_bytes = (double)attn_scratch_bytes(job->family) * options->threads;
    result.score_bytes = shape_score_bytes(&job->shape);
    measure_job(&result, job, options, &subject, &workers);
    workers_finish(&workers);
    subject_finish(&subject);
    return result;
}

static int run_jobs(struct jobs *jobs, const struct options *options, FILE *file)
{
    struct report report = {.label_width = widest_label(jobs)};
    struct measure sgemm = {0};
    int status = 0;
    if (machine_blas() != NULL && options->sgemm_size > 0) {
        sgemm = machine_sgemm(options->sgemm_size, options->threads, &options->limits);
    }
    report_open(&report, file, options->threads, &sgemm, options->sgemm_size);
    for (int i = 0; i < jobs->count; i++) {
        char label[SHAPE_TEXT_BYTES];
        shape_describe(&jobs->list[i].shape, label);
        progress_case(i + 1, jobs->count, label);
        struct result result = run_job(&jobs->list[i], options);
        progress_clear();
        report_add(&report, &result);
        if (result.check.wrong) {
            status = EXIT_WRONG;
        } else if (result.unsupported != NULL && status == 0) {
            status = EXIT_UNSUPPORTED;
        }
    }
    if (!report_close(&report)) {
        (void)fprintf(stderr, "attnd-bench: cannot write %s\n", options->json);
        return EXIT_FAILURE;
    }
    if (status == EXIT_WRONG) {
        (void)fprintf(stderr, "attnd-bench: a result is wrong\n");
    }
    return status;
}

int kernels_main(int argc, char **argv)
{
    static struct options options;
    const struct argp parser = {
        .options = entries, .parser = on_option, .doc = doc, .help_filter = with_words};
    struct machine machine;
    struct jobs jobs = {0};
    FILE *file = NULL;
    machine_describe(&machine);
    options = (struct options){.dtypes = {ATTN_FP32},
        .dtype_count = 1,
        .forward = true,
        .backward = true,
        .threads = machine.processors < WORKERS_MAX ? machine.processors : WORKERS_MAX,
        .tokens = 16384,
        .limits = {5, 0.5},
        .sgemm_size = 2048,
        .check = true};
    (void)argp_parse(&parser, argc, argv, 0, NULL, &options);
    if (options.json != NULL) {
        file = fopen(options.json, "we");
        if (file == NULL) {
            (void)fprintf(
                stderr, "attnd-bench: cannot write %s: %s\n", options.json, strerror(errno));
            return EXIT_FAILURE;
        }
    }
    list_jobs(&jobs, &options);
    int status = run_jobs(&jobs, &options, file);
    free(jobs.list);
    return status;
}

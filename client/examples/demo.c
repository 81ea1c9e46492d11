/*
 * Starts one attnd on a private directory and several trainers on it, as a sweep over learning rates;
 * shows them, ends what it started, and says whether all went as it should.
 */
#include "attnd.h"
#include "child.h"
#include "gpu.h"
#include "scratch.h"
#include "sweep.h"
#include "text.h"
#include "view.h"

#include <argp.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

enum {
    PATH_BYTES = 4096,
    MOST_CHILDREN = SWEEP_TRAINERS + 1,
    TICK_MS = 200,
    START_PATIENCE_S = 20,
    SILENCE_PATIENCE_S = 120, /* a step takes about a second, much longer only on a stuck machine */
};

enum demo_device {
    DEVICE_AUTO, /* the GPU if there are a usable one and a trainer for it */
    DEVICE_CPU,
    DEVICE_CUDA,
};

struct demo {
    long trainers;
    long steps;
    const char *text;
    const char *json;
    enum demo_device device;
    char *attnd_path;
    char *trainer_path;
    char own_attnd[PATH_BYTES];
    char own_trainer[PATH_BYTES];
    FILE *json_file;
    int signals;     /* signalfd */
    int interrupted; /* the signal that asked for the end; 0: none */
    time_t last_news;
    struct scratch scratch;
    struct child daemon;
    struct sweep sweep;
    struct view view;
};

static const struct argp_option OPTIONS[] = {
    {"trainers", 'N', "N", 0, "Trainers at once, 1 to 32 (4)", 0},
    {"steps", 'n', "N", 0, "Steps of each (60)", 0},
    {"text", 't', "FILE", 0, "What they learn (/usr/share/common-licenses/GPL-3)", 0},
    {"json", 'j', "FILE", 0, "Also write the table there", 0},
    {"device", 'e', "DEVICE", 0,
        "cpu, cuda, or auto: the GPU if one can be used and this was built for it (auto)", 0},
    {"attnd", 'd', "PATH", 0, "The daemon's program (beside this one)", 0},
    {"trainer", 'p', "PATH", 0, "The trainer's program (beside this one)", 0},
    {0},
};

static time_t now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static long parse_whole(struct argp_state *state, const char *name, const char *arg, long most)
{
    char *end;
    errno = 0;
    long number = strtol(arg, &end, 10);
    if (errno != 0 || end == arg || *end != '\0' || number < 1 || number > most) {
        argp_error(state, "--%s is '%s'; it must be a whole number from 1 to %ld", name, arg, most);
    }
    return number;
}

static enum demo_device parse_device(struct argp_state *state, const char *arg)
{
    static const char *const NAMES[] = {"auto", "cpu", "cuda"};
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        if (strcmp(arg, NAMES[i]) == 0) {
            return (enum demo_device)i;
        }
    }
    argp_error(state, "--device is '%s'; it must be cpu, cuda or auto", arg);
    return DEVICE_AUTO;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct demo *demo = state->input;
    switch (key) {
    case 'N':
        demo->trainers = parse_whole(state, "trainers", arg, SWEEP_TRAINERS);
        return 0;
    case 'n':
        demo->steps = parse_whole(state, "steps", arg, 1000000);
        return 0;
    case 't':
        demo->text = arg;
        return 0;
    case 'j':
        demo->json = arg;
        return 0;
    case 'e':
        demo->device = parse_device(state, arg);
        return 0;
    case 'd':
        demo->attnd_path = arg;
        return 0;
    case 'p':
        demo->trainer_path = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

__attribute__((format(printf, 1, 2))) static bool complain(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "attnd-demo: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    return false;
}

static bool find_programs(struct demo *demo)
{
    char own[PATH_BYTES - 32];
    ssize_t length = readlink("/proc/self/exe", own, sizeof(own) - 1);
    if (length < 0) {
        return complain("cannot find its own path: %s", strerror(errno));
    }
    own[length] = '\0';
    char *slash = strrchr(own, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
    snprintf(demo->own_attnd, sizeof(demo->own_attnd), "%s/attnd", own);
    snprintf(demo->own_trainer, sizeof(demo->own_trainer), "%s/attnd-trainer-cuda", own);
    if (demo->device == DEVICE_AUTO) {
        bool built = access(demo->own_trainer, X_OK) == 0;
        demo->device = built && gpu_is_usable() ? DEVICE_CUDA : DEVICE_CPU;
    }
    if (demo->device == DEVICE_CPU) {
        snprintf(demo->own_trainer, sizeof(demo->own_trainer), "%s/attnd-trainer", own);
    }
    demo->attnd_path = demo->attnd_path != NULL ? demo->attnd_path : demo->own_attnd;
    demo->trainer_path = demo->trainer_path != NULL ? demo->trainer_path : demo->own_trainer;
    return true;
}

static bool check_text(const struct demo *demo)
{
    char error[TEXT_ERROR_BYTES];
    struct text text;
    if (!text_load(&text, demo->text, TEXT_CONTEXT, error)) {
        return complain("%s", error);
    }
    text_finish(&text);
    return true;
}

/* From here on signals are read where the demo waits, so that nothing is left half started. */
static bool hold_signals(struct demo *demo)
{
    sigset_t set;
    struct sigaction hang_up;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaction(SIGHUP, NULL, &hang_up);
    if (hang_up.sa_handler != SIG_IGN) { /* under nohup it stays ignored */
        sigaddset(&set, SIGHUP);
    }
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN); /* a reader that went away must not leave a daemon behind */
    demo->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return demo->signals >= 0 || complain("no signalfd: %s", strerror(errno));
}

static bool prepare(struct demo *demo)
{
    if (!check_text(demo)) {
        return false;
    }
    demo->json_file = demo->json != NULL ? fopen(demo->json, "we") : NULL;
    if (demo->json != NULL && demo->json_file == NULL) {
        return complain("cannot write %s: %s", demo->json, strerror(errno));
    }
    sweep_init(&demo->sweep, (size_t)demo->trainers, (int)demo->steps, demo->text);
    if (!hold_signals(demo) || !find_programs(demo)) { /* in this order: the driver has threads */
        return false;
    }
    return scratch_open(&demo->scratch) ||
           complain("cannot make a private directory: %s", strerror(errno));
}

static void read_signals(struct demo *demo)
{
    struct signalfd_siginfo info;
    while (read(demo->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo != SIGCHLD && demo->interrupted == 0) {
            demo->interrupted = (int)info.ssi_signo;
        }
    }
}

static bool start(struct child *child, char *const argv[])
{
    return child_start(child, argv) || complain("cannot start %s: %s", argv[0], strerror(errno));
}

/* Live lines end first: what is printed among them would shift them. */
static bool say_end(struct demo *demo, const struct child *child)
{
    char end[64];
    view_end(&demo->view);
    child_describe_end(child, end, sizeof(end));
    complain("%s %s%s", child->name, end, child->lines > 0 ? "; its last words:" : "");
    child_print_tail(child);
    return false;
}

/* false: it ended, or somebody wants the demo to end */
static bool daemon_lives(struct demo *demo)
{
    read_signals(demo);
    child_read(&demo->daemon);
    if (child_reap(&demo->daemon)) {
        return say_end(demo, &demo->daemon);
    }
    return demo->interrupted == 0;
}

static enum attnd_status open_client(const struct demo *demo, struct attnd **client)
{
    struct attnd_open_options options = {
        .size = sizeof(options),
        .address = demo->scratch.path,
        .name = "attnd-demo",
        .timeout_ns = INT64_C(2) * 1000 * 1000 * 1000,
    };
    return attnd_open(&options, client);
}

static bool start_daemon(struct demo *demo)
{
    char directory[] = "--directory";
    char follow[] = "--stop-with-parent"; /* also when this process is killed */
    char device[] = "--device";
    char cpu[] = "cpu";
    char cuda[] = "cuda";
    char *argv[] = {demo->attnd_path, directory, demo->scratch.path, device,
        demo->device == DEVICE_CUDA ? cuda : cpu, follow, NULL};
    demo->daemon.name = "attnd";
    if (!start(&demo->daemon, argv)) {
        return false;
    }
    const struct timespec pause = {.tv_nsec = 20 * 1000L * 1000L};
    time_t deadline = now_s() + START_PATIENCE_S;
    while (daemon_lives(demo)) {
        struct attnd *client;
        if (open_client(demo, &client) == ATTND_OK) {
            attnd_close(client);
            return true;
        }
        if (now_s() > deadline) {
            return complain("attnd does not answer: %s", attnd_message());
        }
        nanosleep(&pause, NULL);
    }
    return false;
}

/* A trainer's line; context is the demo's trainer. */
static void on_trainer_line(void *context, const char *line)
{
    sweep_take_line(context, line);
}

static bool start_trainer(struct demo *demo, struct sweep_trainer *trainer)
{
    char address[PATH_BYTES];
    char text[PATH_BYTES];
    char steps[32];
    char rate[64];
    snprintf(address, sizeof(address), "--address=%s", demo->scratch.path);
    snprintf(text, sizeof(text), "--text=%s", demo->text);
    snprintf(steps, sizeof(steps), "--steps=%ld", demo->steps);
    snprintf(rate, sizeof(rate), "--learning-rate=%.9g", trainer->learning_rate);
    char *argv[] = {demo->trainer_path, address, text, steps, rate, NULL};
    trainer->child.on_line = on_trainer_line;
    trainer->child.context = trainer;
    return start(&trainer->child, argv);
}

static bool start_trainers(struct demo *demo)
{
    for (size_t i = 0; i < demo->sweep.count; i++) {
        if (!start_trainer(demo, &demo->sweep.trainers[i])) {
            return false;
        }
    }
    demo->last_news = now_s();
    return true;
}

/* Sleeps until something happens, at most a tick. */
static void wait_for_news(const struct demo *demo)
{
    struct pollfd polled[MOST_CHILDREN + 1] = {{.fd = demo->signals, .events = POLLIN}};
    nfds_t count = 1;
    polled[count++] = (struct pollfd){.fd = demo->daemon.fd, .events = POLLIN};
    for (size_t i = 0; i < demo->sweep.count; i++) {
        polled[count++] = (struct pollfd){.fd = demo->sweep.trainers[i].child.fd, .events = POLLIN};
    }
    poll(polled, count, TICK_MS);
}

/* Takes a trainer's news. false: it ended without a result. */
static bool look_at_trainer(struct demo *demo, struct sweep_trainer *trainer, bool *runs)
{
    size_t lines = trainer->child.lines;
    int step = trainer->step.step;
    child_read(&trainer->child);
    bool ended = child_reap(&trainer->child);
    if (trainer->child.lines != lines) {
        demo->last_news = now_s();
    }
    if (trainer->step.step != step) {
        view_note(&demo->view, trainer);
    }
    *runs = *runs || trainer->child.pid != 0;
    if (!ended || trainer->has_result) {
        return true;
    }
    /* A daemon's clients can notice its end before its parent can. */
    const struct timespec pause = {.tv_nsec = 100 * 1000L * 1000L};
    nanosleep(&pause, NULL);
    return daemon_lives(demo) && say_end(demo, &trainer->child);
}

/* Follows the trainers until all have ended. false: something went wrong, or an interruption. */
static bool follow(struct demo *demo)
{
    bool runs = true;
    while (runs) {
        wait_for_news(demo);
        runs = false;
        for (size_t i = 0; i < demo->sweep.count; i++) {
            if (!look_at_trainer(demo, &demo->sweep.trainers[i], &runs)) {
                return false;
            }
        }
        view_draw(&demo->view);
        if (!daemon_lives(demo)) {
            return false;
        }
        if (now_s() - demo->last_news > SILENCE_PATIENCE_S) {
            view_end(&demo->view);
            return complain("no trainer has said anything for %d s", SILENCE_PATIENCE_S);
        }
    }
    return true;
}

/* The trainers have ended, and each saw all of its requests counted: the sums are final. */
static bool ask_daemon(struct demo *demo)
{
    struct attnd *client;
    if (open_client(demo, &client) != ATTND_OK) {
        return complain("cannot ask attnd for its statistics: %s", attnd_message());
    }
    struct attnd_stats stats = {.size = sizeof(stats)};
    bool good = attnd_get_stats(client, &stats) == ATTND_OK;
    if (good) {
        demo->sweep.requests = stats.daemon.requests;
        demo->sweep.failed_requests = stats.daemon.failed;
        demo->sweep.groups = stats.daemon.groups;
    } else {
        complain("attnd gives no statistics: %s", attnd_message());
    }
    attnd_close(client);
    return good;
}

/* Trainers first: the daemon then has nothing left to finish. */
static bool stop_all(struct demo *demo)
{
    struct child *trainers[SWEEP_TRAINERS];
    struct child *daemon = &demo->daemon;
    for (size_t i = 0; i < demo->sweep.count; i++) {
        trainers[i] = &demo->sweep.trainers[i].child;
    }
    child_stop(trainers, demo->sweep.count);
    bool daemon_runs = daemon->pid != 0;
    child_stop(&daemon, 1);
    if (!scratch_close(&demo->scratch)) {
        complain("its private directory is still there: %s", strerror(errno));
    }
    return !daemon_runs || child_succeeded(daemon) || say_end(demo, daemon);
}

static bool run_all(struct demo *demo)
{
    if (!start_daemon(demo) || !start_trainers(demo)) {
        return false;
    }
    printf("%ld trainers, %ld steps each, learn %s; one attnd computes their attention on the %s\n",
        demo->trainers, demo->steps, demo->text, demo->device == DEVICE_CUDA ? "GPU" : "CPU");
    fflush(stdout);
    view_begin(&demo->view, &demo->sweep);
    bool good = follow(demo);
    view_end(&demo->view);
    return good && ask_daemon(demo);
}

static bool conclude(struct demo *demo)
{
    if (demo->json_file != NULL) {
        sweep_print_json(&demo->sweep, demo->json_file);
        int error = fclose(demo->json_file);
        demo->json_file = NULL;
        if (error != 0) {
            return complain("cannot write %s: %s", demo->json, strerror(errno));
        }
    }
    return sweep_conclude(&demo->sweep);
}

static int run(struct demo *demo)
{
    bool good = prepare(demo) && run_all(demo);
    good = stop_all(demo) && good;
    if (demo->interrupted != 0) {
        complain("interrupted");
        return 128 + demo->interrupted;
    }
    return good && conclude(demo) ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    static const struct argp parser = {OPTIONS, parse_option, NULL,
        "Trains several small language models at once, all attention computed by one attnd.", NULL,
        NULL, NULL};
    static struct demo demo = {
        .trainers = 4,
        .steps = 60,
        .text = "/usr/share/common-licenses/GPL-3",
        .daemon = {.fd = -1},
    };
    argp_parse(&parser, argc, argv, 0, NULL, &demo);
    /* The trainers' BLAS would start a thread per core in each of them. */
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    return run(&demo);
}

#include "view.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    BAR_CELLS = 30,
    PLAIN_LINES = 5, /* of one trainer in a whole run */
};

/* Rewriting in place needs all lines on the screen at once. */
static bool fits_terminal(const struct sweep *sweep, size_t *columns)
{
    struct winsize size;
    if (isatty(STDOUT_FILENO) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) {
        return false;
    }
    *columns = size.ws_col;
    return size.ws_row > sweep->count + 1 && size.ws_col > 1;
}

static void draw_line(const struct sweep_trainer *trainer, int steps, size_t columns)
{
    char bar[BAR_CELLS + 1];
    char line[160];
    int full = (int)((long)trainer->step.step * BAR_CELLS / steps);
    memset(bar, '.', BAR_CELLS);
    memset(bar, '#', (size_t)full);
    bar[BAR_CELLS] = '\0';
    int length = snprintf(line, sizeof(line), "%-10s  learning rate %.2e  [%s]  step %*d",
        trainer->name, trainer->learning_rate, bar, 4, trainer->step.step);
    if (trainer->step.step > 0 && length > 0 && (size_t)length < sizeof(line)) {
        snprintf(line + length, sizeof(line) - (size_t)length, "  loss %.3f", trainer->step.loss);
    }
    printf("\033[K%.*s\n", (int)columns - 1, line);
}

void view_begin(struct view *view, const struct sweep *sweep)
{
    size_t columns;
    *view = (struct view){.sweep = sweep, .live = fits_terminal(sweep, &columns), .stale = true};
    if (view->live) {
        printf("\033[?25l");
    }
    view_draw(view);
}

void view_note(struct view *view, const struct sweep_trainer *trainer)
{
    const struct report_step *step = &trainer->step;
    view->stale = true;
    int every = (step->steps + PLAIN_LINES - 1) / PLAIN_LINES;
    if (!view->live && (step->step % every == 0 || step->step == step->steps)) {
        printf("%s (learning rate %.2e): step %d of %d, loss %.3f\n", trainer->name,
            trainer->learning_rate, step->step, step->steps, step->loss);
        fflush(stdout);
    }
}

void view_draw(struct view *view)
{
    size_t columns;
    if (!view->live || !view->stale || !fits_terminal(view->sweep, &columns)) {
        return;
    }
    if (view->drawn) {
        printf("\033[%zuA\r", view->sweep->count);
    }
    for (size_t i = 0; i < view->sweep->count; i++) {
        draw_line(&view->sweep->trainers[i], view->sweep->steps, columns);
    }
    fflush(stdout);
    view->drawn = true;
    view->stale = false;
}

void view_end(struct view *view)
{
    if (view->live) {
        view_draw(view);
        printf("\033[?25h");
        fflush(stdout);
        view->live = false;
    }
}

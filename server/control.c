#include "control.h"

#include <assert.h>
#include <stdlib.h>
#include <unistd.h>

static struct control *control_of(struct worker_task *task)
{
    return (struct control *)(void *)task;
}

/* On the mapper's thread. */
static void open_page(struct worker_task *task)
{
    struct control *control = control_of(task);
    struct backend *backend = control->backend;

    if (!page_map(control->fd, &control->page, &control->error)) {
        control->page = NULL;
        return;
    }
    if (backend->ops->pin_page != NULL) {
        control->is_pinned =
            backend->ops->pin_page(backend, control->page, &control->device, &control->error);
        if (!control->is_pinned) {
            page_unmap(control->page);
            control->page = NULL;
            return;
        }
    }
    (void)close(control->fd);
    control->fd = -1;
}

static void on_opened(struct worker_task *task)
{
    struct control *control = control_of(task);

    control->is_opening = false;
    control->done(control->context, control);
}

/* On the unmapper's thread. */
static void close_page(struct worker_task *task)
{
    struct control *control = control_of(task);

    if (control->is_pinned) {
        control->backend->ops->unpin_page(control->backend, control->page);
    }
    page_unmap(control->page);
    free(control);
}

struct control *control_open(struct backend *backend, struct worker *mapper, uint32_t uid, int fd,
    void (*done)(void *context, struct control *control), void *context)
{
    struct control *control = calloc(1, sizeof(*control));

    if (control == NULL) {
        return NULL;
    }
    *control = (struct control){.task = {.uid = uid, .work = open_page, .done = on_opened},
        .backend = backend,
        .fd = fd,
        .is_opening = true,
        .done = done,
        .context = context};
    worker_give(mapper, &control->task);
    return control;
}

void control_close(struct control *control, struct worker *unmapper)
{
    assert(!control->is_opening);
    control->task = (struct worker_task){.uid = control->task.uid, .work = close_page};
    worker_give(unmapper, &control->task);
}

unsigned control_closings(struct worker *unmapper, uint32_t uid)
{
    return worker_count(unmapper, uid, close_page);
}

/* Streams: a thread each, that does what it is given in order. */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

#define MAX_WORK 4096
#define PAUSE_NS 20000
#define LEGACY ((void *)1)
#define PER_THREAD ((void *)2)
#define CAPTURE_UNSUPPORTED DRIVER_FIRST_CAPTURE_ERROR

struct work {
    int operation; /* of memory, or 0: */
    void (*kernel)(void *context);
    void *context;
    _Atomic uint32_t *word;
    uint32_t value;
};

struct fake_stream {
    struct fake_context *context;
    unsigned long long id;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct work work[MAX_WORK]; /* a ring */
    size_t begun;
    size_t done;
    size_t given;
    bool capturing;
    bool spoilt;
    pthread_t thread;
};

static _Atomic unsigned long long last_id = 6;
static _Atomic int fail_next;
static _Thread_local struct fake_stream *own;

static void pause_a_little(void)
{
    struct timespec pause = {0, PAUSE_NS};
    (void)nanosleep(&pause, NULL);
}

/* Not at all on a broken context, and no further where it breaks meanwhile. */
static void do_work(const struct fake_stream *stream, const struct work *work)
{
    bool waiting = work->operation == DRIVER_WAIT_VALUE_32;
    while (atomic_load(&stream->context->broken) ||
           (waiting && (int32_t)(atomic_load(work->word) - work->value) < 0)) {
        pause_a_little();
    }
    if (work->operation == DRIVER_WRITE_VALUE_32) {
        atomic_store(work->word, work->value);
    } else if (!waiting) {
        work->kernel(work->context);
    }
}

static void *run(void *context)
{
    struct fake_stream *stream = context;
    (void)pthread_mutex_lock(&stream->mutex);
    for (;;) {
        while (stream->done == stream->given) {
            (void)pthread_cond_wait(&stream->changed, &stream->mutex);
        }
        struct work work = stream->work[stream->done % MAX_WORK];
        (void)pthread_mutex_unlock(&stream->mutex);
        do_work(stream, &work);
        (void)pthread_mutex_lock(&stream->mutex);
        stream->done++;
        (void)pthread_cond_broadcast(&stream->changed);
    }
    return NULL;
}

static struct fake_stream *make(struct fake_context *context)
{
    struct fake_stream *stream = calloc(1, sizeof *stream);
    assert(stream);
    stream->context = context;
    stream->id = atomic_fetch_add(&last_id, 1) + 1;
    (void)pthread_mutex_init(&stream->mutex, NULL);
    (void)pthread_cond_init(&stream->changed, NULL);
    int code = pthread_create(&stream->thread, NULL, run, stream);
    assert(code == 0);
    (void)code;
    (void)pthread_detach(stream->thread);
    return stream;
}

static struct fake_stream *legacy_of(struct fake_context *context)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    (void)pthread_mutex_lock(&lock);
    struct fake_stream *stream = atomic_load(&context->legacy);
    if (!stream) {
        stream = make(context);
        atomic_store(&context->legacy, stream);
    }
    (void)pthread_mutex_unlock(&lock);
    return stream;
}

/* The default ones are of the current context. */
static int find(void *handle, struct fake_stream **stream)
{
    bool is_default = !handle || handle == LEGACY || handle == PER_THREAD;
    struct fake_context *context = fake_current();
    if (is_default && !context) {
        return DRIVER_INVALID_CONTEXT;
    }
    if (handle == PER_THREAD && !own) {
        own = make(context);
    }
    if (handle == PER_THREAD) {
        *stream = own;
    } else {
        *stream = is_default ? legacy_of(context) : handle;
    }
    return atomic_load(&(*stream)->context->broken) ? DRIVER_ILLEGAL_ADDRESS : DRIVER_SUCCESS;
}

static void give(struct fake_stream *stream, const struct work *work, size_t count)
{
    (void)pthread_mutex_lock(&stream->mutex);
    while (stream->given + count - stream->done > MAX_WORK) {
        (void)pthread_cond_wait(&stream->changed, &stream->mutex);
    }
    for (size_t i = 0; i < count; i++) {
        stream->work[stream->given++ % MAX_WORK] = work[i];
    }
    (void)pthread_cond_broadcast(&stream->changed);
    (void)pthread_mutex_unlock(&stream->mutex);
}

/* Most questions about a stream that is being captured end the capture. */
static int ask(void *handle, struct fake_stream **stream)
{
    int result = find(handle, stream);
    if (result == DRIVER_SUCCESS) {
        (void)pthread_mutex_lock(&(*stream)->mutex);
        if ((*stream)->capturing) {
            (*stream)->spoilt = true;
            result = CAPTURE_UNSUPPORTED;
        }
        (void)pthread_mutex_unlock(&(*stream)->mutex);
    }
    return result;
}

/* ---- The driver's ------------------------------------------------------------------------------- */

FAKE_EXPORT int cuStreamGetCtx(void *handle, void **context);

int cuStreamGetCtx(void *handle, void **context)
{
    struct fake_stream *stream;
    int result = ask(handle, &stream);
    *context = result == DRIVER_SUCCESS ? stream->context : NULL;
    return result;
}

FAKE_EXPORT int cuStreamGetId(void *handle, unsigned long long *id);

int cuStreamGetId(void *handle, unsigned long long *id)
{
    struct fake_stream *stream;
    int result = ask(handle, &stream);
    if (result == DRIVER_SUCCESS) {
        *id = stream->id;
    }
    return result;
}

FAKE_EXPORT int cuStreamIsCapturing(void *handle, int *status);

int cuStreamIsCapturing(void *handle, int *status)
{
    struct fake_stream *stream;
    int result = find(handle, &stream);
    if (result == DRIVER_SUCCESS) {
        (void)pthread_mutex_lock(&stream->mutex);
        *status = stream->capturing;
        (void)pthread_mutex_unlock(&stream->mutex);
    }
    return result;
}

static _Atomic uint32_t *word_at(uint64_t address)
{
    return (_Atomic uint32_t *)(uintptr_t)(address - FAKE_HOST_DISTANCE);
}

FAKE_EXPORT int cuStreamBatchMemOp_v2(
    void *handle, unsigned count, union driver_operation *operations, unsigned flags);

int cuStreamBatchMemOp_v2(
    void *handle, unsigned count, union driver_operation *operations, unsigned flags)
{
    struct work work[8] = {0};
    struct fake_stream *stream;
    int result = atomic_exchange(&fail_next, 0);
    if (result == DRIVER_SUCCESS) {
        result = ask(handle, &stream);
    }
    if (result != DRIVER_SUCCESS || count > 8 || flags != 0) {
        return result != DRIVER_SUCCESS ? result : DRIVER_INVALID_VALUE;
    }
    for (unsigned i = 0; i < count; i++) {
        assert(operations[i].word.operation == DRIVER_WAIT_VALUE_32 ||
               operations[i].word.operation == DRIVER_WRITE_VALUE_32);
        assert(operations[i].word.flags == 0);
        work[i] = (struct work){.operation = operations[i].word.operation,
            .word = word_at(operations[i].word.address),
            .value = (uint32_t)operations[i].word.value};
    }
    give(stream, work, count);
    return DRIVER_SUCCESS;
}

/* ---- The tests' --------------------------------------------------------------------------------- */

void *fake_cuda_stream(void)
{
    return make(fake_current());
}

static struct fake_stream *stream_of(void *handle)
{
    struct fake_stream *stream = NULL;
    (void)find(handle, &stream);
    assert(stream);
    return stream;
}

void fake_cuda_launch(void *stream, void (*kernel)(void *context), void *context)
{
    const struct work work = {.kernel = kernel, .context = context};
    give(stream_of(stream), &work, 1);
}

bool fake_cuda_is_idle(void *handle)
{
    struct fake_stream *stream = stream_of(handle);
    (void)pthread_mutex_lock(&stream->mutex);
    bool idle = stream->done == stream->given;
    (void)pthread_mutex_unlock(&stream->mutex);
    return idle;
}

void fake_cuda_synchronize(void *handle)
{
    struct fake_stream *stream = stream_of(handle);
    (void)pthread_mutex_lock(&stream->mutex);
    size_t until = stream->given;
    while (stream->done < until) {
        (void)pthread_cond_wait(&stream->changed, &stream->mutex);
    }
    (void)pthread_mutex_unlock(&stream->mutex);
}

void fake_cuda_capture(void *handle, bool on)
{
    struct fake_stream *stream = stream_of(handle);
    (void)pthread_mutex_lock(&stream->mutex);
    stream->capturing = on;
    (void)pthread_mutex_unlock(&stream->mutex);
}

bool fake_cuda_capture_is_spoilt(void *handle)
{
    struct fake_stream *stream = stream_of(handle);
    (void)pthread_mutex_lock(&stream->mutex);
    bool spoilt = stream->spoilt;
    (void)pthread_mutex_unlock(&stream->mutex);
    return spoilt;
}

void fake_cuda_fail_next(int result)
{
    atomic_store(&fail_next, result);
}

bool fake_cuda_has_failed(void)
{
    return atomic_load(&fail_next) == DRIVER_SUCCESS;
}

#include "text.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A tenth is held out and must hold several different rows. */
enum {
    HELD_OUT_FRACTION = 10,
    LEAST_ROWS = 20,
};

/* Far above any text that this model can make use of; it keeps a mistaken --text from eating memory. */
static const int64_t LONGEST_BYTES = INT64_C(1) << 30;

/* Finds the length and whether it will do. */
static bool check_file(int fd, const char *path, size_t context, size_t *length, char *error)
{
    struct stat info;
    if (fstat(fd, &info) != 0) {
        snprintf(error, TEXT_ERROR_BYTES, "cannot look at the text %s: %s", path, strerror(errno));
        return false;
    }
    if (!S_ISREG(info.st_mode)) {
        snprintf(error, TEXT_ERROR_BYTES, "the text %s is not a regular file", path);
        return false;
    }
    if (info.st_size == 0) {
        snprintf(error, TEXT_ERROR_BYTES, "the text %s is empty", path);
        return false;
    }
    size_t least = LEAST_ROWS * (context + 1);
    if ((uint64_t)info.st_size < least || info.st_size > LONGEST_BYTES) {
        snprintf(error, TEXT_ERROR_BYTES,
            "the text %s is too %s: it has %" PRId64
            " bytes, and training takes from %zu to %" PRId64,
            path, info.st_size > LONGEST_BYTES ? "long" : "short", (int64_t)info.st_size, least,
            LONGEST_BYTES);
        return false;
    }
    *length = (size_t)info.st_size;
    return true;
}

static bool read_all(int fd, struct text *text, const char *path, char *error)
{
    size_t done = 0;
    while (done < text->length) {
        ssize_t n = read(fd, text->bytes + done, text->length - done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            snprintf(error, TEXT_ERROR_BYTES, "cannot read the text %s: %s", path,
                n < 0 ? strerror(errno) : "it shrank meanwhile");
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

static bool load_open_file(int fd, struct text *text, const char *path, size_t context, char *error)
{
    size_t length;
    if (!check_file(fd, path, context, &length, error)) {
        return false;
    }
    text->bytes = malloc(length);
    if (text->bytes == NULL) {
        snprintf(
            error, TEXT_ERROR_BYTES, "no memory for the %zu bytes of the text %s", length, path);
        return false;
    }
    text->length = length;
    return read_all(fd, text, path, error);
}

static void draw(const uint8_t *bytes, size_t length, struct rng *rng, struct text_batch *batch)
{
    size_t context = batch->context;
    assert(length > context);
    for (size_t row = 0; row < batch->rows; row++) {
        const uint8_t *from = bytes + rng_below(rng, length - context);
        memcpy(batch->tokens + row * context, from, context);
        memcpy(batch->targets + row * context, from + 1, context);
    }
}

bool text_load(struct text *text, const char *path, size_t context, char error[TEXT_ERROR_BYTES])
{
    *text = (struct text){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        snprintf(error, TEXT_ERROR_BYTES, "cannot open the text %s: %s", path, strerror(errno));
        return false;
    }
    bool good = load_open_file(fd, text, path, context, error);
    close(fd);
    if (!good) {
        text_finish(text);
    }
    return good;
}

void text_finish(struct text *text)
{
    free(text->bytes);
    *text = (struct text){0};
}

bool text_batch_init(struct text_batch *batch, size_t rows, size_t context)
{
    *batch = (struct text_batch){.rows = rows, .context = context};
    batch->tokens = calloc(rows, context);
    batch->targets = calloc(rows, context);
    if (batch->tokens == NULL || batch->targets == NULL) {
        text_batch_finish(batch);
        return false;
    }
    return true;
}

void text_batch_finish(struct text_batch *batch)
{
    free(batch->tokens);
    free(batch->targets);
    *batch = (struct text_batch){0};
}

void text_draw_training(const struct text *text, struct rng *rng, struct text_batch *batch)
{
    draw(text->bytes, text->length - text->length / HELD_OUT_FRACTION, rng, batch);
}

void text_draw_held_out(const struct text *text, struct rng *rng, struct text_batch *batch)
{
    size_t held = text->length / HELD_OUT_FRACTION;
    draw(text->bytes + (text->length - held), held, rng, batch);
}

/*
 * A text as bytes, and training batches from it. A byte is a token. The last tenth of the text is
 * held out: training batches come from the rest, evaluation batches from it alone.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rng.h"

enum {
    TEXT_ERROR_BYTES = 512,
    TEXT_CONTEXT = 128, /* tokens in a row of the trainer's batches */
};

struct text {
    uint8_t *bytes; /* owned */
    size_t length;
};

/* rows x context tokens, and for each the one that follows it. */
struct text_batch {
    uint8_t *tokens;  /* owned */
    uint8_t *targets; /* owned */
    size_t rows;
    size_t context;
};

/* Reads a regular file that is long enough for rows of `context` tokens. On failure returns false
 * with a sentence in error, and *text holds nothing. */
bool text_load(struct text *text, const char *path, size_t context, char error[TEXT_ERROR_BYTES]);
void text_finish(struct text *text);

/* false: no memory */
bool text_batch_init(struct text_batch *batch, size_t rows, size_t context);
void text_batch_finish(struct text_batch *batch);

/* Fills the batch with rows from random places. */
void text_draw_training(const struct text *text, struct rng *rng, struct text_batch *batch);
void text_draw_held_out(const struct text *text, struct rng *rng, struct text_batch *batch);

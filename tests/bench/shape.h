/*
 * What one benchmark computes, in words: "b=2,hq=8,hkv=2,sq=1024,d=64,causal,bias=1xhx1xk".
 *
 * Parses, describes and counts; makes no tensors. Stateless; any thread.
 */
#pragma once

#include "attn.h"

#define SHAPE_MAX_SEQUENCES 256
#define SHAPE_TEXT_BYTES 4096

/* Lengths of a packed side: one number a sequence, of `count` sequences; 0: the side is dense. */
struct shape_lengths {
    int count;
    int32_t rows[SHAPE_MAX_SEQUENCES];
};

struct shape {
    enum attn_dtype dtype; /* 0: not said */
    int64_t batch;
    int64_t heads_q;
    int64_t heads_kv;
    int64_t seqlen_q;
    int64_t seqlen_k;
    int64_t head_dim_qk;
    int64_t head_dim_v;
    int64_t window_left;
    int64_t window_right;
    enum attn_alignment alignment;
    double softcap;
    double dropout;
    bool bias;
    bool bias_broadcast[4];     /* batch, head, query, key */
    enum attn_dtype bias_dtype; /* 0: the shape's */
    bool alibi;
    bool sinks;
    bool dlse;
    bool constant; /* no gradients of bias, slopes and sinks */
    bool deterministic;
    struct shape_lengths varlen_q;
    struct shape_lengths varlen_k;
    struct shape_lengths short_k; /* seqlens_k */

    bool protocol; /* counts FLOPs as the FlashAttention protocol does, else exactly */
};

/* What shape_parse() understands, a line a key. */
const char *shape_help(void);

/* false: text is no shape; message is a sentence that names the key at fault. */
bool shape_parse(struct shape *shape, const char *text, char message[SHAPE_TEXT_BYTES]);

/* Writes a text that shape_parse() reads as the same shape, its dtype left out. */
void shape_describe(const struct shape *shape, char text[SHAPE_TEXT_BYTES]);

/* Case number index of the FlashAttention protocol with so many tokens; false: there are fewer. */
bool shape_protocol(struct shape *shape, int64_t tokens, int index);

/* 0 if text is no dtype. */
enum attn_dtype shape_dtype(const char *text);
const char *shape_dtype_name(enum attn_dtype dtype);

/* Rows of sequence b on either side, and the packed row at which it starts (0: dense). */
int64_t shape_rows_q(const struct shape *shape, int64_t b);
int64_t shape_rows_k(const struct shape *shape, int64_t b);
int64_t shape_start_q(const struct shape *shape, int64_t b);
int64_t shape_start_k(const struct shape *shape, int64_t b);

/* The problem without its tensors and lengths. */
struct attn_problem shape_problem(const struct shape *shape);

double shape_flops(const struct shape *shape, enum attn_direction direction);

/* Bytes of all scores, stored once in the shape's dtype. */
double shape_score_bytes(const struct shape *shape);

/*
 * The kernels' C interface: exact attention, forward and backward, over an array of problems.
 *
 * A caller asks a kernel family three things: can you do this problem, how much scratch memory does
 * it take, run these. A family (cpu, later sm80, sm90) is a row of a table; callers never name one
 * in code. Nothing behind this header allocates, logs, starts threads, waits for a device or keeps
 * mutable global state: memory and processors come from the caller. Every function may be called
 * from any thread.
 *
 * What a problem means, for every family (b batch, h head, i query, j key; i and j count from the
 * start of their own sequence; arithmetic in fp32 or better):
 *
 *   s   = scale * q_i . k_j, the kv head being h / (heads_q / heads_kv)
 *   s   = softcap * tanh(s / softcap)                                 if softcap > 0
 *   s  += bias[b,h,i,j];  s += -slope[b,h] * |i + off - j|            if given
 *   key j is visible to query i iff  j <= i + off + window_right  and  j >= i + off - window_left,
 *       off = 0 (top-left) or seqlen_k - seqlen_q (bottom-right), each side only if not ATTN_UNBOUNDED
 *   lse = ln(sum over visible j of e^s [+ e^sink[h]])                 natural logarithm, fp32
 *   p   = e^(s - lse), dropped and rescaled if dropout_threshold > 0
 *   out = sum over j of p * v_j
 *
 *   delta = rowsum(dout * out) - dlse;  ds = p * (drop(dout . v_j) - delta)
 *   dq = scale * ds k, dk = scale * ds^T q, dv = drop(p)^T dout (softcap's derivative applied)
 *   dbias = ds summed over the dimensions that bias broadcasts; dslope = -sum of ds * |i + off - j|;
 *   dsink = -sum of e^(sink - lse) * delta, also of queries that see no key
 *
 * drop() keeps what device/philox.h keeps, scaled by 65536 / (65536 - dropout_threshold).
 *
 * A query that sees no key, or whose scores are all -inf, has out = 0, gradients 0 and lse = -inf
 * (or the sink): never NaN.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum attn_dtype {
    ATTN_FP16 = 1,
    ATTN_BF16 = 2,
    ATTN_FP32 = 3,
};

enum attn_direction {
    ATTN_FORWARD = 1,
    ATTN_BACKWARD = 2,
};

enum attn_alignment {
    ATTN_TOP_LEFT = 1,     /* the diagonal starts at (0, 0) */
    ATTN_BOTTOM_RIGHT = 2, /* the diagonal ends at (seqlen_q - 1, seqlen_k - 1) */
};

enum attn_device {
    ATTN_DEVICE_CPU = 1,
    ATTN_DEVICE_CUDA = 2,
};

#define ATTN_MAX_HEAD_DIM 256
#define ATTN_MAX_SOFTCAP 1e30F /* more would overflow what is computed with it */
#define ATTN_UNBOUNDED INT64_C(-1)

/*
 * A tensor of up to four dimensions; strides count elements and may be any number, also 0 or
 * negative for inputs. The head_dim dimension of q, k, v, out and their gradients has stride 1.
 * Absent optional tensors have data == NULL. Element (b, row, h, c) lies at
 * data + batch_stride * b + row_stride * row + head_stride * h + column_stride * c.
 */
struct attn_view {
    void *data;
    int64_t batch_stride;
    int64_t row_stride; /* along the sequence (bias: query i) */
    int64_t head_stride;
    int64_t column_stride; /* along head_dim (bias: key j; slopes, sinks, lse: unused) */
};

/*
 * Sequence lengths, in memory of the family's device. Others may write it at any time: a family reads
 * it once, in the first tiles of a problem, and clamps what it finds, so that any numbers there are
 * safe. A side with cu_seqlens is packed: the sequences of its tensors follow one another along the
 * rows, batch_stride is unused, and seqlen_q or seqlen_k of the problem is the length to which
 * sequences are cut. Sequence b of a packed side begins at cu_seqlens[b], but not before the end of
 * the one before it, and ends at cu_seqlens[b + 1], but neither before its begin nor beyond the rows.
 * Rows that belong to no sequence are padding: outputs are 0 there and lse -inf, inputs do not matter.
 */
struct attn_lengths {
    const int32_t *cu_seqlens_q; /* batch + 1 row offsets; NULL: seqlen_q rows each */
    const int32_t *cu_seqlens_k; /* the same for keys; one side alone may be packed */
    const int32_t *seqlens_k; /* batch key lengths that shorten those of either kind; NULL: none */
    int64_t total_q;          /* rows of the packed tensors */
    int64_t total_k;
};

/*
 * One forward or backward call. Everything an answer depends on; a family that does not do one of
 * the fields says so through attn_unsupported() and is then never launched with it.
 */
struct attn_problem {
    enum attn_dtype dtype; /* of q, k, v, out and their gradients */
    int32_t batch;
    int32_t heads_q; /* a multiple of heads_kv */
    int32_t heads_kv;
    int32_t head_dim_qk; /* 1 .. ATTN_MAX_HEAD_DIM */
    int32_t head_dim_v;
    int64_t seqlen_q; /* packed: no sequence counts as longer; 0 is a length like any other */
    int64_t seqlen_k;

    float scale;
    float softcap;        /* 0: none; at most ATTN_MAX_SOFTCAP */
    int64_t window_left;  /* keys left of the diagonal, ATTN_UNBOUNDED: all */
    int64_t window_right; /* keys right of it; 0 is causal */
    enum attn_alignment alignment;
    bool deterministic; /* backward: the same bits every time (the cpu family always is) */

    uint32_t dropout_threshold; /* round(65536 * p), 0: none; 65536 is not valid */
    uint32_t dropout_offset;
    uint64_t dropout_seed;

    struct attn_lengths lengths;

    struct attn_view q;   /* (batch, seqlen_q, heads_q, head_dim_qk) */
    struct attn_view k;   /* (batch, seqlen_k, heads_kv, head_dim_qk) */
    struct attn_view v;   /* (batch, seqlen_k, heads_kv, head_dim_v) */
    struct attn_view out; /* (batch, seqlen_q, heads_q, head_dim_v); backward: input */
    struct attn_view
        lse; /* fp32 (batch, heads_q, seqlen_q), row_stride any; forward: optional output */
    struct attn_view
        bias; /* (batch or 1, heads_q or 1, seqlen_q or 1, seqlen_k or 1): stride 0 where 1; along the
                 keys else 1, or 0 as well */
    enum attn_dtype bias_dtype; /* dtype or ATTN_FP32 */
    struct attn_view slopes;    /* fp32 (batch or 1, heads_q) */
    struct attn_view sinks;     /* fp32 (heads_q) */

    struct attn_view dout; /* backward inputs */
    struct attn_view dlse; /* fp32, optional */
    struct attn_view dq;   /* backward outputs; every element is written */
    struct attn_view dk;
    struct attn_view dv;
    struct attn_view
        dbias; /* optional, the extents of bias: a dimension of extent 1 is summed over */
    struct attn_view dslopes; /* optional, fp32; batch_stride 0: one for all batches, a sum */
    struct attn_view dsinks;  /* optional, fp32 */
    bool bias_broadcast[4]; /* which of bias's dimensions (batch, head, query, key) have extent 1 */
};

struct attn_family; /* opaque; lives for ever */

size_t attn_family_count(void);
const struct attn_family *attn_family_at(
    size_t index); /* fastest first among those of one device */
const struct attn_family *attn_family_find(
    const char *name); /* NULL: no such family in this build */
const char *attn_family_name(const struct attn_family *family);
enum attn_device attn_family_device(const struct attn_family *family);
/* What a CUDA device needs at least: 10 * major + minor of its compute capability; 0: a processor. */
int attn_family_capability(const struct attn_family *family);

/* Makes the family's kernels ready on the current CUDA device: once in a process before the first
 * launch there. 0, or the device runtime's error number. Processors need nothing. */
int attn_prepare(const struct attn_family *family);

/*
 * NULL if the family computes the problem, else a sentence that says what it does not do, in static
 * memory. Looks at everything but the addresses: data pointers only say whether a tensor is there,
 * so that a plan can be judged before its tensors exist.
 */
const char *attn_unsupported(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem);

/*
 * Scratch of one problem, in bytes, at least 1, linear in the sequence length. Contents are undefined
 * before the first slice and must stay untouched until the last slice has ended.
 */
size_t attn_workspace_bytes(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem);

/*
 * The work of a problem is a sequence of tiles, at least one. Tiles run in order of their number as
 * far as one needs another's result; a launch may hold any range of them, so that a large problem
 * can be spread over several launches. The bits of the result do not depend on the cuts.
 */
uint64_t attn_tile_count(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem);

/* Floating point operations of a problem: 4 (forward) or 10 (backward) per visible score and head
 * dim (mean of the two head dims), the measure by which the field states rates. With lengths an upper
 * estimate: as many sequences of the longest length as there are, or as the packed rows allow. */
double attn_flops(enum attn_direction direction, const struct attn_problem *problem);

/* Problems of one direction with equal keys may share a launch. */
uint32_t attn_group_key(const struct attn_family *family, enum attn_direction direction,
    const struct attn_problem *problem);

/* Tiles [begin, end) of a problem. Slices of one problem are launched in order, never two at once. */
struct attn_slice {
    const struct attn_problem *problem;
    void *
        workspace; /* attn_workspace_bytes(), 64-byte aligned, the same for all slices of a problem */
    uint64_t begin;
    uint64_t end;
};

/* Called for each item once, worker in [0, workers); items run at once on different workers. */
typedef void (*attn_work_fn)(void *context, uint64_t item, unsigned worker);

/* The caller's processors, for families of ATTN_DEVICE_CPU. */
struct attn_executor {
    unsigned workers;
    void *const *scratch; /* one area of attn_scratch_bytes() per worker, 64-byte aligned */
    /* Runs items 0 .. items-1 and returns when all have ended. */
    void (*run)(
        const struct attn_executor *executor, uint64_t items, attn_work_fn work, void *context);
};

size_t attn_scratch_bytes(const struct attn_family *family); /* per worker */

struct attn_target {
    const struct attn_executor
        *executor; /* cpu families: the launch has ended when attn_launch returns */
    void *stream;  /* cuda families: a CUstream, the launch is only enqueued */
};

/*
 * Runs a group. Each problem must be supported; slices of one launch belong to different problems.
 * Outputs of different problems and all inputs must not overlap outputs. Returns 0, or the device
 * runtime's error number. No result depends on what else is in the group or on the number of workers.
 */
int attn_launch(const struct attn_family *family, enum attn_direction direction,
    const struct attn_slice *slices, size_t count, const struct attn_target *target);

#ifdef __cplusplus
}
#endif

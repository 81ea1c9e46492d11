/*
 * libattnd: exact attention, forward and backward, computed by the attnd daemon of this node.
 *
 * A trainer opens a client, passes tensors where they are, and waits for tickets:
 *
 *     struct attnd *client;
 *     attnd_open(NULL, &client);
 *     attnd_forward(client, NULL, &q, &k, &v, &out, &lse, &options, &ticket);
 *     attnd_wait(client, ticket, ATTND_FOREVER);
 *
 * With tensors on a GPU nobody needs to wait: the call takes its place in a CUDA stream, behind the
 * kernels that make its inputs and before those that read its outputs.
 *
 * Errors. Every function that can fail returns an enum attnd_status; attnd_message() then gives a
 * sentence about this thread's last failure, naming the argument at fault. The library never prints,
 * never ends the process, and after attnd_close() leaves no thread, descriptor or mapping behind.
 *
 * Threads. Any function may be called from any thread on the same client, except that nothing may
 * run beside attnd_close(). After fork() the child may only close the client that it inherited;
 * every other call there returns ATTND_FORKED.
 *
 * Memory. Tensors belong to the caller. From the submission until the ticket has ended, or the stream
 * has come past it, they must stay allocated, inputs unchanged and outputs unread. Descriptions
 * (DLTensor, options, requests) are read during the call only.
 *
 * CUDA. The library uses the driver that the program has loaded (libcuda.so.1, 12.0 or newer), and loads
 * none. Tensors of a GPU need a daemon of that GPU.
 *
 * Versions. Structs begin with their own size. A program built with an older header leaves newer
 * members at their defaults; one built with a newer header may use an older library as long as the
 * members that it does not know are zero (else ATTND_UNSUPPORTED).
 *
 * The daemon's end. A client whose daemon has gone stays so: every call but attnd_close(), attnd_free()
 * and attnd_wait() for what had ended returns ATTND_DISCONNECTED, within a second or two. CUDA streams
 * that wait for the daemon then go on; the outputs of what had not ended are undefined, which
 * attnd_wait() tells. Any call that asks the daemon returns ATTND_TIMED_OUT if it does not answer within
 * the client's timeout_ns.
 */
#ifndef ATTND_H
#define ATTND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <dlpack/dlpack.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ATTND_API __attribute__((visibility("default")))
#define ATTND_MUST_CHECK __attribute__((warn_unused_result))
#else
#define ATTND_API
#define ATTND_MUST_CHECK
#endif

#define ATTND_VERSION "0.1.0"

enum attnd_status {
    ATTND_OK = 0,
    ATTND_INVALID_ARGUMENT =
        1, /* the call makes no sense as it stands; the sentence names the argument */
    ATTND_UNSUPPORTED = 2,        /* it makes sense, but the daemon's kernels do not do it */
    ATTND_UNSUPPORTED_MEMORY = 3, /* the tensor's memory cannot be shared with the daemon */
    ATTND_RESOURCE_EXHAUSTED =
        4,           /* over a limit of the daemon or the machine; the sentence has numbers */
    ATTND_AGAIN = 5, /* not now; the same call may work later */
    ATTND_NOT_FOUND = 6,
    ATTND_PERMISSION_DENIED = 7,
    ATTND_VERSION_MISMATCH = 8,
    ATTND_DRAINING = 9,   /* the daemon is shutting down and takes no new requests */
    ATTND_TIMED_OUT = 10, /* the time is over; the ticket stays valid */
    ATTND_CANCELLED = 11,
    ATTND_DISCONNECTED = 12, /* no daemon there, or it has gone; open a new client */
    ATTND_FORKED = 13,       /* the client belongs to the parent process */
    ATTND_PROTOCOL_ERROR = 14,
    ATTND_DEVICE_FAULT = 15,
    ATTND_INTERNAL = 16,
    ATTND_LANE_POISONED = 17, /* an earlier request of the stream failed; attnd_lane_reset() */
};

/* "INVALID_ARGUMENT" and so on; "?" for what is no status. Static memory. */
ATTND_API const char *attnd_status_name(enum attnd_status status);

/* A sentence about the last call of this thread that did not return ATTND_OK; "" if none failed yet.
 * Valid until the thread's next call of this library. */
ATTND_API const char *attnd_message(void);

/* ---- Client -------------------------------------------------------------------------------- */

struct attnd; /* one connection to one daemon */

struct attnd_open_options {
    size_t size;         /* sizeof(struct attnd_open_options) */
    const char *address; /* the daemon's directory; NULL: see attnd_open() */
    const char *name;    /* shown to operators, at most 63 bytes; NULL: the program's name */
    int64_t timeout_ns;  /* for connecting and for each later exchange with the daemon; 0: 5 s */
};

/* Connects to the daemon. options may be NULL. On success the caller owns *client.
 * Where no address is given it is $ATTND_ADDRESS; without that, if a CUDA context is current, the daemon
 * in one of /run/attnd/'s directories whose GPU is that context's, by its UUID; else /run/attnd/cpu.
 * ATTND_DISCONNECTED: nobody answers there; ATTND_PERMISSION_DENIED; ATTND_VERSION_MISMATCH;
 * ATTND_RESOURCE_EXHAUSTED: the daemon has as many clients as it may, or the process no descriptors
 * left; ATTND_UNSUPPORTED: the daemon's device shares no memory with this library; ATTND_DRAINING. */
ATTND_API enum attnd_status attnd_open(
    const struct attnd_open_options *options, struct attnd **client) ATTND_MUST_CHECK;

/* Waits for all submitted requests, then ends the connection and releases everything, also memory
 * from attnd_alloc(). Accepts NULL. In a child of fork() it waits for nothing and leaves the parent's
 * connection alone; descriptors of the message socket then stay open until exec or exit. If the daemon
 * has gone it waits timeout_ns at most for CUDA streams to come past their waits; for the device of those
 * that do not, two small mappings stay behind. */
ATTND_API void attnd_close(struct attnd *client);

/* ---- Memory -------------------------------------------------------------------------------- */

/* Zeroed host memory that the daemon reads and writes in place, aligned to a page. One piece may hold
 * many tensors; a client may have some hundreds of pieces, so put many into one. Tensors in any other
 * host memory are copied in and out, which makes their call block until it has ended, all but lengths.
 * bytes may be 0. ATTND_RESOURCE_EXHAUSTED: over the daemon's limits or the machine's memory. A piece
 * whose call timed out may count in the daemon until the client's next attnd_alloc() or attnd_free(). */
ATTND_API enum attnd_status attnd_alloc(
    struct attnd *client, size_t bytes, void **memory) ATTND_MUST_CHECK;

/* Gives memory from attnd_alloc() back; waits for requests of this client that use it. Accepts NULL. */
ATTND_API void attnd_free(struct attnd *client, void *memory);

/*
 * Device memory needs no call: the library registers the allocation that a tensor lies in when it first
 * meets it, for all tensors there. Tensors may lie anywhere in
 *     memory from cudaMalloc(), also as divided by PyTorch's and other allocators, and
 *     memory of the virtual memory API (cuMemMap(); PyTorch's expandable_segments) that was created with
 *     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR. A tensor may span its pieces.
 * Other memory cannot be shared with another process: ATTND_UNSUPPORTED_MEMORY names it (pools of
 * cudaMallocAsync(), managed memory, memory of the virtual memory API that cannot be exported).
 *
 * What the daemon has mapped is not free, even if the program has freed it. The library looks for freed
 * memory ten times a second, and at every use, and has the daemon unmap it. Who cannot wait for that,
 * having got no memory from CUDA, calls attnd_trim() and tries again.
 */

/* Has all device memory unmapped that no unfinished request uses, and returns when it is, at most after
 * timeout_ns: ATTND_TIMED_OUT. It is registered again when a tensor in it is used. */
ATTND_API enum attnd_status attnd_trim(struct attnd *client, int64_t timeout_ns) ATTND_MUST_CHECK;

/* ---- Requests ------------------------------------------------------------------------------ */

enum attnd_direction {
    ATTND_FORWARD = 1,
    ATTND_BACKWARD = 2,
};

enum attnd_alignment {
    ATTND_BOTTOM_RIGHT = 0, /* off = seqlen_k - seqlen_q: the last query sees the last key */
    ATTND_TOP_LEFT = 1,     /* off = 0: the first query sees the first key */
};

#define ATTND_UNBOUNDED INT64_C(-1)

/*
 * How scores are made, and where sequences lie. Start from ATTND_OPTIONS_INIT. For batch b, head h,
 * query i and key j, both counted from the start of their sequence, in float32 or better:
 *
 *     s   = scale * q_i . k_j              of kv head h / (heads_q / heads_kv)
 *     s   = softcap * tanh(s / softcap)    if softcap is not 0
 *     s  += bias[b, h, i, j]               if given
 *     s  -= slopes[b, h] * |i + off - j|   if given (ALiBi)
 *     key j is visible to query i iff i + off - window_left <= j <= i + off + window_right
 *     lse = ln(sum of e^s over visible j, with e^sinks[h] as one more summand if given)
 *     p   = e^(s - lse), then dropout
 *     out = sum of p * v_j over visible j
 *
 * lse is the natural logarithm. A query that sees no key, or only scores of -inf, has out 0, gradients
 * 0, and lse -inf (or the sink). The gradients are those of out and lse. That of bias is ds, the
 * gradient of s behind the softcap, summed over the dimensions in which bias has extent 1; that of
 * slopes the sum of -ds * |i + off - j| over what a slope is for; that of sinks the sum of
 * -e^(sinks[h] - lse) * (dout . out - dlse) over all queries. Lengths have none. A NaN or an infinity in
 * a key or value that only the mask hides may reach queries near those that see it, and one in a query
 * that sees no key, or in dout there, gradients of keys near it: 0 times it is NaN.
 *
 * Dropout. Each p is kept or becomes 0; p kept is multiplied by 65536 / (65536 - t), where
 * t = round(65536 * dropout_p). The backward wants the forward's dropout_p, seed and offset. p of
 * (b, h, i, j) is kept iff t is at most bits 16 n to 16 n + 15 of the 128 bits, first word lowest,
 * that Philox4x32-10 makes of
 *     the key      (seed mod 2^32, seed / 2^32) and
 *     the counter  ((i >> 4) * 8 + (i & 7), (j >> 4) * 4 + ((j & 7) >> 1), b * heads_q + h, offset),
 *     with n =     4 * ((i >> 3) & 1) + 2 * ((j >> 3) & 1) + (j & 1).
 *
 * Lengths. With cu_seqlens_q the queries of all sequences lie one behind the other in packed tensors
 * without a batch dimension: sequence b in rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] - 1. Likewise
 * keys and values with cu_seqlens_k; one side may be packed and the other not. seqlens_k[b] shortens
 * sequence b's keys to its first seqlens_k[b], on a packed side or not. Rows that belong to no
 * sequence, between, before or behind them, are padding: no input's value there matters, not even a
 * NaN, and every output there is 0 (lse: -inf). Elements of dbias beyond a sequence's lengths are 0.
 *
 * Lengths lie in host memory or, if the other tensors do, on the GPU. In memory from attnd_alloc() and on
 * the GPU they are read while the request runs, like any tensor, and what is out of order or out of range
 * is cut to what is left of the rows. In any other memory the call reads them before it returns, without
 * waiting for the request, and refuses what would be cut.
 */
struct attnd_options {
    size_t size;                    /* sizeof(struct attnd_options) */
    float scale;                    /* 0: 1 / sqrt(head_dim of q) */
    float softcap;                  /* 0: none; not below 0, at most 1e30 */
    bool causal;                    /* window_right = 0, whatever window_right says */
    bool deterministic;             /* the backward gives the same bits each time */
    enum attnd_alignment alignment; /* means something only with causal, a window or slopes */
    int64_t window_left;     /* keys before the query's own that it sees; ATTND_UNBOUNDED: all */
    int64_t window_right;    /* keys after it */
    float dropout_p;         /* at least 0, below 1; 0 (or t = 0): none */
    uint32_t dropout_offset; /* another one, another mask */
    uint64_t dropout_seed;
    int64_t max_seqlen_q; /* the longest sequence of a packed side; 0: its number of rows. A good */
    int64_t max_seqlen_k; /* one saves time and memory; longer sequences are refused or cut */

    /* Inputs like those of a request, each may be NULL. */
    /* q's dtype or float32 (batch, heads_q, seqlen_q, seqlen_k), each extent that or 1; the last stride
     * 1. The seqlen of a packed side is its max_seqlen. */
    const DLTensor *bias;
    const DLTensor *slopes;       /* float32 (batch or 1, heads_q) */
    const DLTensor *sinks;        /* float32 (heads_q), stride 1 */
    const DLTensor *cu_seqlens_q; /* int32 (batch + 1), not decreasing, at most total_q; stride 1 */
    const DLTensor *cu_seqlens_k; /* int32 (batch + 1), not decreasing, at most total_k; stride 1 */
    const DLTensor *seqlens_k;    /* int32 (batch), not below 0; stride 1 */
};

#define ATTND_OPTIONS_INIT                                                                         \
    {                                                                                              \
        sizeof(struct attnd_options), 0.0F, 0.0F, false, false, ATTND_BOTTOM_RIGHT,                \
            ATTND_UNBOUNDED, ATTND_UNBOUNDED, 0.0F, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL \
    }

/*
 * One forward or backward call. Shapes, with any strides whose last is 1 (strides NULL: compact):
 *
 *                dense                                    packed (cu_seqlens_q; cu_seqlens_k)
 *     q, dq      (batch, seqlen_q, heads_q, head_dim)     (total_q, heads_q, head_dim)
 *     out, dout  (batch, seqlen_q, heads_q, head_dim_v)   (total_q, heads_q, head_dim_v)
 *     lse, dlse  (batch, heads_q, seqlen_q), float32      (heads_q, total_q), float32
 *     k, dk      (batch, seqlen_k, heads_kv, head_dim)    (total_k, heads_kv, head_dim)
 *     v, dv      (batch, seqlen_k, heads_kv, head_dim_v)  (total_k, heads_kv, head_dim_v)
 *     dbias, dslopes, dsinks: as bias, slopes and sinks of the options
 *
 * heads_kv divides heads_q. head_dim and head_dim_v are from 1 to 256; any other extent may be 0. All
 * are of one dtype, except where another is given: float16, bfloat16 or, if the daemon computes on the
 * CPU, float32. lse and slopes may have any last stride. Strides of extents 0 and 1 mean nothing; stride
 * 0 and negative strides are for inputs only. The parts of a packed qkv are three tensors with its
 * strides.
 *
 * No output may overlap another tensor of the call, unless both have equal strides and take disjoint
 * parts, as dq, dk and dv of one packed tensor do.
 *
 * All tensors of a submission but lengths lie on one side: in host memory (kDLCPU, kDLCUDAHost), or on
 * the daemon's GPU (kDLCUDA; device_id is CUDA's number of it in this process). A daemon on a GPU takes
 * both, one on the CPU host memory alone.
 */
struct attnd_request {
    size_t size; /* sizeof(struct attnd_request) */
    enum attnd_direction direction;
    const struct attnd_options *options; /* NULL: ATTND_OPTIONS_INIT */
    const DLTensor *q;                   /* in */
    const DLTensor *k;                   /* in */
    const DLTensor *v;                   /* in */
    const DLTensor *out;                 /* forward: out; backward: in, as the forward made it */
    const DLTensor *lse;                 /* forward: out, may be NULL; backward: in, likewise */
    const DLTensor *dout;                /* backward: in, the gradient of out */
    const DLTensor *dlse;                /* backward: in, the gradient of lse, may be NULL */
    const DLTensor *dq;                  /* backward: out; every element is written */
    const DLTensor *dk;                  /* backward: out */
    const DLTensor *dv;                  /* backward: out */
    const DLTensor *dbias;               /* backward: out, may be NULL, as must be without bias */
    const DLTensor *dslopes;             /* backward: out, likewise */
    const DLTensor *dsinks;              /* backward: out, likewise */
};

/* Names one submission of a client: never 0, never reused within a client's life. */
typedef uint64_t attnd_ticket;

/*
 * Submits `count` (1 to 32) requests that are independent of each other; the daemon may run them in
 * any order and together. Either all are accepted, or none and nothing happens. What can be found
 * wrong with a request is found here: ATTND_INVALID_ARGUMENT, ATTND_UNSUPPORTED or
 * ATTND_RESOURCE_EXHAUSTED with a sentence that names the argument ("requests[3].k->shape[2] ...").
 *
 * `stream` names an ordered sequence of this client: a submission starts after all earlier ones with
 * the same stream have ended, so that it may read what they wrote. Different streams do not wait for
 * each other. At most 31 streams can have unfinished requests at a time; a stream holds at most 64 of
 * them. Past these and the daemon's own limit of requests in flight the call blocks until there is
 * room; a call that has waited for a tenth of a second is not overtaken by later ones any more.
 *
 * Host tensors: `stream` is any pointer value, NULL being a stream like any other. A submission with
 * tensors other than lengths outside of attnd_alloc() memory returns when it has ended; how it ended is
 * what attnd_wait() then says at once.
 *
 * Tensors on the GPU: `stream` is a CUstream or cudaStream_t, NULL the legacy default stream (who compiles
 * for per-thread ones passes cudaStreamPerThread). The submission starts when the stream has done what it
 * was given before, and what it is given afterwards starts when the submission has ended. The call never
 * waits for the device, except for room as above: a stream that waits for something else may fill the
 * daemon's limit, and the client's other streams then block as well. It does wait for the daemon where a
 * shape or an allocation is new. All streams of a client are of one CUDA context. One that is being
 * captured is refused before anything happens (ATTND_UNSUPPORTED), and its capture goes on.
 *     A failure poisons the stream, for what comes after it would compute with outputs that nobody wrote:
 * submissions of the stream that are under way end with ATTND_LANE_POISONED, later ones are refused with
 * it and the sentence of the first failure, until attnd_lane_reset(). The program's own kernels in the
 * stream go on and see undefined outputs. A poisoned stream stays one of the 31; reset it before it is
 * destroyed.
 *     A stream that waits for the daemon takes one of the process's hardware channels. With more than 7
 * waiting at a time (3 under MPS) none of its other streams runs; CUDA_DEVICE_MAX_CONNECTIONS in the
 * environment, up to 32, is how many channels there are. Set it where more than a few streams use the
 * daemon; under MPS to no more than they need, for its processes share about 120 (deploy/MPS.md).
 *     A fault of the program's own kernels ends its CUDA context. The call then returns ATTND_DEVICE_FAULT,
 * as does attnd_wait() for requests whose inputs were not ready before.
 *
 * ticket may be NULL if nobody will wait for it alone; written only on success.
 */
ATTND_API enum attnd_status attnd_submit(struct attnd *client, void *stream,
    const struct attnd_request *requests, size_t count, attnd_ticket *ticket) ATTND_MUST_CHECK;

/* attnd_submit() of one forward request. lse and options may be NULL. */
ATTND_API enum attnd_status attnd_forward(struct attnd *client, void *stream, const DLTensor *q,
    const DLTensor *k, const DLTensor *v, const DLTensor *out, const DLTensor *lse,
    const struct attnd_options *options, attnd_ticket *ticket) ATTND_MUST_CHECK;

struct attnd_gradients {
    size_t size;             /* sizeof(struct attnd_gradients) */
    const DLTensor *dout;    /* in */
    const DLTensor *dlse;    /* in, may be NULL */
    const DLTensor *dq;      /* out */
    const DLTensor *dk;      /* out */
    const DLTensor *dv;      /* out */
    const DLTensor *dbias;   /* out, may be NULL, as must be without bias */
    const DLTensor *dslopes; /* out, likewise */
    const DLTensor *dsinks;  /* out, likewise */
};

/* attnd_submit() of one backward request. out and lse as the forward made them. */
ATTND_API enum attnd_status attnd_backward(struct attnd *client, void *stream, const DLTensor *q,
    const DLTensor *k, const DLTensor *v, const DLTensor *out, const DLTensor *lse,
    const struct attnd_gradients *gradients, const struct attnd_options *options,
    attnd_ticket *ticket) ATTND_MUST_CHECK;

/*
 * The same for k and v, or q, k and v, in one tensor, with any strides whose last is 1:
 *     kv, dkv    (batch, seqlen_k, 2, heads_kv, head_dim), packed (total_k, 2, heads_kv, head_dim)
 *     qkv, dqkv  (batch, seqlen, 3, heads, head_dim),      packed (total, 3, heads, head_dim)
 * Sentences call the parts q, k, v, dq, dk and dv. The gradients in dkv or dqkv must be NULL in
 * *gradients. With cu_seqlens_q alone, qkv's keys have these lengths too, and its max_seqlen.
 */
ATTND_API enum attnd_status attnd_forward_kvpacked(struct attnd *client, void *stream,
    const DLTensor *q, const DLTensor *kv, const DLTensor *out, const DLTensor *lse,
    const struct attnd_options *options, attnd_ticket *ticket) ATTND_MUST_CHECK;
ATTND_API enum attnd_status attnd_forward_qkvpacked(struct attnd *client, void *stream,
    const DLTensor *qkv, const DLTensor *out, const DLTensor *lse,
    const struct attnd_options *options, attnd_ticket *ticket) ATTND_MUST_CHECK;
ATTND_API enum attnd_status attnd_backward_kvpacked(struct attnd *client, void *stream,
    const DLTensor *q, const DLTensor *kv, const DLTensor *out, const DLTensor *lse,
    const DLTensor *dkv, const struct attnd_gradients *gradients,
    const struct attnd_options *options, attnd_ticket *ticket) ATTND_MUST_CHECK;
ATTND_API enum attnd_status attnd_backward_qkvpacked(struct attnd *client, void *stream,
    const DLTensor *qkv, const DLTensor *out, const DLTensor *lse, const DLTensor *dqkv,
    const struct attnd_gradients *gradients, const struct attnd_options *options,
    attnd_ticket *ticket) ATTND_MUST_CHECK;

#define ATTND_FOREVER INT64_C(-1)

/*
 * Waits until the submission, on a CUDA stream or not, has ended and its outputs are complete, at most
 * timeout_ns (0: only looks). Returns its status: ATTND_OK, or why the first of its requests that failed
 * did so (the outputs of those that failed are then undefined). ATTND_TIMED_OUT leaves the ticket valid.
 * The answer to a ticket stays the same however often it is asked, as long as it is one of the last 64 of
 * its stream or did not fail; of failures the last 256 are remembered. The daemon's sentence comes a
 * moment behind the status: a call whose time is over by then only says that the request failed.
 */
ATTND_API enum attnd_status attnd_wait(
    struct attnd *client, attnd_ticket ticket, int64_t timeout_ns) ATTND_MUST_CHECK;

/* Lets a CUDA stream go on behind a failure: what was submitted before may still fail for it, what is
 * submitted from now on is not refused for it any more. For other streams it does nothing. */
ATTND_API enum attnd_status attnd_lane_reset(struct attnd *client, void *stream) ATTND_MUST_CHECK;

/* ---- Statistics ---------------------------------------------------------------------------- */

struct attnd_counters {
    uint64_t requests; /* ended, with any status */
    uint64_t failed;   /* of these, with a status other than ATTND_OK */
    uint64_t groups;   /* groups of requests run together that held at least one of these */
    uint64_t
        group_members; /* over all requests, the size of the group each ran in; / requests: mean */
    uint64_t regions;  /* pieces of memory that the daemon has mapped, now */
    uint64_t region_bytes; /* their size, now */
    uint64_t plans;        /* registered shapes, now */
    uint64_t in_flight;    /* accepted and not ended, now */
};

struct attnd_stats {
    size_t size;                  /* sizeof(struct attnd_stats), set by the caller */
    struct attnd_counters client; /* of this client */
    struct attnd_counters daemon; /* of all clients since the daemon's start */
    uint64_t clients;             /* connected now */
    uint64_t uptime_ns;
    char daemon_version[64];
};

/* Asks the daemon; stats->size must be set. Requests that attnd_wait() saw end are counted. */
ATTND_API enum attnd_status attnd_get_stats(
    struct attnd *client, struct attnd_stats *stats) ATTND_MUST_CHECK;

/* ---- The daemon ----------------------------------------------------------------------------- */

enum attnd_device {
    ATTND_DEVICE_CPU = 1,
    ATTND_DEVICE_CUDA = 2,
};

/* Whether the daemon shares its GPU through NVIDIA's Multi-Process Service. */
enum attnd_mps {
    ATTND_MPS_UNKNOWN = 0,
    ATTND_MPS_OFF = 1,
    ATTND_MPS_ON = 2,
};

#define ATTND_MAX_FAMILIES 8

/* What does not change while the daemon runs. */
struct attnd_info {
    size_t size; /* sizeof(struct attnd_info), set by the caller */
    enum attnd_device device;
    enum attnd_mps mps;
    bool has_uuid;
    bool checks_exporter; /* a handle of device memory must name the process that sends it */
    bool one_ipc_user;    /* handles of device memory are taken from one user at a time */
    uint8_t device_uuid[16];
    char device_name[64];
    char driver[64]; /* its version; "" on the CPU */
    uint32_t families;
    char family[ATTND_MAX_FAMILIES][64]; /* the kernels that may be chosen */
    uint32_t pid;                        /* as the daemon sees itself */
    uint32_t protocol_major;
    uint32_t protocol_minor;
    uint32_t max_sessions; /* the limits of the daemon's configuration */
    uint32_t max_sessions_per_uid;
    uint32_t in_flight; /* of a client, like the next three */
    uint32_t max_plans;
    uint32_t max_regions;
    uint64_t region_bytes;
    uint64_t region_bytes_per_uid;
    uint64_t workspace_bytes;
    char daemon_version[64];
};

/* Asks the daemon; info->size must be set. ATTND_UNSUPPORTED: the daemon is too old to say. */
ATTND_API enum attnd_status attnd_get_info(
    struct attnd *client, struct attnd_info *info) ATTND_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif

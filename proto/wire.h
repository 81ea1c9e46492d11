/*
 * What travels between libattnd and attnd, as plain C: the vocabulary that both sides share.
 *
 * codec.h turns these structs into bytes and back, validate.h says whether a plan or a call makes
 * sense, page.h describes the memory the two sides share. No allocation, no pointers: every struct
 * is a value with fixed bounds. Enum values equal those of attnd.proto.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_MAJOR 1 /* differing majors do not talk */
#define WIRE_MINOR 1

/* Bounds of the protocol; attnd.options repeats those that bound a field. */
#define WIRE_MAX_MESSAGE_BYTES 65536
#define WIRE_MAX_CALLS 32 /* of one submission */
#define WIRE_MAX_TENSORS 24
#define WIRE_MAX_DIMS 4
#define WIRE_TOKEN_BYTES 16
#define WIRE_UUID_BYTES 16
#define WIRE_HANDLE_BYTES 64  /* CUDA_IPC_HANDLE_SIZE */
#define WIRE_NAME_BYTES 64    /* with its NUL */
#define WIRE_MAX_FAMILIES 8   /* that a daemon tells of */
#define WIRE_DETAIL_BYTES 256 /* with its NUL */
#define WIRE_MAX_HEAD_DIM 256
#define WIRE_MAX_SOFTCAP 1e30F
#define WIRE_MAX_HEADS 65536
#define WIRE_MAX_BATCH (INT32_C(1) << 24)
#define WIRE_MAX_SEQLEN (INT64_C(1) << 31) /* also the most rows of a packed side */
#define WIRE_DROPOUT_ONE 65536             /* the threshold that would drop everything: refused */

enum wire_status {
    WIRE_OK = 0,
    WIRE_INVALID_ARGUMENT = 1,
    WIRE_UNSUPPORTED = 2,
    WIRE_UNSUPPORTED_MEMORY = 3,
    WIRE_RESOURCE_EXHAUSTED = 4,
    WIRE_AGAIN = 5,
    WIRE_NOT_FOUND = 6,
    WIRE_PERMISSION_DENIED = 7,
    WIRE_VERSION_MISMATCH = 8,
    WIRE_DRAINING = 9,
    WIRE_TIMED_OUT = 10,
    WIRE_CANCELLED = 11,
    WIRE_DISCONNECTED = 12,
    WIRE_FORKED = 13,
    WIRE_PROTOCOL_ERROR = 14,
    WIRE_DEVICE_FAULT = 15,
    WIRE_INTERNAL = 16,
    WIRE_LANE_POISONED = 17,
    WIRE_STATUS_END,
};

enum wire_dtype {
    WIRE_FP16 = 1,
    WIRE_BF16 = 2,
    WIRE_FP32 = 3,
    WIRE_INT32 = 4, /* only lengths */
};

enum wire_direction {
    WIRE_FORWARD = 1,
    WIRE_BACKWARD = 2,
};

enum wire_alignment {
    WIRE_TOP_LEFT = 1,
    WIRE_BOTTOM_RIGHT = 2,
};

enum wire_device_kind {
    WIRE_DEVICE_CPU = 1,
    WIRE_DEVICE_CUDA = 2,
};

/* Whether the daemon shares its GPU through the Multi-Process Service. */
enum wire_mps {
    WIRE_MPS_UNKNOWN = 0,
    WIRE_MPS_OFF = 1,
    WIRE_MPS_ON = 2,
};

/* How a client offers memory. */
enum wire_memory_kind {
    WIRE_MEMORY_SHM = 0,      /* a descriptor of sealed shared memory */
    WIRE_MEMORY_CUDA_IPC = 1, /* the driver's handle of a whole cudaMalloc allocation */
    WIRE_MEMORY_CUDA_VMM = 2, /* descriptors of the virtual memory API, piece by piece */
};

enum wire_role {
    WIRE_Q = 1,
    WIRE_K = 2,
    WIRE_V = 3,
    WIRE_OUT = 4,
    WIRE_LSE = 5,
    WIRE_DOUT = 6,
    WIRE_DLSE = 7,
    WIRE_DQ = 8,
    WIRE_DK = 9,
    WIRE_DV = 10,
    WIRE_BIAS = 11,
    WIRE_DBIAS = 12,
    WIRE_SLOPES = 13, /* ALiBi */
    WIRE_DSLOPES = 14,
    WIRE_SINKS = 15,
    WIRE_DSINKS = 16,
    WIRE_CU_SEQLENS_Q = 17,
    WIRE_CU_SEQLENS_K = 18,
    WIRE_SEQLENS_K = 19,
    WIRE_ROLE_END,
};

/* Why something was refused: a status and a sentence that names the field at fault. */
struct wire_error {
    enum wire_status status;
    char detail[WIRE_DETAIL_BYTES];
};

/* Sets *error and returns false, so that a check can end with `return wire_fail(...)`. */
bool wire_fail(struct wire_error *error, enum wire_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Copies text from elsewhere, cut to capacity - 1 bytes; control characters and what is no UTF-8
 * become '?', so that it may be logged and printed. Everything past its end is zeroed. */
void wire_copy_text(char *out, size_t capacity, const char *text);

/* Names for people: "INVALID_ARGUMENT", "fp16", "q"; "?" for what is no member. */
const char *wire_status_name(enum wire_status status);
const char *wire_dtype_name(enum wire_dtype dtype);
const char *wire_role_name(enum wire_role role);
size_t wire_dtype_bytes(enum wire_dtype dtype); /* 0 for what is no member */

/*
 * One tensor of a plan. Strides count elements; those of extents 0 and 1 mean nothing. Shapes:
 *
 *   q, out, dout, dq   (batch, seqlen_q, heads_q, head_dim), stride 1 along head_dim
 *   k, v, dk, dv       (batch, seqlen_k, heads_kv, head_dim), likewise
 *   lse, dlse          (batch, heads_q, seqlen_q) of fp32
 *   bias, dbias        (batch, heads_q, seqlen_q, seqlen_k), each or 1: broadcast; stride 1 along
 *                      keys; of q's dtype or fp32, both alike
 *   slopes, dslopes    (batch or 1, heads_q) of fp32, both alike
 *   sinks, dsinks      (heads_q) of fp32, stride 1
 *   cu_seqlens_q, _k   (batch + 1) of int32, stride 1
 *   seqlens_k          (batch) of int32, stride 1
 *
 * The query side is packed if cu_seqlens_q is there, the key side if cu_seqlens_k is: then its
 * tensors lack batch, and rows take the place of the seqlen: q (rows, heads_q, head_dim), lse
 * (heads_q, rows). The seqlen of a packed side, which bias goes by, is the plan's max_seqlen.
 */
struct wire_tensor {
    enum wire_role role;
    enum wire_dtype dtype;
    uint32_t dims; /* in use of the arrays */
    uint64_t shape[WIRE_MAX_DIMS];
    int64_t strides[WIRE_MAX_DIMS];
};

/*
 * Everything about a call but where its tensors are. Canonical, so that equal plans are equal bytes:
 * zeroed before it is filled, tensors ascending by role, none twice.
 * Forward: q, k, v in; out and optionally lse out. Backward: q, k, v, out, lse, dout and optionally
 * dlse in; dq, dk, dv out. Both: bias, slopes, sinks and lengths optionally in; backward: the
 * gradient of each that is there optionally out.
 */
struct wire_plan {
    enum wire_direction direction;
    enum wire_alignment alignment;
    float scale; /* finite; the codec fills in the default of an absent one as has_scale = false */
    bool has_scale;
    bool has_window_left;
    bool has_window_right;
    uint64_t window_left;
    uint64_t window_right;
    float softcap;              /* 0: none; at most WIRE_MAX_SOFTCAP */
    uint32_t dropout_threshold; /* round(65536 * probability), 0: none */
    bool deterministic;
    bool has_max_seqlen_q; /* only of a packed side; absent: the number of its rows */
    bool has_max_seqlen_k;
    uint64_t max_seqlen_q;
    uint64_t max_seqlen_k;
    uint32_t tensors;
    struct wire_tensor tensor[WIRE_MAX_TENSORS];
};

/* What is of one call alone: where its tensors lie, in the plan's order, and what it drops. */
struct wire_call {
    uint32_t plan;
    uint32_t tensors;
    uint32_t region[WIRE_MAX_TENSORS];
    uint64_t offset[WIRE_MAX_TENSORS]; /* bytes from the region's start to element (0, ..., 0) */
    uint64_t dropout_seed;             /* without dropout these two mean nothing */
    uint32_t dropout_offset;
};

/* A call of an epoch other than 0 that fails poisons its lane: later calls of that lane and epoch end
 * with LANE_POISONED and do not run. */
struct wire_submit {
    uint32_t lane;
    uint32_t first_sequence;
    uint32_t epoch;
    uint32_t calls;
    struct wire_call call[WIRE_MAX_CALLS];
};

struct wire_limits {
    uint32_t in_flight;
    uint32_t regions;
    uint64_t region_bytes;
    uint32_t plans;
    uint64_t workspace_bytes;
};

struct wire_device {
    enum wire_device_kind kind;
    bool has_uuid;
    uint8_t uuid[WIRE_UUID_BYTES];
    char name[WIRE_NAME_BYTES];
};

struct wire_session {
    uint32_t id;
    uint8_t token[WIRE_TOKEN_BYTES];
    uint32_t major;
    uint32_t minor;
    uint64_t features;
    struct wire_limits limits;
    struct wire_device device;
};

enum wire_gate_kind {
    WIRE_GATE_NONE,
    WIRE_GATE_OPEN,
    WIRE_GATE_ADD_REGION,
    WIRE_GATE_DROP_REGION,
    WIRE_GATE_EXTEND_REGION, /* since minor 1 */
    WIRE_GATE_TRIM,          /* since minor 1 */
};

struct wire_gate_request {
    uint32_t id;
    enum wire_gate_kind kind;
    uint32_t major; /* open */
    uint32_t minor;
    uint64_t features;
    char name[WIRE_NAME_BYTES];
    enum wire_memory_kind memory;      /* add region; all but SHM since minor 1 */
    uint8_t handle[WIRE_HANDLE_BYTES]; /* CUDA_IPC */
    uint64_t reserve;                  /* CUDA_VMM: the most it may grow to; 0: it never grows */
    uint64_t bytes;                    /* add region: of its first or only piece; extend region */
    uint32_t region;                   /* drop region, extend region */
    uint64_t offset;                   /* extend region: its bytes so far */
};

struct wire_gate_reply {
    uint32_t id;
    struct wire_error error; /* status OK: no error */
    bool has_session;
    struct wire_session session;
    uint32_t region; /* 0: none; region numbers start at 1 */
};

enum wire_request_kind {
    WIRE_REQUEST_NONE,
    WIRE_HELLO,
    WIRE_ADD_PLAN,
    WIRE_DROP_PLAN,
    WIRE_SUBMIT,
    WIRE_GET_STATS,
    WIRE_GET_INFO, /* since minor 1 */
};

struct wire_request {
    uint32_t id;
    enum wire_request_kind kind;

    union {
        struct {
            uint32_t session;
            uint8_t token[WIRE_TOKEN_BYTES];
        } hello;
        struct wire_plan plan;
        uint32_t drop_plan;
        struct wire_submit submit;
    };
};

struct wire_counters {
    uint64_t requests;
    uint64_t failed;
    uint64_t groups;
    uint64_t group_members;
    uint64_t regions;
    uint64_t region_bytes;
    uint64_t plans;
    uint64_t in_flight;
};

struct wire_stats {
    struct wire_counters session;
    struct wire_counters daemon;
    uint64_t sessions;
    uint64_t uptime_ns;
    char version[WIRE_NAME_BYTES];
};

/* What does not change while the daemon runs. */
struct wire_info {
    struct wire_device device;
    char driver[WIRE_NAME_BYTES]; /* its version, as it says; empty for the processor */
    enum wire_mps mps;
    bool checks_exporter; /* whether a CUDA_IPC handle must be of the process that sends it */
    bool one_ipc_user;    /* whether CUDA_IPC regions are taken from one user at a time */
    uint32_t families;
    char family[WIRE_MAX_FAMILIES][WIRE_NAME_BYTES]; /* the kernels that may be chosen */
    struct wire_limits limits;                       /* of each session */
    uint32_t max_sessions;
    uint32_t max_sessions_per_uid;
    uint64_t region_bytes_per_uid;
    uint32_t pid; /* as the daemon sees itself */
    char version[WIRE_NAME_BYTES];
    uint32_t major; /* of the protocol */
    uint32_t minor;
};

enum wire_reply_kind {
    WIRE_REPLY_NONE, /* only id and error */
    WIRE_REPLY_PLAN,
    WIRE_REPLY_FAILED,
    WIRE_REPLY_STATS,
    WIRE_REPLY_INFO,
};

struct wire_reply {
    uint32_t id;
    struct wire_error error;
    enum wire_reply_kind kind;

    union {
        struct {
            uint32_t plan; /* plan numbers start at 1 */
            uint64_t workspace_bytes;
            char family[WIRE_NAME_BYTES];
        } plan;

        struct {
            uint32_t lane;
            uint32_t sequence;
        } failed;
        struct wire_stats stats;
        struct wire_info info;
    };
};

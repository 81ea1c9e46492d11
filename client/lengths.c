#include "lengths.h"

#include <inttypes.h>
#include <string.h>

#include "client.h"
#include "validate.h"

#define fail(error, ...) wire_fail(error, WIRE_INVALID_ARGUMENT, __VA_ARGS__)

static uint32_t bit(enum wire_role role)
{
    return UINT32_C(1) << role;
}

static uint64_t address_of(const DLTensor *tensor)
{
    return (uint64_t)(uintptr_t)tensor->data + tensor->byte_offset;
}

/* Whether it can be read as what it should be; what cannot, is refused later or has no elements. */
static bool is_array(const DLTensor *tensor)
{
    DLDataType type = tensor->dtype;
    return request_is_host(tensor) && type.code == kDLInt && type.bits == 32 && type.lanes == 1 &&
           tensor->ndim == 1 && tensor->shape && tensor->shape[0] > 0 &&
           tensor->shape[0] <= WIRE_MAX_BATCH + 1 &&
           (!tensor->strides || tensor->strides[0] == 1 || tensor->shape[0] == 1) && tensor->data &&
           address_of(tensor) % sizeof(int32_t) == 0;
}

static uint64_t copy_bytes(const DLTensor *tensor)
{
    uint64_t bytes = (uint64_t)tensor->shape[0] * sizeof(int32_t);
    return (bytes + BLOCK_ALIGNMENT - 1) / BLOCK_ALIGNMENT * BLOCK_ALIGNMENT;
}

/* Marks what is to be copied. Returns how much room the copies take. */
static uint64_t choose(struct attnd *client, struct request *request)
{
    uint64_t bytes = 0;
    for (enum wire_role role = WIRE_CU_SEQLENS_Q; role <= WIRE_SEQLENS_K; role++) {
        const DLTensor *tensor = request->tensor[role];
        if (tensor && is_array(tensor) && !memory_is_shared(client, address_of(tensor))) {
            request->copied |= bit(role);
            bytes += copy_bytes(tensor);
        }
    }
    return bytes;
}

/* Copies what is marked. Returns what is behind the copies. */
static uint8_t *copy(struct request *request, DLTensor copies[LENGTHS_ROLES], uint8_t *to)
{
    for (enum wire_role role = WIRE_CU_SEQLENS_Q; role <= WIRE_SEQLENS_K; role++) {
        const DLTensor *tensor = request->tensor[role];
        if (request->copied & bit(role)) {
            DLTensor *own = &copies[role - WIRE_CU_SEQLENS_Q];
            *own = *tensor;
            own->data = to;
            own->byte_offset = 0;
            memcpy(to, (const char *)tensor->data + tensor->byte_offset,
                (size_t)tensor->shape[0] * sizeof(int32_t));
            request->tensor[role] = own;
            to += copy_bytes(tensor);
        }
    }
    return to;
}

/* ---- Checks ------------------------------------------------------------------------------------- */

/* One side of a plan. */
struct side {
    enum wire_role lengths;
    enum wire_role rows_of;
    const char *longest_name;
    uint64_t rows;    /* of a packed side in all, else of each sequence */
    uint64_t longest; /* sequence that the plan allows */
};

static struct side side_of(const struct wire_plan *plan, enum wire_role lengths)
{
    bool keys = lengths == WIRE_CU_SEQLENS_K;
    bool packed = wire_plan_tensor(plan, lengths) != NULL;
    bool given = keys ? plan->has_max_seqlen_k : plan->has_max_seqlen_q;
    struct side side = {.lengths = lengths,
        .rows_of = keys ? WIRE_K : WIRE_Q,
        .longest_name = keys ? "max_seqlen_k" : "max_seqlen_q"};
    side.rows = wire_plan_tensor(plan, side.rows_of)->shape[packed ? 0 : 1];
    side.longest = side.rows;
    if (given) {
        side.longest = keys ? plan->max_seqlen_k : plan->max_seqlen_q;
    }
    return side;
}

static const int32_t *array_of(const struct request *request, enum wire_role role)
{
    return request->copied & bit(role) ? request->tensor[role]->data : NULL;
}

static bool check_offset(
    const struct side *side, const int32_t *offsets, int64_t i, struct wire_error *error)
{
    const char *name = wire_role_name(side->lengths);
    int32_t before = i > 0 ? offsets[i - 1] : 0;
    int32_t now = offsets[i];
    if (now < before) {
        return fail(error, "%s[%" PRId64 "] is %" PRId32 ", %s", name, i, now,
            i > 0 ? "less than the one before" : "below 0");
    }
    if ((uint64_t)now > side->rows) {
        return fail(error, "%s[%" PRId64 "] is %" PRId32 ", but %s has %" PRIu64 " rows", name, i,
            now, wire_role_name(side->rows_of), side->rows);
    }
    if (i > 0 && (uint64_t)(now - before) > side->longest) {
        return fail(error,
            "%s[%" PRId64 "] is %" PRId32 ", which makes a sequence of %" PRId32
            " rows, more than %s, %" PRIu64,
            name, i, now, now - before, side->longest_name, side->longest);
    }
    return true;
}

static bool check_offsets(const struct request *request, const struct wire_plan *plan,
    enum wire_role role, struct wire_error *error)
{
    const int32_t *offsets = array_of(request, role);
    if (!offsets) {
        return true;
    }
    struct side side = side_of(plan, role);
    for (int64_t i = 0; i < request->tensor[role]->shape[0]; i++) {
        if (!check_offset(&side, offsets, i, error)) {
            return false;
        }
    }
    return true;
}

static bool check_key_lengths(
    const struct request *request, const struct wire_plan *plan, struct wire_error *error)
{
    const int32_t *keys = array_of(request, WIRE_SEQLENS_K);
    const int32_t *offsets = array_of(request, WIRE_CU_SEQLENS_K);
    if (!keys) {
        return true;
    }
    struct side side = side_of(plan, WIRE_CU_SEQLENS_K);
    for (int64_t b = 0; b < request->tensor[WIRE_SEQLENS_K]->shape[0]; b++) {
        uint64_t most = offsets ? (uint64_t)(offsets[b + 1] - offsets[b]) : side.longest;
        if (keys[b] < 0) {
            return fail(error, "seqlens_k[%" PRId64 "] is %" PRId32 ", below 0", b, keys[b]);
        }
        if ((uint64_t)keys[b] > most) {
            return fail(error,
                "seqlens_k[%" PRId64 "] is %" PRId32 ", but the sequence has %" PRIu64 " keys", b,
                keys[b], most);
        }
    }
    return true;
}

enum attnd_status lengths_copy(
    struct attnd *client, struct request *requests, size_t count, struct lengths *lengths)
{
    uint64_t bytes = 0;
    lengths->piece = (struct block_piece){0};
    for (size_t i = 0; i < count; i++) {
        bytes += choose(client, &requests[i]);
    }
    if (bytes == 0) {
        return ATTND_OK;
    }
    enum attnd_status status = block_acquire(client, bytes, true, &lengths->piece);
    uint8_t *to = lengths->piece.data;
    for (size_t i = 0; i < count && status == ATTND_OK; i++) {
        to = copy(&requests[i], lengths->tensor[i], to);
    }
    return status;
}

void lengths_release(struct attnd *client, const struct lengths *lengths)
{
    block_release(client, &lengths->piece);
}

bool lengths_check(
    const struct request *request, const struct wire_plan *plan, struct wire_error *error)
{
    return request->copied == 0 || (check_offsets(request, plan, WIRE_CU_SEQLENS_Q, error) &&
                                       check_offsets(request, plan, WIRE_CU_SEQLENS_K, error) &&
                                       check_key_lengths(request, plan, error));
}

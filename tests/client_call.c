#include "client_call.h"

#include <string.h>

#include "error.h"
#include "role.h"
#include "validate.h"

static const DLTensor **slot(struct call *call, enum wire_role role)
{
    const DLTensor **const slots[WIRE_ROLE_END] = {[WIRE_Q] = &call->request.q,
        [WIRE_K] = &call->request.k,
        [WIRE_V] = &call->request.v,
        [WIRE_OUT] = &call->request.out,
        [WIRE_LSE] = &call->request.lse,
        [WIRE_DOUT] = &call->request.dout,
        [WIRE_DLSE] = &call->request.dlse,
        [WIRE_DQ] = &call->request.dq,
        [WIRE_DK] = &call->request.dk,
        [WIRE_DV] = &call->request.dv,
        [WIRE_BIAS] = &call->options.bias,
        [WIRE_DBIAS] = &call->request.dbias,
        [WIRE_SLOPES] = &call->options.slopes,
        [WIRE_DSLOPES] = &call->request.dslopes,
        [WIRE_SINKS] = &call->options.sinks,
        [WIRE_DSINKS] = &call->request.dsinks,
        [WIRE_CU_SEQLENS_Q] = &call->options.cu_seqlens_q,
        [WIRE_CU_SEQLENS_K] = &call->options.cu_seqlens_k,
        [WIRE_SEQLENS_K] = &call->options.seqlens_k};
    return slots[role];
}

static void describe(struct call *call, enum wire_role role, bool packed)
{
    static const int64_t extents[ROLE_EXTENTS] = {
        CALL_BATCH, CALL_ROWS_Q, CALL_ROWS_K, CALL_HEADS_Q, CALL_HEADS_KV, CALL_DIM, CALL_DIM};

    const struct role *facts = &role_table[role];
    bool lacks_batch = packed && facts->lengths != 0;
    int dims = (int)facts->dims - lacks_batch;
    for (int dim = 0; dim < dims; dim++) {
        call->shape[role][dim] = extents[facts->extent[dim + lacks_batch]];
    }
    call->shape[role][0] += (int64_t)facts->extra;
    call->tensor[role] = (DLTensor){.data = call->memory,
        .device = {kDLCPU, 0},
        .ndim = dims,
        .dtype = facts->dtype == ROLE_INT32 ? (DLDataType){kDLInt, 32, 1}
                                            : (DLDataType){kDLFloat, 32, 1},
        .shape = call->shape[role]};
}

void call_init(struct call *call, enum attnd_direction direction)
{
    memset(call, 0, sizeof *call);
    call->options = (struct attnd_options)ATTND_OPTIONS_INIT;
    call->request = (struct attnd_request){
        .size = sizeof call->request, .direction = direction, .options = &call->options};
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        describe(call, role, false);
        if (role <= (direction == ATTND_BACKWARD ? WIRE_DV : WIRE_LSE)) {
            call_add(call, role);
        }
    }
}

void call_add_terms(struct call *call)
{
    for (enum wire_role role = WIRE_BIAS; role <= WIRE_DSINKS; role++) {
        if (role_table[role].like == 0 || call->request.direction == ATTND_BACKWARD) {
            call_add(call, role);
        }
    }
}

void call_pack(struct call *call)
{
    for (enum wire_role role = WIRE_Q; role < WIRE_ROLE_END; role++) {
        describe(call, role, true);
    }
    call_add(call, WIRE_CU_SEQLENS_Q);
    call_add(call, WIRE_CU_SEQLENS_K);
    call_add(call, WIRE_SEQLENS_K);
}

void call_add(struct call *call, enum wire_role role)
{
    *slot(call, role) = &call->tensor[role];
}

void call_remove(struct call *call, enum wire_role role)
{
    *slot(call, role) = NULL;
}

enum attnd_status call_read(const struct call *call, struct wire_plan *plan)
{
    struct wire_error error;
    struct wire_shape shape;
    struct wire_extent extents[WIRE_MAX_TENSORS];
    uint64_t address[WIRE_MAX_TENSORS];
    struct request request;
    struct request_memory memory;
    bool read = request_read(&call->request, &request, &error) &&
                request_find_memory(&request, true, &memory, &error) &&
                request_plan(&request, plan, address, &error) &&
                validate_plan(plan, &shape, extents, &error);
    return read ? ATTND_OK : error_of_request("", &error);
}

/* The calling forms of one request: tensors one by one, kv together, and qkv together. */
#include "attnd.h"

#include "client.h"
#include "packed.h"
#include "request.h"
#include "submit.h"

/* An attnd_request while it is put together, with what it may point at. */
struct form {
    struct attnd_request request;
    struct attnd_options options;
    struct packed inputs;
    struct packed gradients;
};

/* Submits what was put together; `complete`: it was, else *error says why not. */
static enum attnd_status send(struct attnd *client, void *stream, const struct form *form,
    bool complete, struct wire_error *error, attnd_ticket *ticket)
{
    struct request request;
    enum attnd_status status = client_check(client);
    if (status != ATTND_OK) {
        return status;
    }
    if (!complete || !request_read(&form->request, &request, error)) {
        return error_of_wire(error);
    }
    return submit_one(client, stream, &request, ticket);
}

/* A backward's own tensors. `packed`: the name of what holds gradients of inputs, `parts` of the last
 * of dq, dk and dv, NULL: nothing does. */
static bool read_gradients(const struct attnd_gradients *given, const char *packed, int parts,
    struct attnd_request *request, struct wire_error *error)
{
    static const char *const names[] = {"dq", "dk", "dv"};

    struct attnd_gradients read = {0};
    if (!given) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "gradients is NULL");
    }
    if (!request_read_sized("gradients->", &read, sizeof read, given, error)) {
        return false;
    }
    const DLTensor *inputs[] = {read.dq, read.dk, read.dv};
    for (int i = PACKED_PARTS - parts; i < PACKED_PARTS; i++) {
        if (inputs[i]) {
            return wire_fail(error, WIRE_INVALID_ARGUMENT, "gradients->%s is given, but lies in %s",
                names[i], packed);
        }
    }
    request->direction = ATTND_BACKWARD;
    request->dout = read.dout;
    request->dlse = read.dlse;
    request->dq = read.dq;
    request->dk = read.dk;
    request->dv = read.dv;
    request->dbias = read.dbias;
    request->dslopes = read.dslopes;
    request->dsinks = read.dsinks;
    return true;
}

/* Parts of one tensor as the last of three. */
static bool split(const char *name, const DLTensor *tensor, int parts, struct packed *packed,
    const DLTensor **const to[PACKED_PARTS], struct wire_error *error)
{
    for (int i = 0; i < parts; i++) {
        *to[PACKED_PARTS - parts + i] = &packed->part[i];
    }
    return packed_split(name, tensor, parts, packed, error);
}

static bool split_inputs(struct form *form, const char *name, const DLTensor *tensor, int parts,
    struct wire_error *error)
{
    const DLTensor **const to[] = {&form->request.q, &form->request.k, &form->request.v};
    return split(name, tensor, parts, &form->inputs, to, error);
}

static bool split_gradients(struct form *form, const char *name, const DLTensor *tensor, int parts,
    struct wire_error *error)
{
    const DLTensor **const to[] = {&form->request.dq, &form->request.dk, &form->request.dv};
    return split(name, tensor, parts, &form->gradients, to, error);
}

/* The lengths of qkv's queries are those of its keys. */
static bool share_lengths(struct form *form, struct wire_error *error)
{
    form->options = (struct attnd_options)ATTND_OPTIONS_INIT;
    const struct attnd_options *given = form->request.options;
    if (given &&
        !request_read_sized("options->", &form->options, sizeof form->options, given, error)) {
        return false;
    }
    form->options.size = sizeof form->options;
    form->request.options = &form->options;
    if (form->options.cu_seqlens_q && !form->options.cu_seqlens_k) {
        form->options.cu_seqlens_k = form->options.cu_seqlens_q;
        form->options.max_seqlen_k = form->options.max_seqlen_q;
    }
    return true;
}

static void init(struct form *form, const DLTensor *q, const DLTensor *out, const DLTensor *lse,
    const struct attnd_options *options)
{
    form->request = (struct attnd_request){.size = sizeof form->request,
        .direction = ATTND_FORWARD,
        .options = options,
        .q = q,
        .out = out,
        .lse = lse};
}

enum attnd_status attnd_forward(struct attnd *client, void *stream, const DLTensor *q,
    const DLTensor *k, const DLTensor *v, const DLTensor *out, const DLTensor *lse,
    const struct attnd_options *options, attnd_ticket *ticket)
{
    struct form form;
    struct wire_error error;
    init(&form, q, out, lse, options);
    form.request.k = k;
    form.request.v = v;
    return send(client, stream, &form, true, &error, ticket);
}

enum attnd_status attnd_forward_kvpacked(struct attnd *client, void *stream, const DLTensor *q,
    const DLTensor *kv, const DLTensor *out, const DLTensor *lse,
    const struct attnd_options *options, attnd_ticket *ticket)
{
    struct form form;
    struct wire_error error;
    init(&form, q, out, lse, options);
    bool complete = split_inputs(&form, "kv", kv, 2, &error);
    return send(client, stream, &form, complete, &error, ticket);
}

enum attnd_status attnd_forward_qkvpacked(struct attnd *client, void *stream, const DLTensor *qkv,
    const DLTensor *out, const DLTensor *lse, const struct attnd_options *options,
    attnd_ticket *ticket)
{
    struct form form;
    struct wire_error error;
    init(&form, NULL, out, lse, options);
    bool complete = split_inputs(&form, "qkv", qkv, 3, &error) && share_lengths(&form, &error);
    return send(client, stream, &form, complete, &error, ticket);
}

enum attnd_status attnd_backward(struct attnd *client, void *stream, const DLTensor *q,
    const DLTensor *k, const DLTensor *v, const DLTensor *out, const DLTensor *lse,
    const struct attnd_gradients *gradients, const struct attnd_options *options,
    attnd_ticket *ticket)
{
    struct form form;
    struct wire_error error;
    init(&form, q, out, lse, options);
    form.request.k = k;
    form.request.v = v;
    bool complete = read_gradients(gradients, NULL, 0, &form.request, &error);
    return send(client, stream, &form, complete, &error, ticket);
}

enum attnd_status attnd_backward_kvpacked(struct attnd *client, void *stream, const DLTensor *q,
    const DLTensor *kv, const DLTensor *out, const DLTensor *lse, const DLTensor *dkv,
    const struct attnd_gradients *gradients, const struct attnd_options *options,
    attnd_ticket *ticket)
{
    struct form form;
    struct wire_error error;
    init(&form, q, out, lse, options);
    bool complete = read_gradients(gradients, "dkv", 2, &form.request, &error) &&
                    split_inputs(&form, "kv", kv, 2, &error) &&
                    split_gradients(&form, "dkv", dkv, 2, &error);
    return send(client, stream, &form, complete, &error, ticket);
}

enum attnd_status attnd_backward_qkvpacked(struct attnd *client, void *stream, const DLTensor *qkv,
    const DLTensor *out, const DLTensor *lse, const DLTensor *dqkv,
    const struct attnd_gradients *gradients, const struct attnd_options *options,
    attnd_ticket *ticket)
{
    struct form form;
    struct wire_error error;
    init(&form, NULL, out, lse, options);
    bool complete = read_gradients(gradients, "dqkv", 3, &form.request, &error) &&
                    split_inputs(&form, "qkv", qkv, 3, &error) &&
                    split_gradients(&form, "dqkv", dqkv, 3, &error) && share_lengths(&form, &error);
    return send(client, stream, &form, complete, &error, ticket);
}

#include "request.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "codec.h"
#include "log.h"

struct request_handler {
    struct session_table *sessions; /* borrowed */
    struct transport *transport;    /* borrowed */
    struct job *job;                /* owned */
    uint32_t jobs;
    uint32_t touched; /* jobs from here on were never used and are in no list */
    struct list free;
    struct wire_request request; /* the one being handled */
    uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];
};

static void reply(struct request_handler *handler, const struct transport_peer *peer,
    const struct wire_reply *message)
{
    size_t size = codec_encode_reply(message, handler->bytes, sizeof(handler->bytes));

    assert(size > 0);
    /* A peer that has gone, or lets a thousand replies lie, does without; the transport counts it. */
    (void)transport_send(handler->transport, peer, handler->bytes, size);
}

static void reply_status(struct request_handler *handler, const struct transport_peer *peer,
    const struct wire_error *error)
{
    struct wire_reply message = {.id = handler->request.id, .error = *error};

    if (error->status != WIRE_OK) {
        log_debug("request refused: %s: %s", wire_status_name(error->status), error->detail);
    }
    reply(handler, peer, &message);
}

static void reply_failed(
    struct request_handler *handler, const struct session *session, const struct job *job)
{
    struct wire_reply message = {
        .id = job->request_id, .error = job->error, .kind = WIRE_REPLY_FAILED};

    log_debug("session %" PRIu32 ", request failed: %s: %s", session->id,
        wire_status_name(job->error.status), job->error.detail);
    message.failed.lane = job->lane;
    message.failed.sequence = job->sequence;
    reply(handler, &session->peer, &message);
}

/* There is one: the pool holds every session's credit. */
static struct job *take_job(struct request_handler *handler)
{
    struct list_node *node = list_pop(&handler->free);
    if (node == NULL) {
        assert(handler->touched < handler->jobs);
        return &handler->job[handler->touched++];
    }
    return list_entry(node, struct job, node);
}

static void end_job(struct request_handler *handler, struct job *job)
{
    struct session *session = &handler->sessions->session[job->session];

    for (size_t t = 0; t < WIRE_MAX_TENSORS; t++) {
        if (job->region[t] != NULL) {
            region_release(job->region[t]);
        }
    }
    session_count(handler->sessions, session, job);
    if (job->error.status != WIRE_OK && session->bound) {
        reply_failed(handler, session, job);
    }
    list_append(&handler->free, &job->node);
}

static void hello(struct request_handler *handler, const struct transport_peer *peer)
{
    const struct wire_request *request = &handler->request;
    struct wire_error error = {.status = WIRE_OK};

    (void)session_bind(
        handler->sessions, peer, request->hello.session, request->hello.token, &error);
    reply_status(handler, peer, &error);
}

static void add_plan(struct request_handler *handler, struct session *session)
{
    struct wire_reply message = {.id = handler->request.id};

    message.plan.plan =
        session_add_plan(handler->sessions, session, &handler->request.plan, &message.error);
    if (message.plan.plan != 0) {
        const struct plan *plan = session_plan(handler->sessions, session, message.plan.plan);
        message.error.status = WIRE_OK;
        message.kind = WIRE_REPLY_PLAN;
        message.plan.workspace_bytes = plan->workspace_bytes;
        (void)snprintf(
            message.plan.family, sizeof(message.plan.family), "%s", attn_family_name(plan->family));
    }
    reply(handler, &session->peer, &message);
}

static void drop_plan(struct request_handler *handler, struct session *session)
{
    uint32_t number = handler->request.drop_plan;
    struct wire_error error = {.status = WIRE_OK};

    if (!session_drop_plan(handler->sessions, session, number)) {
        (void)wire_fail(&error, WIRE_NOT_FOUND, "the session has no plan %" PRIu32, number);
    }
    reply_status(handler, &session->peer, &error);
}

static void get_stats(struct request_handler *handler, struct session *session)
{
    struct wire_reply message = {.id = handler->request.id, .kind = WIRE_REPLY_STATS};

    /* What has ended is counted when it is taken back. */
    request_collect(handler);
    session_stats(handler->sessions, session, &message.stats);
    reply(handler, &session->peer, &message);
}

static void get_info(struct request_handler *handler, struct session *session)
{
    struct wire_reply message = {.id = handler->request.id, .kind = WIRE_REPLY_INFO};

    session_info(handler->sessions, &message.info);
    reply(handler, &session->peer, &message);
}

/* How many requests of a session there may be. The engine gives a job back before its client can see
 * that it has ended, so whoever keeps to the credit is within it once all that came back has been
 * taken; but where the device tells the client, as many again may be on their way here. */
static uint32_t most_in_flight(const struct session_options *options)
{
    bool device_tells = options->backend->ops->pin_page != NULL;
    return options->limits.in_flight * (device_tells ? 2 : 1);
}

static bool has_credit(
    struct request_handler *handler, const struct session *session, uint32_t calls)
{
    uint32_t limit = most_in_flight(&handler->sessions->options);

    if (session->in_flight + calls > limit) {
        request_collect(handler);
    }
    return session->in_flight + calls <= limit;
}

/* Whether the calls get their sequence numbers. A submission refused here has none: it never was. */
static bool may_submit(struct request_handler *handler, const struct session *session,
    const struct wire_submit *submit, struct wire_error *error)
{
    if (submit->lane >= PAGE_LANES) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "lane is %" PRIu32 "; lanes are 0 to %d",
            submit->lane, PAGE_LANES - 1);
    }
    if (submit->calls == 0) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "the submission has no calls");
    }
    if (submit->first_sequence != session->next_sequence[submit->lane]) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "first_sequence is %" PRIu32 "; the next one of lane %" PRIu32 " is %" PRIu32,
            submit->first_sequence, submit->lane, session->next_sequence[submit->lane]);
    }
    if (!has_credit(handler, session, submit->calls)) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the session has %" PRIu32 " requests in flight, and %" PRIu32
            " more are past its credit of %" PRIu32,
            session->in_flight, submit->calls, handler->sessions->options.limits.in_flight);
    }
    return true;
}

/* Looks up what a call names and turns it into the job's work. */
static bool resolve(const struct request_handler *handler, const struct session *session,
    const struct wire_call *call, struct job *job)
{
    const struct plan *plan = session_plan(handler->sessions, session, call->plan);
    struct region *region[WIRE_MAX_TENSORS] = {NULL};

    if (plan == NULL) {
        return wire_fail(
            &job->error, WIRE_NOT_FOUND, "the session has no plan %" PRIu32, call->plan);
    }
    if (call->tensors != plan->wire.tensors) {
        return wire_fail(&job->error, WIRE_INVALID_ARGUMENT,
            "the call has %" PRIu32 " tensors, its plan %" PRIu32 " has %" PRIu32, call->tensors,
            call->plan, plan->wire.tensors);
    }
    for (uint32_t t = 0; t < call->tensors; t++) {
        region[t] = region_find(&session->regions, call->region[t]);
        if (region[t] == NULL) {
            return wire_fail(&job->error, WIRE_NOT_FOUND, "%s: the session has no region %" PRIu32,
                wire_role_name(plan->wire.tensor[t].role), call->region[t]);
        }
    }
    if (!plan_resolve(plan, call, region, job, &job->error)) {
        return false;
    }
    for (uint32_t t = 0; t < call->tensors; t++) {
        region_acquire(region[t]);
        job->region[t] = region[t];
    }
    return true;
}

/* A call that cannot run still becomes a job, so that it takes its turn in its lane and the control
 * page says how it ended. */
static void post_call(struct request_handler *handler, struct session *session,
    const struct wire_submit *submit, uint32_t index)
{
    struct job *job = take_job(handler);

    *job = (struct job){
        .session = session->slot,
        .lane = submit->lane,
        .sequence = submit->first_sequence + index,
        .array_first = submit->first_sequence,
        .epoch = submit->epoch,
        .request_id = handler->request.id,
        .error = {.status = WIRE_OK},
    };
    if (handler->sessions->draining) {
        (void)wire_fail(&job->error, WIRE_DRAINING, "the daemon is shutting down");
    } else {
        (void)resolve(handler, session, &submit->call[index], job);
    }
    session->in_flight++;
    handler->sessions->in_flight++;
    engine_post(handler->sessions->options.engine, job);
}

static void submit(struct request_handler *handler, struct session *session)
{
    const struct wire_submit *message = &handler->request.submit;
    struct wire_error error;

    if (!may_submit(handler, session, message, &error)) {
        reply_status(handler, &session->peer, &error);
        return;
    }
    session->next_sequence[message->lane] += message->calls;
    for (uint32_t i = 0; i < message->calls; i++) {
        post_call(handler, session, message, i);
    }
}

static void dispatch(struct request_handler *handler, const struct transport_peer *peer)
{
    struct session *session = session_of_peer(handler->sessions, peer);
    struct wire_error error;

    if (handler->request.kind == WIRE_HELLO) {
        hello(handler, peer);
        return;
    }
    if (session == NULL) {
        (void)wire_fail(
            &error, WIRE_PERMISSION_DENIED, "this connection has no session; HELLO comes first");
        reply_status(handler, peer, &error);
        return;
    }
    switch (handler->request.kind) {
    case WIRE_ADD_PLAN:
        add_plan(handler, session);
        break;
    case WIRE_DROP_PLAN:
        drop_plan(handler, session);
        break;
    case WIRE_SUBMIT:
        submit(handler, session);
        break;
    case WIRE_GET_STATS:
        get_stats(handler, session);
        break;
    case WIRE_GET_INFO:
        get_info(handler, session);
        break;
    default:
        (void)wire_fail(
            &error, WIRE_PROTOCOL_ERROR, "the message asks for nothing that this daemon knows");
        reply_status(handler, peer, &error);
    }
}

static void collect(void *handler)
{
    request_collect(handler);
}

uint32_t request_max_jobs(const struct session_options *options)
{
    return most_in_flight(options) * session_slots(options);
}

struct request_handler *request_handler_create(
    struct session_table *sessions, struct transport *transport)
{
    struct request_handler *handler = calloc(1, sizeof(*handler));
    if (handler == NULL) {
        return NULL;
    }
    handler->sessions = sessions;
    handler->transport = transport;
    handler->jobs = request_max_jobs(&sessions->options);
    handler->job = calloc(handler->jobs, sizeof(struct job));
    list_init(&handler->free);
    if (handler->job == NULL) {
        free(handler);
        return NULL;
    }
    sessions->collect = collect;
    sessions->collect_context = handler;
    return handler;
}

void request_handler_destroy(struct request_handler *handler)
{
    if (handler != NULL) {
        free(handler->job);
        free(handler);
    }
}

void request_handle(
    void *context, const struct transport_peer *peer, const uint8_t *bytes, size_t size)
{
    struct request_handler *handler = context;
    struct wire_error error;

    handler->request.id = 0;
    if (codec_decode_request(bytes, size, &handler->request, &error)) {
        dispatch(handler, peer);
    } else {
        reply_status(handler, peer, &error);
    }
}

void request_collect(struct request_handler *handler)
{
    struct engine *engine = handler->sessions->options.engine;
    struct job *job = NULL;
    uint32_t slot = 0;

    while ((job = engine_take_ended(engine)) != NULL) {
        end_job(handler, job);
    }
    while (engine_take_closed(engine, &slot)) {
        session_free(handler->sessions, slot);
    }
}

#include "session.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <uv.h>

#include "choose.h"
#include "log.h"

/* Of that user, in that state. */
static uint32_t count_sessions(
    const struct session_table *table, uint32_t uid, enum session_state state)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < session_slots(&table->options); i++) {
        const struct session *session = &table->session[i];
        count += session->state == state && session->uid == uid;
    }
    return count;
}

struct account {
    uint64_t bytes;
    uint64_t regions;
};

/* What a user has: also what was dropped, until it is really unmapped, and the bytes of what is being
 * mapped for ended sessions. */
static struct account account_of(const struct session_table *table, uint32_t uid)
{
    const struct session_options *options = &table->options;
    struct account account = {
        .bytes = worker_weight(options->mapper, uid) + worker_weight(options->unmapper, uid),
        .regions = region_unmaps(options->unmapper, uid)};

    for (uint32_t i = 0; i < session_slots(options); i++) {
        const struct session *session = &table->session[i];
        if (session->state != SESSION_FREE && session->uid == uid) {
            account.bytes += session->regions.bytes;
            account.regions += session->regions.count;
        }
    }
    return account;
}

static struct session *free_slot(struct session_table *table)
{
    for (uint32_t i = 0; i < session_slots(&table->options); i++) {
        if (table->session[i].state == SESSION_FREE) {
            return &table->session[i];
        }
    }
    return NULL;
}

static bool may_open(const struct session_table *table, const struct wire_gate_request *request,
    uint32_t uid, struct wire_error *error)
{
    if (request->major != WIRE_MAJOR) {
        return wire_fail(error, WIRE_VERSION_MISMATCH,
            "the client speaks version %" PRIu32 " of the protocol, the daemon version %d",
            request->major, WIRE_MAJOR);
    }
    if (table->draining) {
        return wire_fail(error, WIRE_DRAINING, "the daemon is shutting down");
    }
    if (table->open >= table->options.max_sessions) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the daemon has %" PRIu32 " sessions, as many as it may", table->options.max_sessions);
    }
    uint32_t count =
        count_sessions(table, uid, SESSION_OPEN) + count_sessions(table, uid, SESSION_OPENING);
    if (count >= table->options.max_sessions_per_uid) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "user %" PRIu32 " has %" PRIu32 " sessions, as many as one may", uid, count);
    }
    return true;
}

/* Closing sessions take none of the room of open ones, but a user may leave only so many behind; and so
 * many pages beside those of all its sessions. */
static struct session *find_slot(struct session_table *table, uint32_t uid)
{
    const struct session_options *options = &table->options;
    uint32_t most_pages = options->max_sessions_per_uid + SESSION_SPARE_SLOTS;

    return count_sessions(table, uid, SESSION_CLOSING) < SESSION_SPARE_SLOTS &&
                   control_closings(options->unmapper, uid) < most_pages
               ? free_slot(table)
               : NULL;
}

static bool make_token(uint8_t token[WIRE_TOKEN_BYTES])
{
    return getrandom(token, WIRE_TOKEN_BYTES, 0) == WIRE_TOKEN_BYTES;
}

/* Equal without telling by the time it takes how far they are. */
static bool same_token(const uint8_t *a, const uint8_t *b)
{
    unsigned difference = 0;

    for (size_t i = 0; i < WIRE_TOKEN_BYTES; i++) {
        difference |= (unsigned)(a[i] ^ b[i]);
    }
    return difference == 0;
}

static void release_memory(const struct session_table *table, struct session *session)
{
    for (uint32_t i = 0; session->plan != NULL && i < table->options.limits.plans; i++) {
        plan_destroy(session->plan[i]);
    }
    free(session->plan);
    session->plan = NULL;
    region_set_finish(&session->regions);
    if (session->control != NULL && !session->control->is_opening) {
        control_close(session->control, table->options.unmapper);
    }
    session->control = NULL;
}

static bool init_regions(const struct session_table *table, struct session *session)
{
    const struct region_options options = {.backend = table->options.backend,
        .mapper = table->options.mapper,
        .unmapper = table->options.unmapper,
        .uid = session->uid,
        .pid = session->pid,
        .limit = table->options.limits.regions};

    return region_set_init(&session->regions, &options);
}

/* The engine gets to know it, and its client. */
static void begin(struct session_table *table, struct session *session)
{
    const struct control *control = session->control;

    session->state = SESSION_OPEN;
    engine_open_session(
        table->options.engine, session->slot, session->uid, control->page, control->device);
    log_info("session %" PRIu32 " opened: name=%s pid=%d uid=%" PRIu32 " sessions=%" PRIu32,
        session->id, session->name, session->pid, session->uid, table->open);
    session->done(session->done_context, -1, NULL);
}

/* Its control page is mapped, or will not be. */
static void on_control(void *context, struct control *control)
{
    struct session *session = context;
    struct session_table *table = session->table;
    struct wire_error error = control->error;
    int fd = control->fd;

    if (session->state == SESSION_OPENING) {
        if (control->page != NULL) {
            begin(table, session);
            return;
        }
        session_close(table, session);
    } else {
        (void)wire_fail(&error, WIRE_CANCELLED, "the connection was closed");
    }
    session_free(table, session->slot);
    session->done(session->done_context, fd, &error);
}

/* Everything of a session but its place in the engine, and its page. */
static bool fill(
    struct session_table *table, struct session *session, int page_fd, struct wire_error *error)
{
    session->plan = calloc(table->options.limits.plans, sizeof(struct plan *));
    if (session->plan == NULL || !init_regions(table, session)) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
    }
    if (!make_token(session->token)) {
        return wire_fail(error, WIRE_INTERNAL, "the system gives no random numbers");
    }
    for (unsigned lane = 0; lane < PAGE_LANES; lane++) {
        session->next_sequence[lane] = 1;
    }
    session->control = control_open(
        table->options.backend, table->options.mapper, session->uid, page_fd, on_control, session);
    return session->control != NULL ||
           wire_fail(error, WIRE_RESOURCE_EXHAUSTED, "the daemon is out of memory");
}

/* Whether the limits leave the session so many more bytes, and its user so many more regions. Those of
 * a session do not count what it dropped, and unmapping may take longer than adding and dropping again:
 * so a user may not have more than all sessions together. */
static bool has_room(const struct session_table *table, const struct session *session,
    uint64_t bytes, uint64_t regions, struct wire_error *error)
{
    const struct wire_limits *limits = &table->options.limits;
    const struct account most = {.bytes = table->options.region_bytes_per_uid,
        .regions = (uint64_t)limits->regions * table->options.max_sessions_per_uid};
    const struct account has = account_of(table, session->uid);

    if (session->regions.bytes > limits->region_bytes ||
        bytes > limits->region_bytes - session->regions.bytes) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "bytes is %" PRIu64 "; the session has %" PRIu64 " in regions and may have %" PRIu64,
            bytes, session->regions.bytes, limits->region_bytes);
    }
    if (has.bytes > most.bytes || bytes > most.bytes - has.bytes) {
        return wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "bytes is %" PRIu64 "; user %" PRIu32 " has %" PRIu64
            " in regions and may have %" PRIu64,
            bytes, session->uid, has.bytes, most.bytes);
    }
    return regions == 0 || has.regions + regions <= most.regions ||
           wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
               "user %" PRIu32 " has %" PRIu64
               " regions, with those that wait to be unmapped, and may have %" PRIu64,
               session->uid, has.regions, most.regions);
}

/* The bytes of a handle do not prove whose memory it is of: who can guess those of another user's
 * would get at memory that the other shares. So no two users do, unless the configuration lets them. */
static bool may_use_handles(
    const struct session_table *table, uint32_t uid, struct wire_error *error)
{
    for (uint32_t i = 0; i < session_slots(&table->options); i++) {
        const struct session *session = &table->session[i];
        if (session->state == SESSION_OPEN && session->uid != uid && session->regions.handles > 0) {
            return wire_fail(error, WIRE_PERMISSION_DENIED,
                "memory of kind CUDA_IPC is taken from one user at a time (ipc-users = one), and "
                "another has some; memory of the virtual memory API is taken from all");
        }
    }
    return true;
}

static bool add_region(const struct session_table *table, struct session *session,
    const struct backend_offer *offer, region_done_fn *done, void *context,
    struct wire_error *error)
{
    return has_room(table, session, offer->bytes, 1, error) &&
           region_add(&session->regions, offer, done, context, error);
}

static void count_job(struct session_counters *counters, const struct job *job)
{
    counters->shown.requests++;
    counters->shown.failed += job->error.status != WIRE_OK;
    counters->shown.group_members += job->group_members;
    if (job->group_members != 0 && job->group_id != counters->last_group) {
        counters->last_group = job->group_id;
        counters->shown.groups++;
    }
}

uint32_t session_slots(const struct session_options *options)
{
    return options->max_sessions + SESSION_SPARE_SLOTS;
}

bool session_table_init(struct session_table *table, const struct session_options *options)
{
    *table = (struct session_table){.options = *options, .next_id = 1, .started_ns = uv_hrtime()};
    table->session = calloc(session_slots(options), sizeof(struct session));
    return table->session != NULL;
}

void session_table_finish(struct session_table *table)
{
    for (uint32_t i = 0; table->session != NULL && i < session_slots(&table->options); i++) {
        release_memory(table, &table->session[i]);
    }
    free(table->session);
    table->session = NULL;
}

struct session *session_open(struct session_table *table, const struct wire_gate_request *request,
    uint32_t uid, int pid, int page_fd, session_done_fn *done, void *context,
    struct wire_error *error)
{
    if (!may_open(table, request, uid, error)) {
        return NULL;
    }
    struct session *session = find_slot(table, uid);
    if (session == NULL) {
        /* The engine may be done with some, and nobody has noticed yet. */
        table->collect(table->collect_context);
        session = find_slot(table, uid);
    }
    if (session == NULL) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "requests of ended sessions are still running, or their memory is not yet unmapped: "
            "they leave no place for another");
        return NULL;
    }
    *session = (struct session){.table = table,
        .slot = (uint32_t)(session - table->session),
        .id = table->next_id,
        .uid = uid,
        .pid = pid,
        .done = done,
        .done_context = context};
    wire_copy_text(session->name, sizeof(session->name), request->name);
    if (!fill(table, session, page_fd, error)) {
        release_memory(table, session);
        return NULL;
    }
    session->state = SESSION_OPENING;
    table->next_id = table->next_id == UINT32_MAX ? 1 : table->next_id + 1;
    table->open++;
    return session;
}

static struct wire_device describe_device(const struct backend *backend)
{
    struct wire_device device = {
        .kind = backend->device_kind, .has_uuid = backend->device_kind == WIRE_DEVICE_CUDA};

    memcpy(device.uuid, backend->device_uuid, WIRE_UUID_BYTES);
    wire_copy_text(device.name, sizeof(device.name), backend->device_name);
    return device;
}

void session_describe(const struct session_table *table, const struct session *session,
    struct wire_session *description)
{
    *description = (struct wire_session){.id = session->id,
        .major = WIRE_MAJOR,
        .minor = WIRE_MINOR,
        .limits = table->options.limits,
        .device = describe_device(table->options.backend)};
    memcpy(description->token, session->token, WIRE_TOKEN_BYTES);
}

void session_info(const struct session_table *table, struct wire_info *info)
{
    const struct session_options *options = &table->options;
    const struct backend_facts *facts = &options->backend->facts;

    *info = (struct wire_info){.device = describe_device(options->backend),
        .mps = facts->mps,
        .checks_exporter = facts->checks_exporter,
        .one_ipc_user = !options->any_ipc_user,
        .limits = options->limits,
        .max_sessions = options->max_sessions,
        .max_sessions_per_uid = options->max_sessions_per_uid,
        .region_bytes_per_uid = options->region_bytes_per_uid,
        .pid = (uint32_t)getpid(),
        .major = WIRE_MAJOR,
        .minor = WIRE_MINOR};
    wire_copy_text(info->driver, sizeof(info->driver), facts->driver);
    wire_copy_text(info->version, sizeof(info->version), ATTND_VERSION);
    for (size_t i = 0; i < attn_family_count() && info->families < WIRE_MAX_FAMILIES; i++) {
        const struct attn_family *family = attn_family_at(i);
        if (choose_fits(options->backend, family)) {
            char *name = info->family[info->families++];
            wire_copy_text(name, WIRE_NAME_BYTES, attn_family_name(family));
        }
    }
}

void session_close(struct session_table *table, struct session *session)
{
    bool was_open = session->state == SESSION_OPEN;

    assert(was_open || session->state == SESSION_OPENING);
    session->state = SESSION_CLOSING;
    session->bound = false;
    explicit_bzero(session->token, sizeof(session->token));
    table->open--;
    region_set_close(&session->regions);
    if (!was_open) {
        return; /* the engine has never heard of it */
    }
    engine_close_session(table->options.engine, session->slot);
    log_info("session %" PRIu32 " closed: requests=%" PRIu64 " failed=%" PRIu64
             " in_flight=%" PRIu32 " sessions=%" PRIu32,
        session->id, session->counters.shown.requests, session->counters.shown.failed,
        session->in_flight, table->open);
}

void session_free(struct session_table *table, uint32_t slot)
{
    struct session *session = &table->session[slot];

    assert(session->state == SESSION_CLOSING && session->in_flight == 0);
    release_memory(table, session);
    session->state = SESSION_FREE;
}

bool session_add_region(struct session_table *table, struct session *session,
    const struct backend_offer *offer, region_done_fn *done, void *context,
    struct wire_error *error)
{
    if (offer->bytes == 0) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "bytes is 0");
    }
    if (offer->kind == WIRE_MEMORY_CUDA_IPC && !table->options.any_ipc_user &&
        !may_use_handles(table, session->uid, error)) {
        return false;
    }
    bool added = add_region(table, session, offer, done, context, error);
    if (!added && error->status == WIRE_RESOURCE_EXHAUSTED) {
        /* Dropped regions of requests that have ended, as their client knows, may count still. */
        table->collect(table->collect_context);
        added = add_region(table, session, offer, done, context, error);
    }
    return added;
}

bool session_extend_region(struct session_table *table, struct session *session, uint32_t number,
    uint64_t offset, const struct backend_offer *piece, region_done_fn *done, void *context,
    struct wire_error *error)
{
    if (piece->bytes == 0) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT, "bytes is 0");
    }
    if (!has_room(table, session, piece->bytes, 0, error)) {
        table->collect(table->collect_context);
        if (!has_room(table, session, piece->bytes, 0, error)) {
            return false;
        }
    }
    return region_extend(&session->regions, number, offset, piece, done, context, error);
}

/* Each message pays for this walk: 150 ns at 64 sessions, where decoding it takes 2,600 (EPYC,
 * virtual, gcc -O2). With thousands of busy sessions a table by the peer's key would be due. */
struct session *session_of_peer(struct session_table *table, const struct transport_peer *peer)
{
    for (uint32_t i = 0; i < session_slots(&table->options); i++) {
        struct session *session = &table->session[i];
        if (session->bound && transport_peer_equal(&session->peer, peer)) {
            return session;
        }
    }
    return NULL;
}

struct session *session_bind(struct session_table *table, const struct transport_peer *peer,
    uint32_t id, const uint8_t token[WIRE_TOKEN_BYTES], struct wire_error *error)
{
    struct session *session = NULL;

    for (uint32_t i = 0; i < session_slots(&table->options); i++) {
        if (table->session[i].state == SESSION_OPEN && table->session[i].id == id) {
            session = &table->session[i];
        }
    }
    /* One answer for both, so that nobody learns which sessions there are. */
    if (session == NULL || !same_token(session->token, token)) {
        (void)wire_fail(error, WIRE_PERMISSION_DENIED, "no session has this number and this token");
        return NULL;
    }
    if (session->bound || session_of_peer(table, peer) != NULL) {
        (void)wire_fail(error, WIRE_INVALID_ARGUMENT, "HELLO was said before, on %s connection",
            session->bound ? "the session's" : "this");
        return NULL;
    }
    session->bound = true;
    session->peer = *peer;
    return session;
}

uint32_t session_add_plan(struct session_table *table, struct session *session,
    const struct wire_plan *wire, struct wire_error *error)
{
    uint32_t limit = table->options.limits.plans;
    uint32_t at = 0;

    while (at < limit && session->plan[at] != NULL) {
        at++;
    }
    if (at == limit) {
        (void)wire_fail(error, WIRE_RESOURCE_EXHAUSTED,
            "the session has %" PRIu32 " plans, as many as it may", limit);
        return 0;
    }
    session->plan[at] = plan_create(wire, table->options.backend, error);
    if (session->plan[at] == NULL) {
        return 0;
    }
    session->plans++;
    return at + 1;
}

struct plan *session_plan(
    const struct session_table *table, const struct session *session, uint32_t number)
{
    return number - 1 < table->options.limits.plans ? session->plan[number - 1] : NULL;
}

bool session_drop_plan(struct session_table *table, struct session *session, uint32_t number)
{
    struct plan *plan = session_plan(table, session, number);

    if (plan == NULL) {
        return false;
    }
    plan_destroy(plan);
    session->plan[number - 1] = NULL;
    session->plans--;
    return true;
}

void session_count(struct session_table *table, struct session *session, const struct job *job)
{
    session->in_flight--;
    table->in_flight--;
    count_job(&session->counters, job);
    count_job(&table->counters, job);
}

void session_stats(
    const struct session_table *table, const struct session *session, struct wire_stats *stats)
{
    *stats = (struct wire_stats){.session = session->counters.shown,
        .daemon = table->counters.shown,
        .sessions = table->open,
        .uptime_ns = uv_hrtime() - table->started_ns};
    stats->session.regions = session->regions.count;
    stats->session.region_bytes = session->regions.bytes;
    stats->session.plans = session->plans;
    stats->session.in_flight = session->in_flight;
    for (uint32_t i = 0; i < session_slots(&table->options); i++) {
        const struct session *other = &table->session[i];
        if (other->state != SESSION_FREE) {
            stats->daemon.regions += other->regions.count;
            stats->daemon.region_bytes += other->regions.bytes;
            stats->daemon.plans += other->plans;
            stats->daemon.in_flight += other->in_flight;
        }
    }
    (void)snprintf(stats->version, sizeof(stats->version), "%s", ATTND_VERSION);
}

/* What the daemon says of itself, and what it counts. */
#include "attnd.h"

#include <string.h>

#include "client.h"

_Static_assert((int)ATTND_DEVICE_CPU == (int)WIRE_DEVICE_CPU &&
                   (int)ATTND_DEVICE_CUDA == (int)WIRE_DEVICE_CUDA &&
                   (int)ATTND_MPS_OFF == (int)WIRE_MPS_OFF && (int)ATTND_MPS_ON == (int)WIRE_MPS_ON,
    "devices and MPS are numbered alike on the wire and in the API");
_Static_assert(sizeof((struct attnd_info){0}.device_uuid) == WIRE_UUID_BYTES, "so long is a UUID");
_Static_assert(sizeof((struct attnd_info){0}.family) == sizeof((struct wire_info){0}.family),
    "as many names, and as long ones, as come");

static void copy_limits(struct attnd_info *to, const struct wire_info *from)
{
    to->max_sessions = from->max_sessions;
    to->max_sessions_per_uid = from->max_sessions_per_uid;
    to->in_flight = from->limits.in_flight;
    to->max_plans = from->limits.plans;
    to->max_regions = from->limits.regions;
    to->region_bytes = from->limits.region_bytes;
    to->region_bytes_per_uid = from->region_bytes_per_uid;
    to->workspace_bytes = from->limits.workspace_bytes;
}

static void copy_names(struct attnd_info *to, const struct wire_info *from)
{
    wire_copy_text(to->device_name, sizeof to->device_name, from->device.name);
    wire_copy_text(to->driver, sizeof to->driver, from->driver);
    wire_copy_text(to->daemon_version, sizeof to->daemon_version, from->version);
    to->families = from->families < ATTND_MAX_FAMILIES ? from->families : ATTND_MAX_FAMILIES;
    for (uint32_t i = 0; i < to->families; i++) {
        wire_copy_text(to->family[i], sizeof to->family[i], from->family[i]);
    }
}

/* Only as much as the caller's struct has; what it has beyond ours is zero. */
static void write_info(struct attnd_info *info, const struct wire_info *from)
{
    size_t size = info->size;
    struct attnd_info known = {.size = size,
        .device = (enum attnd_device)from->device.kind,
        .mps = (enum attnd_mps)from->mps,
        .has_uuid = from->device.has_uuid,
        .checks_exporter = from->checks_exporter,
        .one_ipc_user = from->one_ipc_user,
        .pid = from->pid,
        .protocol_major = from->major,
        .protocol_minor = from->minor};
    memcpy(known.device_uuid, from->device.uuid, sizeof known.device_uuid);
    copy_limits(&known, from);
    copy_names(&known, from);
    memcpy(info, &known, size < sizeof known ? size : sizeof known);
}

static void copy_counters(struct attnd_counters *to, const struct wire_counters *from)
{
    *to = (struct attnd_counters){.requests = from->requests,
        .failed = from->failed,
        .groups = from->groups,
        .group_members = from->group_members,
        .regions = from->regions,
        .region_bytes = from->region_bytes,
        .plans = from->plans,
        .in_flight = from->in_flight};
}

/* Only as much as the caller's struct has; what it has beyond ours is zero. */
static void write_stats(struct attnd_stats *stats, const struct wire_stats *from)
{
    size_t size = stats->size;
    struct attnd_stats known = {
        .size = size, .clients = from->sessions, .uptime_ns = from->uptime_ns};
    copy_counters(&known.client, &from->session);
    copy_counters(&known.daemon, &from->daemon);
    wire_copy_text(known.daemon_version, sizeof known.daemon_version, from->version);
    memcpy(stats, &known, size < sizeof known ? size : sizeof known);
}

/* The reply of a kind, or `silence`. */
static enum attnd_status ask(struct attnd *client, enum wire_request_kind question,
    enum wire_reply_kind answer, const char *silence, struct wire_reply *reply)
{
    struct wire_request request = {.kind = question};
    enum attnd_status status = rpc_call(&client->rpc, &request, reply, client->timeout_ns);
    if (status != ATTND_OK) {
        return status;
    }
    if (reply->error.status != WIRE_OK) {
        return error_of_wire(&reply->error);
    }
    return reply->kind == answer ? ATTND_OK : error_set(ATTND_PROTOCOL_ERROR, "%s", silence);
}

enum attnd_status attnd_get_info(struct attnd *client, struct attnd_info *info)
{
    struct wire_reply reply;
    enum attnd_status status = client_check(client);
    if (status != ATTND_OK) {
        return status;
    }
    if (!info || info->size < sizeof info->size) {
        return error_set(
            ATTND_INVALID_ARGUMENT, info ? "info->size is no struct's sizeof" : "info is NULL");
    }
    if (client->session.minor < 1) {
        return error_set(ATTND_UNSUPPORTED,
            "the daemon speaks version %u.%u of the protocol, in which it says nothing of itself",
            (unsigned)client->session.major, (unsigned)client->session.minor);
    }
    status =
        ask(client, WIRE_GET_INFO, WIRE_REPLY_INFO, "the daemon said nothing of itself", &reply);
    if (status == ATTND_OK) {
        write_info(info, &reply.info);
    }
    return status;
}

enum attnd_status attnd_get_stats(struct attnd *client, struct attnd_stats *stats)
{
    struct wire_reply reply;
    enum attnd_status status = client_check(client);
    if (status != ATTND_OK) {
        return status;
    }
    if (!stats || stats->size < sizeof stats->size) {
        return error_set(
            ATTND_INVALID_ARGUMENT, stats ? "stats->size is no struct's sizeof" : "stats is NULL");
    }
    status = ask(client, WIRE_GET_STATS, WIRE_REPLY_STATS, "the daemon gave no statistics", &reply);
    if (status == ATTND_OK) {
        write_stats(stats, &reply.stats);
    }
    return status;
}
